"""Where structures come from: paths, folders, globs and URLs are resolved to files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs

from ..errors import SourceError, detail
from .files import SourceFile, printable
from .formats import Format, holds_structures

OPTIMADE_PREFIX = "optimade:"
_GLOB = frozenset("*?[")
# What file systems say of a file that is another when the file is.
_TOKENS = ("ETag", "etag", "LastModified", "Last-Modified", "mtime", "CRC", "sha")
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
    if form is not None and form not in frozenset(Format):
        raise SourceError(f"format {form!r} is none of {', '.join(Format)}")
    said = None if form is None else Format(form)
    files: list[SourceFile] = []
    for source in sources:
        files.extend(_resolved(str(source), said))
    if not files:
        raise SourceError("no sources given")
    return files


def _resolved(source: str, form: Format | None) -> list[SourceFile]:
    fs, path = _file_system(source)
    try:
        if _GLOB & set(path) and not fs.exists(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            if not found:
                raise SourceError(f"{source}: matches no file")  # noqa: TRY301 - goes on as it is
            return [_file(_found_name(source, path, name), fs, info, form) for name, info in sorted(found.items())]
        info = fs.info(path)
        if info["type"] != "directory":
            if info["size"] == 0:
                raise SourceError(f"{source}: the file is empty")  # noqa: TRY301 - likewise
            return [_file(source, fs, info, form)]
        inside = _without_stores(fs.find(path, detail=True))
    except SourceError:
        raise
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # so fsspec's HTTP calls a server that does not answer
            raise SourceError(f"{source}: cannot be reached ({detail(error.__cause__)})") from error
        raise SourceError(f"{source}: no such file or folder") from error
    except Exception as error:  # each file system has errors of its own
        raise SourceError(f"{source}: cannot be reached ({detail(error)}){_cure(error)}") from error
    if not inside:
        raise SourceError(f"{source}: a folder without structure files")
    return [_file(_found_name(source, path, name), fs, info, form) for name, info in sorted(inside.items())]


def _without_stores(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The files of a folder that hold structures; those within Zarr stores and unfinished runs are other things."""
    stores = {name.rpartition("/")[0] for name in found if name.endswith("/zarr.json")}
    return {
        name: info
        for name, info in found.items()
        if holds_structures(name)
        and not any(str(folder) in stores or folder.suffix == ".partial" for folder in PurePosixPath(name).parents)
    }


def _file_system(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    try:
        fs, path = url_to_fs(source, **_options(source))
    except ImportError as error:
        protocol = source.split("://", maxsplit=1)[0]
        package = _INSTALL.get(protocol, f"the fsspec backend of {protocol}")
        raise SourceError(f"{source}: reading {protocol}:// needs {package}: pip install {package}") from error
    except FileNotFoundError as error:
        raise SourceError(f"{source}: no such file or folder") from error
    except Exception as error:
        raise SourceError(f"{source}: cannot be reached ({detail(error)})") from error
    return fs, str(path)


def _options(source: str) -> dict[str, Any]:
    """What fsspec is told beyond its defaults."""
    if not source.startswith(("http://", "https://")):
        return {}
    import aiohttp  # noqa: PLC0415 - only needed here

    # aiohttp gives up on whatever takes five minutes, and large files do.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


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
    on_the_web = "http" in _protocols(fs)
    if on_the_web and info.get("size") is None:  # a listing names files only
        info = {**info, **fs.info(info["name"])}
    size = -1 if info.get("size") is None else int(info["size"])
    seekable = not on_the_web or bool(info.get("partial"))
    file = SourceFile(printable(name), fs, str(info["name"]), size, "", form, seekable)
    if file.local:
        with file.readable(), Path(file.path).open("rb") as raw:
            version = f"sha256:{hashlib.file_digest(raw, 'sha256').hexdigest()}"
    else:
        tokens = {key: str(info[key]) for key in _TOKENS if key in info}
        version = f"token:{hashlib.sha256(json.dumps([size, tokens], sort_keys=True).encode()).hexdigest()}"
    return replace(file, version=version)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def inputs_of(files: Iterable[SourceFile]) -> list[tuple[str, int, str]]:
    """Name, bytes and version of every file: what identifies the inputs of a run."""
    return [(file.name, file.size, file.version) for file in files]


def inputs_digest(inputs: Sequence[tuple[str, int, str]]) -> str:
    """One sha256 over names, sizes and versions of all inputs."""
    return hashlib.sha256(json.dumps([list(item) for item in inputs]).encode()).hexdigest()
