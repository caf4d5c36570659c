"""Names under which stores record the user's files, so that a published store reveals no local paths."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath

from .redaction import redact_urls

# The prefix that fsspec strips from a local path.
_FILE = re.compile(r"^(?:file|local):(?://|(?=/))")


def unrecorded_folders(sources: Sequence[str]) -> list[str]:
    """Return the part of each source that a store does not record.

    A relative path and a URL are recorded as given. An absolute path inside the working folder is recorded relative to
    the working folder. All other absolute paths are recorded relative to the folder that contains them all, so that
    different files keep different names.

    Args:
        sources: Paths, globs and URLs as given by the user.

    Returns:
        For each source, the folder that `without_folder` removes; empty if the source is recorded as given.
    """
    here = Path.cwd()
    paths = [_split(source)[1] for source in sources]
    # Every absolute path lies inside the root folder, and a path relative to it would be no shorter.
    inside = [path.is_relative_to(here) and here != Path(here.anchor) for path in paths]
    outside = [path.is_absolute() and not within for path, within in zip(paths, inside, strict=True)]
    parents = {str(path.parent) for path, out in zip(paths, outside, strict=True) if out}
    common = os.path.commonpath(parents) if parents else ""
    return [str(here) if within else common if out else "" for within, out in zip(inside, outside, strict=True)]


def without_folder(source: str, folder: str) -> str:
    """Return the name under which a store records a source or a file found in it.

    Args:
        source: Path or URL.
        folder: Folder that is not recorded, from `unrecorded_folders`.
    """
    chain, path = _split(source)
    if not folder or not path.is_relative_to(folder):
        return source
    return f"{chain}{path.relative_to(folder).as_posix()}"


def _split(source: str) -> tuple[str, PurePath]:
    """Split a source into a local path and the chain of URLs before it; the path is empty if the source ends in a URL.

    ``zip://*.cif::/folder/file.zip`` becomes ``zip://*.cif::`` and ``/folder/file.zip``. The name of a local file may
    also contain "::".
    """
    whole = _without_file(source)
    chain, separator, last = ("", "", whole) if whole.startswith("/") else source.rpartition("::")
    path = _without_file(last)
    # pathlib treats two leading slashes as a different root.
    local = "" if "://" in path else f"/{path.lstrip('/')}" if path.startswith("/") else path
    return f"{chain}{separator}", PurePath(local)


def _without_file(path: str) -> str:
    """Return a path without a leading ``file://``."""
    return _FILE.sub("", path, count=1)


def recorded_path(path: str | Path, dataset: str | Path) -> str:
    """Return the path under which a dataset records a store that it depends on.

    A URL is recorded without its secrets. A path is recorded relative to the folder of the dataset, so that the two can
    be moved together. If they have no folder in common but the root, or if the dataset is at a URL, only the name of
    the store is recorded. The same holds for the path at the end of a chain of URLs (``zip://g.zarr::/folder/g.zip``).

    Args:
        path: Path or URL of the store.
        dataset: Path or URL of the dataset.
    """
    text, at = _without_file(str(path)), _without_file(str(dataset))
    chain, separator, last = text.rpartition("::") if "://" in text else ("", "", text)
    if "://" in _without_file(last):
        return redact_urls(text)
    place = Path(_without_file(last)).resolve()
    if "://" in at:
        name = place.name
    else:
        folder = Path(at).resolve().parent
        alone = os.path.commonpath([place, folder]) == place.anchor
        name = place.name if alone else PurePath(os.path.relpath(place, folder)).as_posix()
    return f"{redact_urls(chain)}{separator}{name}"


def resolved_path(recorded: str, dataset: str | Path) -> str:
    """Return the path or URL of a store that `recorded_path` recorded.

    Args:
        recorded: Path as recorded in the attributes of the dataset.
        dataset: Path or URL of the dataset.
    """
    chain, separator, last = recorded.rpartition("::") if "://" in recorded else ("", "", recorded)
    if not last or "://" in last or PurePath(last).is_absolute():
        return recorded
    at = _without_file(str(dataset))
    if "://" in at:
        return f"{chain}{separator}{at.rstrip('/').rpartition('/')[0]}/{last}"
    place = os.path.normpath(Path(at).resolve().parent / last)  # with links resolved, as in the recorded path
    return f"{chain}{separator}{place}"
