"""Conversion of text of unknown origin to one line without control characters, which is safe in text files."""

from __future__ import annotations

import re

# Control characters (C0, DEL and C1), marks that set the direction of text, surrogates, and the byte order mark.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def one_line(text: str) -> str:
    """Return a text on one line; control characters, such as NUL or ESC, become U+FFFD, the replacement character.

    Each run of white space becomes one space. Ids come from files of any origin: a NUL makes a CIF unreadable, an
    escape sequence can change the settings of a terminal, and a line break starts a new record in many formats.
    """
    return _CONTROL.sub("\ufffd", " ".join(text.split()))


def extxyz_text(text: str) -> str:
    """Return a text on one line, with spaces for double quotes and backslashes, which extended XYZ interprets."""
    return re.sub(r"[\"\\\s]+", " ", one_line(text))
