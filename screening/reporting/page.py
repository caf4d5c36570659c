"""The page of a report: its sections between head and end, with styles, scripts and data in the file itself."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError

# Everything is in the file: the content security policy keeps the browser from fetching anything.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "worker-src blob:; font-src data:"
)
# First characters of every report.
BEGINS = (
    '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="equiscreen report">'
)
_STYLES = ("tabulator_simple.min.css", "page.css")
_LIBRARIES = ("plotly-cartesian.min.js", "tabulator.min.js", "3Dmol-min.js")
_PNG, _MAX_PICTURE = b"\x89PNG\r\n\x1a\n", 2_000_000
_NO_SCRIPT = "The tables and figures of this page need JavaScript; the page loads nothing from the network."


def page(title: str, sections: Sequence[str]) -> str:
    """Return the HTML of a report.

    Args:
        title: Title of the page.
        sections: HTML of the sections.
    """
    styles = "".join(f"<style>{_asset(name)}</style>" for name in _STYLES)
    scripts = "".join(f"<script>{_asset(name)}</script>" for name in (*_LIBRARIES, "page.js"))
    return (
        f'{BEGINS}<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        f"<title>{escape(title)}</title>{styles}</head><body>"
        f"<noscript><p>{_NO_SCRIPT}</p></noscript>{''.join(sections)}{scripts}</body></html>\n"
    )


def section(heading: str, body: str) -> str:
    """Return a section under its heading."""
    return f"<section><h2>{escape(heading)}</h2>{body}</section>"


def picture_file(heading: str, path: str | Path) -> str:
    """Return a section that holds a PNG file.

    Raises:
        ConfigError: The file cannot be read, is not PNG, or is larger than 2 MB.
    """
    try:
        with Path(path).open("rb") as file:
            content = file.read(_MAX_PICTURE + 1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); give the path of a PNG file") from error
    if not content.startswith(_PNG) or len(content) > _MAX_PICTURE:
        raise ConfigError(
            f"{path} is not a PNG file of at most {_MAX_PICTURE:,} bytes; convert the picture or make it smaller"
        )
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    return section(heading, f'<img class="given" src="{source}" alt="{escape(heading)}">')


def data(name: str, value: Any) -> str:
    """Return data for the script of the page, as JSON that no browser mistakes for markup.

    Args:
        name: Id of the element.
        value: Data that JSON can represent: lists, dictionaries, numbers and text.
    """
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def _asset(name: str) -> str:
    return files(__package__).joinpath("assets", name).read_text(encoding="utf-8")
