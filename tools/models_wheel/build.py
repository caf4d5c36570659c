"""Build the wheel `equiscreen-models`: the ONNX file of 7net-0, with its licence and hashes, and no code.

Where this wheel is installed, equiscreen ranks crystals without PyTorch. Building it needs `equiscreen[rank]`:

    python tools/models_wheel/build.py --out dist
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from importlib.metadata import distribution
from pathlib import Path

from equiscreen import __version__
from equiscreen.campaigns.models.bundled import BUNDLED, DISTRIBUTION, MANIFEST, MANIFEST_SCHEMA, PACKAGE
from equiscreen.campaigns.models.catalog import find_model
from equiscreen.campaigns.models.exports import exported_weights

(MODEL,) = BUNDLED
PROJECT = f"""\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "{DISTRIBUTION}"
version = "{__version__}"
description = "ONNX file of 7net-0 (SevenNet, MIT licence) for equiscreen: screening without PyTorch."
requires-python = ">=3.11"
license = "MIT"
license-files = ["LICENSE"]

[tool.setuptools]
packages = ["{PACKAGE}"]

[tool.setuptools.package-data]
{PACKAGE} = ["*.onnx", "{MANIFEST}", "LICENSE"]
"""
INIT = '"""Data for equiscreen: models in ONNX format. The weights are SevenNet\'s; LICENSE is their licence."""\n'


def main() -> None:
    """Export the model, and build the wheel in --out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder to write the wheel to")
    out = parser.parse_args().out
    with tempfile.TemporaryDirectory() as scratch:
        project = Path(scratch)
        write_project(project)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(out), str(project)]
        subprocess.run(command, check=True)  # noqa: S603 - runs this interpreter
    for wheel in sorted(out.glob(f"{PACKAGE}-{__version__}-*.whl")):
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


def write_project(folder: Path) -> None:
    """Write the sources of the wheel."""
    model = find_model(MODEL)
    data = exported_weights(MODEL, model.fidelity, lambda text: print(text, file=sys.stderr, flush=True))
    package = folder / PACKAGE
    package.mkdir()
    (package / "__init__.py").write_text(INIT)
    (package / f"{MODEL}.onnx").write_bytes(data)
    entry = {
        "name": model.name,
        "file": f"{MODEL}.onnx",
        "sha256": hashlib.sha256(data).hexdigest(),
        "weights_sha256": model.sha256,
        "licence": model.published.licence,
        "citation": model.published.citation,
        "equiscreen": __version__,
    }
    (package / MANIFEST).write_text(json.dumps({"schema": MANIFEST_SCHEMA, "models": [entry]}, indent=1))
    for target in (folder, package):
        (target / "LICENSE").write_text(licence())
    (folder / "pyproject.toml").write_text(PROJECT)


def licence() -> str:
    """Return the licence of SevenNet and its weights, as its package states it."""
    files = distribution("sevenn").files or []
    (path,) = (file for file in files if file.name == "LICENSE")
    return path.read_text()


if __name__ == "__main__":
    main()
