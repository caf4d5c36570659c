"""URLs without their secrets, for attributes and messages that others read."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote

HIDDEN = "***"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_NEXT = rf"::{_SCHEME}://"
# A URL within one argument: `--out=s3://...`, `optimade:https://...`, `zip://*.cif::https://...`. It ends at a "::"
# before the next URL, which is how fsspec chains them. A query with values lasts to the end: they may contain anything.
_URL = re.compile(rf"(?P<scheme>{_SCHEME})://.*?(?={_NEXT}|\?(?:(?!{_NEXT})[^=])*=|\Z)(?:\?.*)?", re.DOTALL)
# User and password end at an "@". A password with an unescaped "/", "@" or "?" makes the URL invalid but must stay
# hidden, so the match extends to the last possible "@". In "host:8080/a@b", the digits are a port.
_NOT_A_PORT = r"[^/?#@:]*:(?!\d*(?:[/?#]|\Z))"
_USER = re.compile(rf"(?<=://)(?:{_NOT_A_PORT}[^?]*|[^/?#]*|{_NOT_A_PORT}.*)@", re.DOTALL)
_SEPARATORS = re.compile(r"([&;])")
_WEB = frozenset({"http", "https"})
# URLs in which the text before the "@" is a location: a container of Azure or Oracle, or a repository of GitHub.
_PLACE = re.compile(
    r"(?:(?:abfss?|az|adl|wasbs?|oci)://[a-z0-9$][a-z0-9-]*|github://[\w.-]+:[\w.-]+)(?=@[^/?#@:]*(?:[/?#]|\Z))",
    re.IGNORECASE,
)
# Query parameters of OPTIMADE servers. Their values stay visible, because messages about a query need them.
QUERY_PARAMETERS = frozenset(
    {"filter", "response_fields", "sort", "page_limit", "page_offset", "page_number", "page_above", "page_below"}
)
# A word that contains a URL; punctuation at its end belongs to the sentence.
_WORD = re.compile(r"(\S*://\S*?)([\"'`)\]}>.,:;]*)(?=\s|\Z)")
# A query parameter that is in a later word because the URL contains spaces.
_PARAMETER = re.compile(rf"((?:\?|(?<=\S)&)([\w.%-]+)=)(?!{re.escape(HIDDEN)})[^\s&;\"']+")
# Parts of a password that a URL parser may quote alone; shorter parts would match in any text.
_PIECES, _SHORTEST = re.compile(r"[/?#@:&=]"), 4


def redact_urls(text: str, keep: Collection[str] = ()) -> str:
    """Hide credentials and the values of query parameters in all URLs of a command-line argument.

    ``***`` replaces the user name together with the password, and the value of each query parameter that is not in
    `keep`, whether or not it is secret. Names of parameters and text that is not part of a URL are kept.

    Example:
        >>> redact_urls("https://me:secret@host/file.zip?token=abc&part=1")
        'https://***@host/file.zip?token=***&part=***'

    Args:
        text: One argument of a command line, such as ``--out=s3://bucket/scores.zarr``.
        keep: Names of parameters whose values are not secret.
    """
    return _URL.sub(lambda url: _redacted(url, keep), text)


def without_query(url: str) -> str:
    """Return a URL without its query and, on the web, its fragment: neither belongs to the name of the file.

    Text that is not a URL is returned unchanged.
    """
    scheme, found, _ = url.partition("://")
    if not found:
        return url
    return re.split(r"[?#]" if scheme.lower() in _WEB else r"\?(?=[^/?]*=)", url, maxsplit=1)[0]


def redact_text(text: str, about: str = "") -> str:
    """Hide the secrets of all URLs in a text, such as the message of an error.

    Example:
        >>> redact_text("no answer from https://me:secret@host/a?sig=b: timed out")
        'no answer from https://***@host/a?sig=***: timed out'

    Args:
        text: Text that may contain URLs.
        about: URL that the text is about; its secrets are hidden even where they appear on their own.
    """
    for secret in _secrets(about):
        text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    clean = _WORD.sub(lambda word: redact_urls(word[1], QUERY_PARAMETERS) + word[2], text)
    return _PARAMETER.sub(lambda found: found[0] if found[2] in QUERY_PARAMETERS else f"{found[1]}{HIDDEN}", clean)


def _secrets(url: str) -> list[str]:
    """Return the texts to hide from a URL, as written and decoded, whole and in pieces; the longest first."""
    if "://" not in url:
        return []
    pattern = re.escape(redact_urls(url, QUERY_PARAMETERS)).replace(re.escape(HIDDEN), "(.*?)")
    hidden = re.fullmatch(pattern, url, re.DOTALL)
    found: set[str] = set()
    for secret in () if hidden is None else hidden.groups():
        for text in (secret, unquote(secret)):
            found |= {text, *_PIECES.split(text)}
    return sorted((text for text in found if len(text) >= _SHORTEST and text != HIDDEN), key=len, reverse=True)


def _redacted(url: re.Match[str], keep: Collection[str]) -> str:
    """Return a URL without its secrets."""
    place = _PLACE.match(url[0])
    named = url[0] if place is not None else _USER.sub(f"{HIDDEN}@", url[0])
    address, mark, fragment = named.partition("#")
    path, question, query = address.partition("?")
    # In a web URL, a query without names is secret as a whole; in other URLs, "?" is a wildcard in a file name.
    alone = HIDDEN if url["scheme"].lower() in _WEB else None
    return f"{path}{question}{_hidden(query, alone, keep)}{mark}{_hidden(fragment, None, keep)}"


def _hidden(parameters: str, alone: str | None, keep: Collection[str]) -> str:
    """Return query parameters with their values hidden.

    Args:
        parameters: ``name=value`` pairs with "&" or ";" between them.
        alone: Replacement for a parameter without "="; None keeps the parameter.
        keep: Names of parameters whose values are not secret.
    """
    parts = _SEPARATORS.split(parameters)
    for place in range(0, len(parts), 2):
        name, equals, _ = parts[place].partition("=")
        if equals and name not in keep:
            parts[place] = f"{name}={HIDDEN}"
        elif not equals and parts[place] and alone is not None:
            parts[place] = alone
    return "".join(parts)
