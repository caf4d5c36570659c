"""Where structures come from: paths, folders, globs and URLs are resolved to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from .errors import SourceError
from .files import SourceFile
from .formats import Format, holds_structures

OPTIMADE_PREFIX = "optimade:"
_GLOB = frozenset("*?[")
_INSTALL = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def find_files(sources: Sequence[str | Path], form: Format | None = None) -> list[SourceFile]:
    """Resolve what the user named to files, in its order; folders and globs give theirs sorted by name.

    Args:
        sources: Paths, folders, globs, or URLs that fsspec understands (``s3://bucket/*.cif``,
            ``https://host/file.csv.gz``, ``zip://*.cif::file.zip``).
        form: Format of all of them; None tells it from the content.

    Raises:
        SourceError: One of them does not exist, is empty, holds no structures or cannot be reached.
    """
    files: list[SourceFile] = []
    for source in sources:
        files.extend(_resolved(str(source), form))
    if not files:
        raise SourceError("no sources given")
    return files


def _resolved(source: str, form: Format | None) -> list[SourceFile]:
    fs, path = _file_system(source)
    try:
        if _GLOB & set(path) and not fs.exists(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            if not found:
                raise SourceError(f"{source}: matches no file")
            return [_file(_found_name(source, path, name), fs, info, form) for name, info in sorted(found.items())]
        info = fs.info(path)
        if info["type"] != "directory":
            if info["size"] == 0:
                raise SourceError(f"{source}: the file is empty")
            return [_file(source, fs, info, form)]
        inside = {name: found for name, found in fs.find(path, detail=True).items() if holds_structures(name)}
    except SourceError:
        raise
    except FileNotFoundError as error:
        raise SourceError(f"{source}: no such file or folder") from error
    except Exception as error:  # each file system has errors of its own
        detail = " ".join(str(error).split())[:200] or type(error).__name__
        raise SourceError(f"{source}: cannot be reached ({detail}){_cure(error)}") from error
    if not inside:
        raise SourceError(f"{source}: a folder without structure files")
    return [_file(_found_name(source, path, name), fs, info, form) for name, info in sorted(inside.items())]


def _file_system(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, path = url_to_fs(source)
    except ImportError as error:
        protocol = source.split("://", maxsplit=1)[0]
        package = _INSTALL.get(protocol, f"the fsspec backend of {protocol}")
        raise SourceError(f"{source}: reading {protocol}:// needs {package}: pip install {package}") from error
    except FileNotFoundError as error:
        raise SourceError(f"{source}: no such file or folder") from error
    except Exception as error:
        raise SourceError(f"{source}: cannot be reached ({' '.join(str(error).split())[:200]})") from error
    return fs, str(path)


def _cure(error: Exception) -> str:
    """What to do about errors of object stores that beginners meet."""
    if "credentials" in f"{type(error).__name__} {error}".lower() or isinstance(error, PermissionError):
        return "; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or check what they may read"
    return ""


def _found_name(source: str, path: str, found: str) -> str:
    """The name of a file found in a folder or by a glob, written as the user wrote the source."""
    fixed = path if not _GLOB & set(path) else path[: min(path.index(char) for char in _GLOB & set(path))]
    fixed = fixed if fixed.endswith("/") or fixed != path else f"{fixed}/"
    written = source.split("::", maxsplit=1)[0]
    if _GLOB & set(written):
        written = written[: min(written.index(char) for char in _GLOB & set(written))]
    elif not written.endswith("/"):
        written = f"{written}/"
    chained = source[source.index("::") :] if "::" in source else ""
    return f"{written}{found.removeprefix(fixed)}{chained}"


def _file(name: str, fs: fsspec.AbstractFileSystem, info: dict[str, Any], form: Format | None) -> SourceFile:
    path, size = str(info["name"]), int(info.get("size") or 0)
    file = SourceFile(name, fs, path, size, "", form)
    if file.local:
        with file.readable(), Path(path).open("rb") as raw:
            version = f"sha256:{hashlib.file_digest(raw, 'sha256').hexdigest()}"
    else:
        tokens = {key: str(info[key]) for key in ("ETag", "etag", "LastModified", "mtime", "CRC", "sha") if key in info}
        version = f"token:{hashlib.sha256(json.dumps([size, tokens], sort_keys=True).encode()).hexdigest()}"
    return SourceFile(name, fs, path, size, version, form)


def inputs_of(files: Iterable[SourceFile]) -> list[tuple[str, int, str]]:
    """Name, bytes and version of every file: what identifies the inputs of a run."""
    return [(file.name, file.size, file.version) for file in files]


def inputs_digest(inputs: Sequence[tuple[str, int, str]]) -> str:
    """One sha256 over names, sizes and versions of all inputs."""
    return hashlib.sha256(json.dumps([list(item) for item in inputs]).encode()).hexdigest()
