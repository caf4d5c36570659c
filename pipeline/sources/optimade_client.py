"""Resumable download of structures from an OPTIMADE server, page by page, into a file."""

from __future__ import annotations

import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote, unquote_plus, urlsplit, urlunsplit

from ..atomic import write_text_atomically
from ..errors import OutputExistsError, SourceError
from ..redaction import QUERY_PARAMETERS, redact_urls

if TYPE_CHECKING:
    import httpx

STRUCTURE_FIELDS = (
    "lattice_vectors",
    "dimension_types",
    "nperiodic_dimensions",
    "nsites",
    "cartesian_site_positions",
    "species_at_sites",
    "species",
    "assemblies",
    "structure_features",
)
MAX_PAGE_BYTES = 256 << 20
MAX_ERROR_BYTES = 64 << 10
MAX_REDIRECTS = 10
MAX_EMPTY_PAGES = 10
MAX_WAIT_S = 120.0  # even if a server asks for more
SLOW_PAGE = 20  # a page may take this many timeouts in all while bytes keep arriving
STATE_SCHEMA = 1
# Server errors that do not pass when the request is repeated; 553 is OPTIMADE's "version not supported".
_LASTING = frozenset({501, 505, 553})
_VERSION = re.compile(r"v\d+(\.\d+)*")


