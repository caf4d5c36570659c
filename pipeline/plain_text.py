"""Text of unknown origin, made safe for text files: on one line, and without control characters."""

from __future__ import annotations

import re

# C0 and C1 controls (except those that split() removes), surrogates, and characters that set the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def one_line(text: str) -> str:
    """Return a text on one line; control characters, such as NUL or ESC, become U+FFFD, the replacement character.

    Ids come from files of any origin. A NUL makes a CIF unreadable, an escape sequence can change the settings of a
    terminal, and a line break starts a new record in many formats.
    """
    return _CONTROL.sub("\ufffd", " ".join(text.split()))


def extxyz_text(text: str) -> str:
    """Return a text on one line, with spaces for the quotation marks and backslashes that extended XYZ interprets."""
    return re.sub(r"[\"\\\s]+", " ", one_line(text))
