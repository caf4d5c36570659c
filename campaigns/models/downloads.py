"""Downloads of weights: resumed after an interruption, bounded in size, and used only with the expected SHA-256."""

from __future__ import annotations

import hashlib
import ipaddress
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ...pipeline.errors import ModelFileError, UnreachableError, detail
from ...pipeline.runs.progress import ProgressReport
from .cache import exclusive, usable

if TYPE_CHECKING:
    import httpx

# Largest download that is accepted, bytes; the largest weights file that has to be downloaded is 3 MB.
MAX_BYTES = 64 << 20
# Largest number of consecutive attempts that receive nothing, and the pause after an attempt (s), which doubles with
# each of them.
_ATTEMPTS, _PAUSE = 3, 0.5
_TIMEOUT = 30.0
_BUSY = {408, 425, 429, 500, 502, 503, 504}


class _BrokenOffError(Exception):
    """A request ended before the whole file had arrived; a new one may succeed."""


def fetch(
    url: str,
    target: Path,
    sha256: str,
    *,
    progress: bool = False,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> Path:
    """Download a file, unless it exists already.

    An interrupted download leaves what it has received beside `target`, and the next download resumes from there.

    Args:
        url: An https URL; http is accepted only for a server on this machine.
        target: File to write, in a folder of the cache.
        sha256: SHA-256 that the file must have.
        progress: Show progress on standard error.
        note: Called with a message if a file is replaced or another process is downloading it.

    Returns:
        `target`, which has the expected hash.

    Raises:
        UnreachableError: The file cannot be fetched.
        ModelFileError: The URL is invalid or not https, the file has another hash or is too large, or httpx is not
            installed.
        EquiscreenError: The folder cannot be written.
    """
    with usable(target):
        if _digest(target) == sha256:
            return target
    with exclusive(target, note):
        if _digest(target) == sha256:
            return target
        if target.exists():
            note(f"{target} is not the published file (its SHA-256 does not match); fetching it again")
        part = target.with_name(f".{target.name}.{sha256[:12]}.part")
        with usable(target):
            found = _downloaded(url, part, target, sha256, progress=progress)
            if found != sha256:
                part.unlink(missing_ok=True)
                raise ModelFileError(
                    f"{url}: the downloaded file has the SHA-256 {found} instead of {sha256}, so it is not the "
                    f"published file, or was damaged in transit; run the same command again{_by_hand(target)}"
                )
            part.replace(target)
    return target


def _downloaded(url: str, part: Path, target: Path, sha256: str, *, progress: bool) -> str | None:
    """Receive the whole file, and return its SHA-256."""
    resumed = part.exists()
    if _digest(part) == sha256:  # an earlier process was killed before it renamed the file
        return sha256
    _receive_all(url, part, target, progress=progress)
    found = _digest(part)
    if found != sha256 and resumed:  # an earlier process left damaged data
        part.unlink()
        _receive_all(url, part, target, progress=progress)
        found = _digest(part)
    return found


def _receive_all(url: str, part: Path, target: Path, *, progress: bool) -> None:
    """Repeat requests until the whole file has arrived, or until several attempts in a row have received nothing."""
    try:
        import httpx  # noqa: PLC0415 - an optional dependency, only needed for downloads
    except ModuleNotFoundError as error:
        raise ModelFileError(f"downloading needs httpx: pip install 'equiscreen[rank]'{_by_hand(target)}") from error

    def check(request: httpx.Request) -> None:
        if request.url.scheme != "https" and not (request.url.scheme == "http" and _is_loopback(request.url.host)):
            raise ModelFileError(f"{request.url} is not an https URL, so it is not fetched{_by_hand(target)}")

    fruitless, reason = 0, ""
    with (
        httpx.Client(timeout=_TIMEOUT, follow_redirects=True, event_hooks={"request": [check]}) as client,
        ProgressReport(f"download {target.name}", 0, "bytes", enabled=progress) as report,
    ):
        while fruitless < _ATTEMPTS:
            before = _size(part)
            try:
                _receive(client, url, part, target, report)
            except (httpx.TransportError, httpx.TooManyRedirects, _BrokenOffError) as error:
                reason = detail(error)
            except httpx.InvalidURL as error:
                raise ModelFileError(f"{url} is not a valid URL ({error})") from error
            else:
                return
            fruitless = 0 if _size(part) > before else fruitless + 1
            time.sleep(_PAUSE * 2**fruitless)
    raise UnreachableError(f"{url} cannot be fetched ({reason}){_by_hand(target)}")


def _receive(client: httpx.Client, url: str, part: Path, target: Path, report: ProgressReport) -> None:
    """Receive the missing part of the file, in one request.

    Raises:
        _BrokenOffError: The server is busy, or does not continue where the partial file ends.
        UnreachableError: The server answers with any other error.
        ModelFileError: The file is too large.
    """
    start = _size(part)
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
    with client.stream("GET", url, headers=headers) as response:
        status = response.status_code
        continues = status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {start}-")
        if status in (206, 416) and not continues:
            part.unlink(missing_ok=True)
            raise _BrokenOffError(f"HTTP {status} {response.reason_phrase}")
        if status in _BUSY:
            raise _BrokenOffError(f"HTTP {status} {response.reason_phrase}")
        if status not in (200, 206):
            raise UnreachableError(
                f"{url} cannot be fetched (HTTP {status} {response.reason_phrase}){_by_hand(target)}"
            )
        size = start if continues else 0
        announced = response.headers.get("Content-Length", "")
        if announced.isdecimal():
            _check_size(size + int(announced), url, part)
            report.expect(size + int(announced))
        if not report.done:
            report.resume(size)
        with part.open("ab" if continues else "wb") as file:
            for chunk in response.iter_raw():
                size += len(chunk)
                _check_size(size, url, part)
                file.write(chunk)
                report.advance(len(chunk))


def _check_size(size: int, url: str, part: Path) -> None:
    if size > MAX_BYTES:
        part.unlink(missing_ok=True)
        raise ModelFileError(
            f"{url}: the file is larger than {MAX_BYTES >> 20} MiB, so it is not the published file; try again from "
            "another network"
        )


def _by_hand(target: Path) -> str:
    return f"; if this machine is offline, fetch the file elsewhere and put it at {target}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _digest(path: Path) -> str | None:
    """Return the SHA-256 of a file; None if there is no such file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None
