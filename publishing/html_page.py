"""HTML pages that load no scripts, fonts or pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from ..pipeline.plain_text import one_line

# A browser that reads this refuses to run or fetch anything, whatever the ids of structures contain.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'"
# Longest name of a column, in characters, that stays on one line.
_LONG_NAME = 14
_STYLE = """
:root{color-scheme:light dark}
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:80rem;padding:0 1rem;color:#1b1f24;background:#fff}
h1{font-size:1.5rem}body{overflow-wrap:break-word}h2{font-size:1.15rem;margin-top:2rem}a{color:#2347a8}
table{border-collapse:collapse;width:100%}th,td{text-align:left;padding:.25rem .6rem;border-bottom:1px solid #d8dee4}
th{vertical-align:bottom}th a{color:inherit}td:first-child:not(.n){min-width:9rem;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.n{white-space:nowrap}.wide{overflow-x:auto}
form{display:grid;grid-template-columns:repeat(4,minmax(0,1fr));gap:.6rem}label{font-size:.85rem}
label{display:flex;flex-direction:column;justify-content:flex-end}label.long{grid-column:1/-1}
input,button{font:inherit;width:100%;box-sizing:border-box;padding:.2rem .4rem}
pre{background:#f4f6f8;padding:.8rem;overflow-x:auto}
@media(max-width:48rem){form{grid-template-columns:repeat(2,minmax(0,1fr))}}
@media(prefers-color-scheme:dark){body{color:#e6e8eb;background:#16191d}a{color:#9db7ff}
th,td{border-color:#3a4149}pre{background:#22262b}}
"""


def html_page(title: str, body: str) -> str:
    """Return a page as HTML.

    Args:
        title: Title, as text.
        body: HTML below the heading.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(one_line(title))}</h1>{body}</body></html>\n"
    )


@dataclass(frozen=True, slots=True)
class Heading:
    """Heading of a column that sorts the table.

    Attributes:
        text: Text of the heading.
        address: Address of the sorted table; empty if the table cannot be sorted by this column.
        order: ``ascending`` or ``descending`` if the table is sorted by this column, otherwise empty.
    """

    text: str
    address: str = ""
    order: str = ""

    def html(self, *, number: bool) -> str:
        """Return the cell of the heading; a long name may be broken after each underscore."""
        text = escape(self.text)
        if len(self.text.split(" ", maxsplit=1)[0]) > _LONG_NAME:
            text = text.replace("_", "_<wbr>")
        text += {"ascending": " \u25b2", "descending": " \u25bc"}.get(self.order, "")
        if self.address:
            text = f'<a href="{escape(self.address)}">{text}</a>'
        order = f' aria-sort="{self.order}"' if self.order else ""
        return f'<th class="n"{order}>{text}</th>' if number else f"<th{order}>{text}</th>"


def html_table(
    headings: Sequence[str | Heading], rows: Iterable[Sequence[object]], links: Sequence[str | None] = ()
) -> str:
    """Return a table as HTML; numbers are aligned to the right.

    Args:
        headings: Headings of the columns.
        rows: Cells of each row: text, numbers, or None for a missing value.
        links: For each row, the address that its first cell links to, or None; empty for no links.
    """
    body, numeric = [], [False] * len(headings)
    for place, row in enumerate(rows):
        cells = []
        for column, value in enumerate(row):
            number = isinstance(value, int | float)
            numeric[column] |= number
            text = escape(cell_text(value))
            if column == 0 and links and links[place] is not None:
                text = f'<a href="{escape(str(links[place]))}">{text}</a>'
            cells.append(f'<td class="n">{text}</td>' if number else f"<td>{text}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(
        (heading if isinstance(heading, Heading) else Heading(heading)).html(number=number)
        for heading, number in zip(headings, numeric, strict=True)
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def cell_text(value: object) -> str:
    """Return the text of a cell, on one line: floats have four decimals, and a missing value is ``-``."""
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    return one_line(str(value))