def fetch(
    url: str,
    file: Path,
    *,
    timeout: float = 30.0,
    attempts: int = 4,
    delay: float = 1.0,
    max_bytes: int = MAX_PAGE_BYTES,
    limit: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Download the structures of an OPTIMADE server into a JSON-lines file, one resource per line.

    Pages are appended to ``FILE.partial``; ``FILE.partial.json`` records the next page and the number of valid bytes.
    An interrupted download resumes from that state when it is run again.

    Args:
        url: Base URL of a server, with or without a version, or a complete query: ".../structures?filter=...". A query
            with `response_fields` gets those fields in addition to the ones that a structure needs.
        file: The file to write.
        timeout: Seconds without a response after which an attempt fails.
        attempts: Number of attempts per page if the server fails temporarily.
        delay: Seconds before the second attempt; doubled for each further attempt, up to `MAX_WAIT_S`.
        max_bytes: Largest size of a page.
        limit: Stop after this many structures; None downloads all.
        progress: Called after each page with the number of new structures.

    Returns:
        The number of structures in the file.

    Raises:
        SourceError: The URL is invalid, httpx is not installed, or the server does not respond, rejects the request or
            does not follow OPTIMADE.
        OutputExistsError: The file exists, cannot be written, or belongs to another unfinished download.
    """
    first = listing_url(url)
    report = progress or (lambda _: None)
    try:
        with _opened_partial(file) as stream, _Server.at(first, timeout, attempts, delay, max_bytes) as server:
            state = _resumed(stream, file, first, limit)
            report(state.structures)
            return _download(server, state, file, stream, limit, report)
    except OSError as error:
        raise OutputExistsError(f"{file} cannot be written ({error.strerror or error}); choose another file") from error


def listing_url(url: str) -> str:
    """Return the URL of the first page: the `structures` endpoint with the fields that a structure needs.

    Raises:
        SourceError: The URL is not an http or https URL, or contains a user name or password.
    """
    try:
        parts = urlsplit(url.strip())
        good = parts.scheme in {"http", "https"} and bool(parts.hostname)
    except ValueError:
        good = False
    if not good:
        raise SourceError(f"{_shown(url)} is not an http or https URL; give the base URL of an OPTIMADE server")
    if "@" in parts.netloc:
        raise SourceError(f"{_shown(url)}: remove the user name and password from the URL")
    path = parts.path.rstrip("/")
    last = path.rsplit("/", 1)[-1]
    if last != "structures":
        path += "/structures" if _VERSION.fullmatch(last) else "/v1/structures"
    items = [item for item in parts.query.split("&") if item]
    asked = [unquote_plus(item.partition("=")[2]) for item in items if item.startswith("response_fields=")]
    fields = [name for value in asked for name in value.split(",") if name]
    fields += [name for name in STRUCTURE_FIELDS if name not in fields]
    # The rest of the query is kept as written: not every server reads "+" as a space.
    items = [item for item in items if not item.startswith("response_fields=")]
    query = "&".join([*items, f"response_fields={','.join(fields)}"])
    return urlunsplit((parts.scheme, parts.netloc, path, query, ""))


class UnsupportedQueryError(SourceError):
    """A server rejected a query before sending any structure, often because it lacks an optional OPTIMADE feature."""


class _PageError(Exception):
    """A page could not be fetched.

    Args:
        message: One line that names the URL.
        transient: Whether the same request may succeed later.
        unsupported: Whether the server rejects the query.
    """

    def __init__(self, message: str, *, transient: bool = False, unsupported: bool = False) -> None:
        super().__init__(message)
        self.transient = transient
        self.unsupported = unsupported


class _RetryError(Exception):
    """A request failed, but may succeed when repeated.

    Args:
        message: One line that names the URL.
        wait: Seconds to wait first, as requested by the server.
    """

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


@dataclass(frozen=True, slots=True)
class _State:
    """Progress of a download.

    Attributes:
        url: URL of the first page; only a download with the same first page is resumed.
        next: URL of the next page.
        bytes: Number of valid bytes in the partial file.
        structures: Number of structures (lines) in these bytes.
        schema: Version of this record.
    """

    url: str
    next: str
    bytes: int = 0
    structures: int = 0
    schema: int = STATE_SCHEMA


def _partial(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial")


def _state_path(file: Path) -> Path:
    return file.with_name(f"{file.name}.partial.json")


@contextmanager
def _opened_partial(file: Path) -> Iterator[IO[bytes]]:
    """Open and lock the partial file, so that only one run writes it."""
    if file.exists():
        raise OutputExistsError(f"{file} already exists; remove it or choose another file")
    with _partial(file).open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Another run may have finished and renamed the file between our opening and locking it.
            alone = os.path.samestat(os.fstat(stream.fileno()), _partial(file).stat()) and not file.exists()
        except (BlockingIOError, FileNotFoundError):
            alone = False
        if not alone:
            raise OutputExistsError(f"{file}: another run is downloading this file; wait until it ends")
        yield stream


def _resumed(stream: IO[bytes], file: Path, first: str, limit: int | None) -> _State:
    """Load the state to resume from, and truncate bytes written after it was recorded."""
    state = _State(first, first)
    path = _state_path(file)
    if path.exists():
        try:
            saved = _State(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise OutputExistsError(f"{path} is damaged; remove it and {_partial(file)} to start over") from error
        if (saved.url, saved.schema) != (first, STATE_SCHEMA):
            raise OutputExistsError(
                f"{_partial(file)} is an unfinished download of {_shown(saved.url)}; remove it and {path.name}, or "
                "choose another file"
            )
        whole = os.fstat(stream.fileno()).st_size >= saved.bytes
        if whole and (limit is None or saved.structures <= limit):
            state = saved
        else:
            path.unlink()  # before truncating bytes that the state calls valid
    stream.truncate(state.bytes)
    return state


def _download(
    server: _Server, state: _State, file: Path, stream: IO[bytes], limit: int | None, report: Callable[[int], None]
) -> int:
    """Append page after page, then rename the file."""
    try:
        for page in server.pages(state.next):
            left = None if limit is None else max(0, limit - state.structures)
            lines = [json.dumps(resource, separators=(",", ":")) + "\n" for resource in page.resources[:left]]
            data = "".join(lines).encode()
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
            done = state.structures + len(lines)
            state = replace(state, bytes=state.bytes + len(data), structures=done, next=page.next or "")
            report(len(lines))
            if page.next is None or done == limit:
                break  # without saving the state, which always names a page that is still to be fetched
            write_text_atomically(_state_path(file), json.dumps(asdict(state)))
    except _PageError as error:
        message = str(error)
        if error.transient:
            message += "; run the same command again" + (" to resume" if state.structures else "")
        if state.structures:
            message += f" ({state.structures:,} structures are kept in {_partial(file)})"
        else:
            _partial(file).unlink()
        kind = UnsupportedQueryError if error.unsupported and not state.structures else SourceError
        raise kind(message) from error
    _partial(file).rename(file)
    _state_path(file).unlink(missing_ok=True)
    return state.structures


class _RepeatingObject(dict[str, Any]):
    """A JSON object that gives a key twice; it is written as it was sent, so that the reader of the file rejects it.

    Args:
        pairs: Keys and values, in the order of the text.
    """

    def __init__(self, pairs: Sequence[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self._pairs = pairs

    def items(self) -> Any:
        return self._pairs


def _as_sent(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    return found if len(found) == len(pairs) else _RepeatingObject(pairs)


@dataclass(frozen=True, slots=True)
class _Page:
    """One page of a listing.

    Attributes:
        resources: The structures of the page.
        next: URL of the next page; None at the end.
        wait: Seconds that the server asks clients to wait before the next request.
    """

    resources: list[Mapping[str, Any]]
    next: str | None
    wait: float


@dataclass(frozen=True, slots=True)
class _Server:
    """A server, with the settings for requests to it.

    Attributes:
        client: Open HTTP client.
        origin: URL given by the user; requests never go to another host.
        timeout: See `fetch`.
        attempts: See `fetch`.
        delay: See `fetch`.
        max_bytes: See `fetch`.
    """

    client: httpx.Client
    origin: httpx.URL
    timeout: float
    attempts: int
    delay: float
    max_bytes: int

    @classmethod
    @contextmanager
    def at(cls, url: str, timeout: float, attempts: int, delay: float, max_bytes: int) -> Iterator[_Server]:
        """Open an HTTP client for a server."""
        try:
            import httpx  # noqa: PLC0415 - an optional dependency, only needed for downloads
        except ModuleNotFoundError as error:
            raise SourceError("downloading needs httpx: pip install 'equiscreen[remote]'") from error
        headers = {
            "Accept": "application/vnd.api+json, application/json",
            "Accept-Encoding": "gzip, deflate",
            "User-Agent": "equiscreen",
        }
        try:
            origin = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise SourceError(f"{_shown(url)}: this URL is invalid ({error}); correct it") from error
        with httpx.Client(headers=headers, timeout=timeout) as client:
            yield cls(client, origin, timeout, attempts, delay, max_bytes)

    def pages(self, url: str) -> Iterator[_Page]:
        """Iterate over the pages, beginning at a URL. Circular links and endless empty pages are errors."""
        asked: set[int] = set()
        ids: list[Any] = []
        empty = 0
        while True:
            asked.add(hash(url))
            page = self.page(url)
            before, ids = ids, [resource.get("id") for resource in page.resources]
            empty = 0 if page.resources else empty + 1
            if ids and None not in ids and ids == before:
                raise _PageError(
                    f"{_shown(url)}: the server returned the previous page again; report this to its operators"
                )
            if empty > MAX_EMPTY_PAGES and page.next is not None:
                raise _PageError(
                    f"{_shown(url)}: the server returned {empty} empty pages in a row; report this to its operators"
                )
            if page.next is not None and hash(page.next) in asked:
                raise _PageError(
                    f"{_shown(url)}: the next link leads back to {_shown(page.next)}; report this to the "
                    "operators of the server"
                )
            yield page
            if page.next is None:
                return
            url = page.next
            time.sleep(page.wait)

    def page(self, url: str) -> _Page:
        """Fetch one page, with up to `attempts` attempts while the server fails temporarily."""
        for attempt in range(1, self.attempts + 1):
            try:
                return self._attempt(url)
            except _RetryError as error:
                if attempt == self.attempts:
                    times = f" after {attempt} attempts" if attempt > 1 else ""
                    raise _PageError(f"{error}{times}", transient=True) from error
                time.sleep(max(error.wait, min(self.delay * 2 ** (attempt - 1), MAX_WAIT_S)))
        raise _PageError(
            f"{_shown(url)}: the page was not requested, because attempts is {self.attempts}; it must be at least 1"
        )

    def _attempt(self, url: str) -> _Page:
        import httpx  # noqa: PLC0415 - see at

        try:
            target = httpx.URL(url)
            for _ in range(MAX_REDIRECTS):
                with self.client.stream("GET", target) as response:
                    if not response.has_redirect_location:
                        return self._read(response)
                    target = self._linked(target, response.headers["location"])
            raise _PageError(f"{_shown(url)}: the request was redirected {MAX_REDIRECTS} times")
        except httpx.TimeoutException as error:
            raise _RetryError(f"{_shown(url)}: the server did not respond within {self.timeout:g} s") from error
        except httpx.DecodingError as error:
            raise _PageError(f"{_shown(url)} cannot be decompressed ({error})") from error
        except httpx.TransportError as error:
            raise _RetryError(f"{_shown(url)}: {_one_line(str(error)) or type(error).__name__}") from error
        except httpx.InvalidURL as error:
            raise _PageError(f"{_shown(url)}: this URL, or one that it redirects to, is invalid ({error})") from error

    def _read(self, response: httpx.Response) -> _Page:
        url = str(response.url)
        if response.status_code != 200:
            detail = _error_detail(self._body(response, MAX_ERROR_BYTES, cut=True))
            reason = f"{response.status_code} {response.reason_phrase}".strip()
            message = f"{_shown(url)}: the server responded {reason}{detail and f' ({detail})'}"
            if response.status_code == 429 or (response.status_code >= 500 and response.status_code not in _LASTING):
                raise _RetryError(message, _retry_after(response.headers.get("retry-after")))
            raise _PageError(message, unsupported=response.status_code in {400, 501})
        body = self._body(response, self.max_bytes)
        try:
            content = json.loads(body, object_pairs_hook=_as_sent)
        except (ValueError, RecursionError) as error:
            begin = _one_line(body[:60].decode("utf-8", errors="replace"))
            raise _PageError(f"{_shown(url)}: the response is not JSON ({begin!r}); check the URL") from error
        return self._page(response.url, content)

    def _body(self, response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
        """Read at most `most` bytes of a response; a longer one is truncated (`cut`) or rejected."""
        body = bytearray()
        deadline = time.monotonic() + SLOW_PAGE * self.timeout
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > most and not cut:
                raise _PageError(
                    f"{_shown(response.url)}: the page has more than {most:,} bytes; use a smaller page_limit"
                )
            if len(body) > most:
                break
            if time.monotonic() > deadline:
                raise _RetryError(
                    f"{_shown(response.url)}: the page was not complete within {SLOW_PAGE * self.timeout:g} s"
                )
        return bytes(body[:most])

    def _page(self, url: httpx.URL, content: Any) -> _Page:
        detail = _error_detail(content)
        data = content.get("data") if isinstance(content, Mapping) else None
        if detail and data is None:
            raise _PageError(f"{_shown(url)}: the server reported: {detail}")
        if not isinstance(data, list) or not all(isinstance(resource, Mapping) for resource in data):
            raise _PageError(
                f"{_shown(url)}: this is not an OPTIMADE response (`data` is not a list of structures); check the URL"
            )
        meta, links = (content.get(key) or {} for key in ("meta", "links"))
        if not isinstance(meta, Mapping) or not isinstance(links, Mapping):
            raise _PageError(
                f"{_shown(url)}: this is not an OPTIMADE response (`meta` or `links` is not an object); check the URL"
            )
        if any(isinstance(part, _RepeatingObject) for part in (content, links)):  # one of two lists would be lost
            raise _PageError(f"{_shown(url)}: this is not an OPTIMADE response (it gives a key twice); check the URL")
        link = links.get("next")
        link = link.get("href") if isinstance(link, Mapping) else link
        if link and not isinstance(link, str):
            raise _PageError(
                f"{_shown(url)}: this is not an OPTIMADE response (the next link is of type {type(link).__name__})"
            )
        if not link and meta.get("more_data_available") is True:
            raise _PageError(
                f"{_shown(url)}: the server has more data but gives no next link; report this to its operators"
            )
        wait = meta.get("request_delay")
        wait = min(max(wait, 0.0), MAX_WAIT_S) if isinstance(wait, int | float) else 0.0
        return _Page(data, self._next(url, link) if link else None, wait)

    def _next(self, url: httpx.URL, link: str) -> str:
        target = self._linked(url, link)
        # Some servers drop response_fields from the next link (OPTIMADE issue 391) and then omit the positions.
        if "response_fields" not in target.params:
            fields = quote(self.origin.params["response_fields"], safe=",")
            joint = "&" if target.query else ""
            target = target.copy_with(query=target.query + f"{joint}response_fields={fields}".encode())
        return str(target)

    def _linked(self, url: httpx.URL, link: str) -> httpx.URL:
        """Resolve a link, which must lead to the same host, and keep https."""
        target = url.join(link)
        if target.scheme not in {"http", "https"} or (target.host, target.port) != (self.origin.host, self.origin.port):
            raise _PageError(f"{_shown(url)} links to another server, {_shown(target)}; use that URL if you trust it")
        return target.copy_with(scheme="https") if self.origin.scheme == "https" else target


def _retry_after(header: str | None) -> float:
    """Return the seconds requested by a Retry-After header (a number or a date), at most `MAX_WAIT_S`."""
    if not header:
        return 0.0
    try:
        if header.strip().isdecimal():
            return min(float(header), MAX_WAIT_S)
        date = parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    date = date if date.tzinfo else date.replace(tzinfo=UTC)
    return min(max((date - datetime.now(UTC)).total_seconds(), 0.0), MAX_WAIT_S)


def _error_detail(content: Any) -> str:
    """Return the first error in an OPTIMADE response, on one line; empty if there is none."""
    if isinstance(content, bytes):
        try:
            content = json.loads(content)
        except (ValueError, RecursionError):
            return ""
    errors = content.get("errors") if isinstance(content, Mapping) else None
    first = errors[0] if isinstance(errors, list) and errors else None
    if not isinstance(first, Mapping):
        return ""
    return _one_line(str(first.get("detail") or first.get("title") or ""))


def _shown(url: httpx.URL | str) -> str:
    """Return a URL for messages, without the long list of fields and without secrets."""
    return redact_urls(re.sub(r"([?&])response_fields=[^&]*&?", r"\1", str(url)).rstrip("?&"), QUERY_PARAMETERS)


def _one_line(text: str) -> str:
    """Return the first 200 characters of a text, without line breaks."""
    return " ".join(text.split())[:200]
