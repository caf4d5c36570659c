"""Names under which stores record the user's files, so that a published store reveals no paths of their machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path, PurePath

from .redaction import redact_urls

_FILE = "file://"


def unrecorded_folders(sources: Sequence[str]) -> list[str]:
    """The part of each source that a store does not record.

    A relative path and a URL are recorded as given. An absolute path is recorded relative to the working folder if it
    lies inside; otherwise relative to the folder that holds all such sources, so that different files keep different
    names.

    Args:
        sources: Paths, globs and URLs as given by the user.

    Returns:
        For each source, the folder that `without_folder` removes; empty if the source is recorded as given.
    """
    here = Path.cwd()
    paths = [_local_part(source) for source in sources]
    # Everything lies in the root, so a path in it is no shorter.
    inside = [path.is_relative_to(here) and here != Path(here.anchor) for path in paths]
    outside = [path.is_absolute() and not within for path, within in zip(paths, inside, strict=True)]
    parents = {str(path.parent) for path, out in zip(paths, outside, strict=True) if out}
    common = os.path.commonpath(parents) if parents else ""
    return [str(here) if within else common if out else "" for within, out in zip(inside, outside, strict=True)]


def without_folder(source: str, folder: str) -> str:
    """A source, or a file found in it, as a store records it.

    Args:
        source: Path or URL.
        folder: Folder that is not recorded, from `unrecorded_folders`.
    """
    path = _local_part(source)
    if not folder or not path.is_relative_to(folder):
        return source
    chain, separator, _ = source.rpartition("::")
    return f"{chain}{separator}{path.relative_to(folder).as_posix()}"


def _local_part(source: str) -> PurePath:
    """The local path that a source is or ends with (``zip://*.cif::/folder/file.zip``); empty for any other URL."""
    path = source.rpartition("::")[2].removeprefix(_FILE)
    # Without this, two slashes at the beginning make another root.
    return PurePath("" if "://" in path else f"/{path.lstrip('/')}" if path.startswith("/") else path)


def recorded_path(path: str | Path, dataset: str | Path) -> str:
    """Path under which a dataset records a store that it depends on.

    A URL is recorded without its secrets. A path is recorded relative to the folder of the dataset, so that the two can
    be moved together; if they have no folder in common but the root, only the name of the store is recorded.

    Args:
        path: Path or URL of the store.
        dataset: Path or URL of the dataset.
    """
    text = str(path).removeprefix(_FILE)
    if "://" in text:
        return redact_urls(text)
    place, at = Path(text).resolve(), str(dataset).removeprefix(_FILE)
    if "://" in at:
        return place.name
    folder = Path(at).resolve().parent
    shared = os.path.commonpath([place, folder])
    return place.name if shared == place.anchor else PurePath(os.path.relpath(place, folder)).as_posix()


def resolved_path(recorded: str, dataset: str | Path) -> str:
    """The path or URL that `recorded_path` recorded.

    Args:
        recorded: Path as recorded in the attributes of the dataset.
        dataset: Path or URL of the dataset.
    """
    if not recorded or "://" in recorded or PurePath(recorded).is_absolute():
        return recorded
    at = str(dataset).removeprefix(_FILE)
    if "://" in at:
        return f"{at.rstrip('/').rpartition('/')[0]}/{recorded}"
    return os.path.normpath(Path(at).resolve().parent / recorded)  # without links, as it was recorded
