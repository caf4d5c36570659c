"""Source discovery: resolve paths, folders, globs and URLs to files."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem

from ..errors import SourceError, detail
from ..provenance import unrecorded_folders, without_folder
from ..redaction import redact_urls, without_query
from ..suggestions import unknown_name
from .files import SHA256, UNREADABLE, SourceFile, printable, stamp_of
from .formats import Format, holds_structures

Paths = Sequence[str | Path] | str | Path
OPTIMADE_PREFIX = "optimade:"
# Query parameters that state what was requested; a store records them.
_OPTIMADE_PARAMETERS = ("filter", "response_fields", "sort", "page_limit")
_GLOB = frozenset("*?[")
# Lock files in the folders of `equiscreen rank` and `cascade`, beside a record of the run.
_RUN_LOCKS = ("/campaign.lock", "/cascade.lock")
# Prefixes that may precede a file in a chain of URLs, and names of archives.
_WRAPPER = re.compile(r"(?:zip|tar|libarchive|(?:simple|file|block)?cache|cached)(?:://|\Z)")
_ARCHIVE = re.compile(r"\.(zip|tar|tgz|tbz|txz)(\.(gz|bz2|xz|zst))?$", re.IGNORECASE)
# File system metadata that change when a file changes.
_TOKENS = ("ETag", "etag", "LastModified", "Last-Modified", "mtime", "CRC", "sha")
_INSTALL = {"s3": "s3fs", "http": "aiohttp", "https": "aiohttp", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs"}


def path_names(paths: Paths) -> list[str]:
    """Return one or several paths or URLs as a list of strings."""
    return [str(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def find_files(sources: Sequence[str | Path], form: Format | None = None) -> list[SourceFile]:
    """Resolve sources to files, in the given order; the files of a folder or glob are sorted by name.

    Args:
        sources: Paths, folders, globs, or URLs that fsspec understands (``s3://bucket/*.cif``,
            ``https://host/file.csv.gz``, ``zip://*.cif::file.zip``).
        form: Format of all files; None detects it from the content.

    Raises:
        SourceError: The format is unknown, or a source does not exist, is empty, holds no structures or cannot be
            reached.
    """
    if form is not None and form not in frozenset(Format):
        raise SourceError(unknown_name("format", form, Format))
    chosen = None if form is None else Format(form)
    files: list[SourceFile] = []
    named = [str(source) for source in sources]
    for source, folder in zip(named, unrecorded_folders(named), strict=True):
        found = _resolved(source, chosen)
        names = [without_folder(file.name, printable(folder)) for file in found]
        files += [replace(file, name=name) for file, name in zip(found, names, strict=True)]
    if not files:
        raise SourceError("there are no sources; give at least one file, folder, glob or URL")
    return files


def is_server(source: str) -> bool:
    """Whether a source is an OPTIMADE server rather than a file of that name."""
    return source.startswith(OPTIMADE_PREFIX) and not os.path.lexists(source)


def server_name(source: str) -> str:
    """Return the name under which the structures of a server are recorded: its query without secrets."""
    return redact_urls(source, _OPTIMADE_PARAMETERS)


def file_name(source: str) -> str:
    """Return the name of the file or archive member that a recorded source refers to, without folder and query."""
    links = source.split("::")
    last = next((place for place, link in enumerate(links) if not _WRAPPER.match(link)), len(links) - 1)
    chain, member = links[: last + 1], "::".join(links[last + 1 :])
    if member and last == 0 and "://" not in source and not _ARCHIVE.search(links[0]):
        name = source  # a local file whose name contains "::"
    else:
        name = member or next((link for link in chain if "/" in link or link is chain[-1]), "")
    return PurePosixPath(without_query(name)).name


def _resolved(source: str, form: Format | None) -> list[SourceFile]:
    fs, path = _file_system(source)
    shown = redact_urls(source)
    try:
        if _wildcards(fs, path) and not fs.exists(path):
            found = {name: info for name, info in fs.glob(path, detail=True).items() if info["type"] == "file"}
            if not found:
                raise SourceError(f"{shown} matches no files; check the pattern")  # noqa: TRY301 - re-raised unchanged
            return _several(source, path, fs, found, form)
        info = fs.info(path)
        if info["type"] != "directory":
            if info["size"] == 0:
                raise SourceError(f"{shown}: the file is empty")  # noqa: TRY301 - re-raised unchanged
            return [_source_file(source, fs, info, form)]
        inside = _without_stores(fs.find(path, detail=True))
    except SourceError:
        raise
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # fsspec's error for an HTTP server that does not respond
            raise SourceError(
                f"{shown} cannot be reached ({detail(error.__cause__, source)}); check the URL and the connection"
            ) from error
        raise SourceError(f"{shown}: no such file or folder") from error
    except Exception as error:  # each file system raises its own errors
        raise SourceError(f"{shown} cannot be reached ({detail(error, source)}){_hint(error)}") from error
    if not inside:
        raise SourceError(
            f"{shown}: no structure files in this folder; to read files with other names, give their paths or a glob"
        )
    return _several(source, path, fs, inside, form)


def _several(
    source: str, path: str, fs: fsspec.AbstractFileSystem, found: Mapping[str, dict[str, Any]], form: Format | None
) -> list[SourceFile]:
    """Return the files of a folder or glob; a file that cannot be read becomes a failure and does not end the run."""
    files = []
    for name, info in sorted(found.items()):
        try:
            files.append(_source_file(_found_name(source, path, name), fs, info, form))
        except SourceError:
            files.append(
                SourceFile(
                    _recorded_name(_found_name(source, path, name)), fs, name, 1, UNREADABLE, form, seekable=True
                )
            )
    return files


def _without_stores(found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Select the structure files of a folder, excluding the contents of Zarr stores, campaigns and unfinished runs.

    A campaign may write its results among its sources; the results must not become sources themselves.
    """
    stores = {name.rpartition("/")[0] for name in found if name.endswith("/zarr.json")}
    stores |= {
        name.rpartition("/")[0]
        for name in found
        if name.endswith(_RUN_LOCKS) and f"{name.removesuffix('.lock')}.json" in found
    }
    return {
        name: info
        for name, info in found.items()
        if holds_structures(name)
        and not any(str(folder) in stores or folder.suffix == ".partial" for folder in PurePosixPath(name).parents)
    }


def _wildcards(fs: fsspec.AbstractFileSystem, path: str) -> frozenset[str]:
    """Return the wildcards in a path. In a web URL, "?" begins a query, whose values may contain anything."""
    return _GLOB & set(path.partition("?")[0] if "http" in _protocols(fs) else path)


def _file_system(source: str) -> tuple[fsspec.AbstractFileSystem, str]:
    if "://" not in source and os.path.lexists(source):  # its name may hold "::", which fsspec would split
        local = Path(source).absolute()
        if local.exists() and not local.is_file() and not local.is_dir():
            raise SourceError(f"{source} is a pipe or a device, which can be read only once; write it to a file first")
        return LocalFileSystem(), str(local)
    try:
        fs, path = url_to_fs(source, **_options(source))
    except ImportError as error:
        protocol = source.split("://", maxsplit=1)[0]
        package = _INSTALL.get(protocol, f"the fsspec backend of {protocol}")
        raise SourceError(
            f"{redact_urls(source)}: reading {protocol}:// requires {package}; install it with pip"
        ) from error
    except FileNotFoundError as error:
        raise SourceError(f"{redact_urls(source)}: no such file or folder") from error
    except Exception as error:
        raise SourceError(
            f"{redact_urls(source)} cannot be reached ({detail(error, source)}); check the URL"
        ) from error
    return fs, str(path)


def _options(source: str) -> dict[str, Any]:
    """Return options for fsspec that differ from its defaults."""
    if not source.startswith(("http://", "https://")):
        return {}
    import aiohttp  # noqa: PLC0415 - only needed here

    # By default aiohttp times out after five minutes, which large files exceed.
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}}


