"""ONNX files in the package `equiscreen-models`, if it is installed. `tools/models_wheel/build.py` builds it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from ...pipeline.errors import ModelFileError, detail
from .catalog import CatalogModel

PACKAGE, DISTRIBUTION = "equiscreen_models", "equiscreen-models"
# Names of the models in this package.
BUNDLED = ("7net-0",)
MANIFEST, MANIFEST_SCHEMA = "manifest.json", "equiscreen-models/1"


def bundled_file(model: CatalogModel) -> Path | None:
    """Return the model's ONNX file in the installed package, after checking its SHA-256.

    Returns:
        Path of the file; None if the package is not installed or does not hold these weights.

    Raises:
        ModelFileError: The package is damaged.
    """
    folder = _folder()
    if folder is None:
        return None
    cure = f"reinstall {DISTRIBUTION} (`make models-wheel` builds its wheel)"
    try:
        content: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        if content["schema"] != MANIFEST_SCHEMA:
            raise ModelFileError(f"{folder / MANIFEST}: the schema {content['schema']!r} is not supported; {cure}")
        for entry in content["models"]:
            if entry["name"] == model.name and entry["weights_sha256"] == model.sha256:
                path = folder / Path(str(entry["file"])).name
                if hashlib.sha256(path.read_bytes()).hexdigest() != entry["sha256"]:
                    raise ModelFileError(f"{path} is damaged: its SHA-256 does not match; {cure}")
                return path
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{folder} is damaged ({detail(error)}); {cure}") from error
    return None


def _folder() -> Path | None:
    """Return the folder of the installed package without importing it; None if it is not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:  # a folder of that name that is not a package
        return None
    return Path(spec.origin).parent
