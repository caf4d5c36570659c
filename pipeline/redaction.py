"""URLs without their secrets, for attributes and messages that others read."""

from __future__ import annotations

import re
from collections.abc import Collection

HIDDEN = "***"
_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]*"
_NEXT = rf"::{_SCHEME}://"
# A URL within one argument: `--out=s3://...`, `optimade:https://...`, `zip://*.cif::https://...`. It ends at a "::"
# before the next URL, which is how fsspec chains them. A query with values lasts to the end: they may contain anything.
_URL = re.compile(rf"(?P<scheme>{_SCHEME})://.*?(?={_NEXT}|\?(?:(?!{_NEXT})[^=])*=|\Z)(?:\?.*)?", re.DOTALL)
# User and password end at an "@". A password with a bare "/", "@" or "?" makes the URL invalid but stays secret, so
# it ends at the last "@" that it can. The digits of "host:8080/a@b" are a port.
_NOT_A_PORT = r"[^/?#@:]*:(?!\d*(?:[/?#]|\Z))"
_USER = re.compile(rf"(?<=://)(?:{_NOT_A_PORT}[^?]*|[^/?#]*|{_NOT_A_PORT}.*)@", re.DOTALL)
_SEPARATORS = re.compile(r"([&;])")
_WEB = frozenset({"http", "https"})


def redact_urls(text: str, keep: Collection[str] = ()) -> str:
    """Hide passwords and the values of query parameters in all URLs of a word.

    User, password and the value of every query parameter, secret or harmless, become ``***``; names of parameters are
    kept. Text that is not part of a URL is returned as it is.

    Example:
        >>> redact_urls("https://me:secret@host/file.zip?token=abc&part=1")
        'https://***@host/file.zip?token=***&part=***'

    Args:
        text: One argument of a command line, such as ``--out=s3://bucket/scores.zarr``.
        keep: Names of parameters whose values are not secret.
    """
    return _URL.sub(lambda url: _redacted(url, keep), text)


def _redacted(url: re.Match[str], keep: Collection[str]) -> str:
    """A URL without secrets."""
    address, mark, fragment = _USER.sub(f"{HIDDEN}@", url[0]).partition("#")
    path, question, query = address.partition("?")
    # On the web, a query without names is a secret as a whole; elsewhere "?" is a wildcard of a file name.
    alone = HIDDEN if url["scheme"].lower() in _WEB else None
    return f"{path}{question}{_hidden(query, alone, keep)}{mark}{_hidden(fragment, None, keep)}"


def _hidden(parameters: str, alone: str | None, keep: Collection[str]) -> str:
    """Parameters with their values hidden.

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
