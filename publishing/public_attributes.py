"""Attributes of a dataset as others may read them: without local folders and without the secrets of URLs."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path, PurePath
from tempfile import TemporaryDirectory
from typing import Any

from ..pipeline.redaction import redact_urls
from ..pipeline.runs.target import ROOT_FILE
from ..pipeline.store.checksums import write_root_attributes

# The folders of an absolute path within a text, such as a command line. The slashes of a URL follow another slash.
_FOLDERS = re.compile(r"(?:(?<=[\s=:,;\"'(\[])|\A)(?:/[^/\s\"',;)\]]+)+/(?=[^/\s])")
_FILE_URL = re.compile(r"\b(?:file|local)://(?=/)")
_PATH = "path"


def public_attributes(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """Return attributes in which local paths are reduced to the names of their files, and URLs have no secrets."""
    return {name: _public(value, name) for name, value in attrs.items()}


def _public(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return public_attributes(value)
    if isinstance(value, list | tuple):
        return [_public(one, name) for one in value]
    if not isinstance(value, str):
        return value
    text = redact_urls(_FILE_URL.sub("", value))
    if "://" not in text and (name == _PATH or text.startswith("/")):
        return PurePath(text).name
    return _FOLDERS.sub("", text)


def public_root(content: bytes, changes: Mapping[str, Any]) -> bytes:
    """Return the content of the root file of a store, with public attributes.

    Args:
        content: Present content of the root file.
        changes: Attributes to set.
    """
    document = json.loads(content)
    document["attributes"] = {**public_attributes(document["attributes"]), **changes}
    with TemporaryDirectory() as scratch:
        file = Path(scratch) / ROOT_FILE
        file.write_text(json.dumps(document))
        write_root_attributes(file, {})  # seals the new attributes
        return file.read_bytes()