def _hint(error: Exception) -> str:
    """Return advice to append to the message of an error about permissions or credentials; empty for other errors."""
    if "credentials" in f"{type(error).__name__} {error}".lower() or isinstance(error, PermissionError):
        return "; check your permissions (for S3, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
    return ""


def _found_name(source: str, path: str, found: str) -> str:
    """Return the name of a file found in a folder or by a glob, in the form in which the user wrote the source."""
    if found.startswith(("http://", "https://")):  # the links of a web page are whole URLs
        return found
    fixed = path if not _GLOB & set(path) else path[: min(path.index(char) for char in _GLOB & set(path))]
    fixed = fixed if fixed.endswith("/") or fixed != path else f"{fixed}/"
    written = source.split("::", maxsplit=1)[0]
    if _GLOB & set(written):
        written = written[: min(written.index(char) for char in _GLOB & set(written))]
    elif not written.endswith("/"):
        written = f"{written}/"
    chained = source[source.index("::") :] if "::" in source else ""
    return f"{written}{found.removeprefix(fixed)}{chained}"


def _recorded_name(name: str) -> str:
    """Return a name that can be stored: valid UTF-8, and without the secrets of a URL."""
    return redact_urls(printable(name))


def _source_file(name: str, fs: fsspec.AbstractFileSystem, info: dict[str, Any], form: Format | None) -> SourceFile:
    on_the_web = "http" in _protocols(fs)
    if on_the_web and info.get("size") is None:  # a listing has names only
        info = {**info, **fs.info(info["name"])}
    size = -1 if info.get("size") is None else int(info["size"])
    seekable = not on_the_web or bool(info.get("partial"))
    file = SourceFile(_recorded_name(name), fs, str(info["name"]), size, "", form, seekable)
    if file.local:
        with file.readable(), Path(file.path).open("rb") as raw:
            stamp = stamp_of(Path(file.path))
            version = f"{SHA256}{hashlib.file_digest(raw, 'sha256').hexdigest()}"
        return replace(file, version=version, stamp=stamp)
    tokens = {key: str(info[key]) for key in _TOKENS if key in info}
    version = f"token:{hashlib.sha256(json.dumps([size, tokens], sort_keys=True).encode()).hexdigest()}"
    return replace(file, version=version)


def _protocols(fs: fsspec.AbstractFileSystem) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def inputs_of(files: Iterable[SourceFile]) -> list[tuple[str, int, str]]:
    """Return the name, size in bytes and version of every file, which together identify the inputs of a run."""
    return [(file.name, file.size, file.version) for file in files]


def inputs_digest(inputs: Sequence[tuple[str, int, str]]) -> str:
    """Return the SHA-256 of the names, sizes and versions of all inputs."""
    return hashlib.sha256(json.dumps([list(item) for item in inputs]).encode()).hexdigest()
