"""Pages of the server: a form with a table of rows, and the description of its routes. They load nothing."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

from ...screening.dataset.default_ranking import RANKINGS
from ...screening.dataset.reader import flag_meanings
from ..html_page import Heading, html_page, html_table
from .answers import shown_rows
from .queries import Conditions, Found, ServedScores

_COLUMNS = ("structure_id", "formula", "n_atoms", "status", *RANKINGS, "energy_per_atom", "max_force")
_MOST_COLUMNS = 9
# Rows per page.
PAGE_ROWS = 50
_FILTER, _LONG = "where", ' class="long"'
# Label and example of each field.
_FIELDS = {
    "id": ("Id", ""),
    "formula": ("Formula", "Fe2O3"),
    "chemical_system": ("Chemical system", "Al-Ni"),
    "elements": ("All of these elements", "Li,O"),
    "any_elements": ("Any of these elements", "Cl,Br,I"),
    "allowed_elements": ("No elements but these", "Al,Ni,Cu"),
    "excluded_elements": ("None of these elements", "Cd,Pb"),
    "sort": ("Sort by", "-max_force: highest first"),
    _FILTER: ("Filter", "n_atoms <= 20 and energy_above_hull < 0.05"),
}


def browse_page(served: ServedScores, title: str, query: Conditions, found: Found | None, problem: str = "") -> str:
    """Return the page with the form and the table of rows, as HTML.

    Args:
        served: The dataset.
        title: Title of the page.
        query: The query, whose values fill the form.
        found: The answer to the query; None if the query is invalid.
        problem: Why the query is invalid; empty if it is valid.
    """
    given = {name: str(value) for name, value in query.model_dump().items() if name in _FIELDS and value}
    fields = "".join(
        f'<label{_LONG if name == _FILTER else ""}>{escape(text)}<input name="{name}" '
        f'value="{escape(given.get(name, ""))}" placeholder="{escape(example)}"></label>'
        for name, (text, example) in _FIELDS.items()
    )
    body = f'<form method="get" action="./">{fields}<button>Search</button></form>'
    if found is None:
        return html_page(title, f"{body}<p><strong>{escape(problem)}</strong></p>{_links(given)}")
    order = f", sorted by {escape(found.sorted_by)}" if found.sorted_by else ""
    pages = -(-found.total // PAGE_ROWS)
    body += f"<p>{found.total:,} of {len(served):,} structures{order}; page {query.page:,} of {max(1, pages):,}</p>"
    names = [name for name in _COLUMNS if name in served.shown][:_MOST_COLUMNS]
    headings = [_heading(served, name, given, found.sorted_by) for name in names]
    links = [f"structures/{row}.cif" for row in found.rows.tolist()]
    body += html_table(headings, shown_rows(served, found.rows, names), links)
    steps = [("previous page", query.page - 1), ("next page", query.page + 1)]
    body += "<p>" + " ".join(
        f'<a href="./?{escape(urlencode({**given, "page": number}))}">{text}</a>'
        for text, number in steps
        if 1 <= number <= pages
    )
    return html_page(title, f"{body}</p>{_links(given)}")


def _heading(served: ServedScores, name: str, given: Mapping[str, str], sorted_by: str) -> Heading:
    """Return the heading of a column, which sorts the rows by it, or reverses their order if they are sorted by it."""
    spec = served.reader.specs[name]
    unit = str(spec.attrs.get("units", "")).removeprefix("1")
    order = {name: "ascending", f"-{name}": "descending"}.get(sorted_by, "")
    sort = f"-{name}" if order == "ascending" else name
    address = "" if flag_meanings(spec.attrs) else f"./?{urlencode({**given, 'sort': sort})}"
    return Heading(f"{name} ({unit})" if unit else name, address, order)


def _links(given: Mapping[str, str]) -> str:
    """Return the links to the same answer in formats for programs."""
    found = [
        f'<a href="query?{escape(urlencode({**given, "format": form}))}">{form}</a>'
        for form in ("json", "csv", "arrow")
    ]
    return f'<p>This answer as {", ".join(found)}. <a href="docs">All routes</a></p>'


def routes_page(title: str, openapi: Mapping[str, Any]) -> str:
    """Return the description of all routes and their parameters, as HTML.

    Args:
        title: Title of the page.
        openapi: The OpenAPI document of the server.
    """
    body = '<p>Also as an <a href="openapi.json">OpenAPI document</a>. <a href="./">Browse the structures</a></p>'
    # The routes of xpublish, which describe the dataset to programs, come last.
    for path, methods in sorted(openapi["paths"].items(), key=lambda route: route[0].startswith("/dataset")):
        for method, facts in methods.items():
            body += (
                f"<h2>{escape(method.upper())} {escape(path)}</h2><p>{escape(str(facts.get('description', '')))}</p>"
            )
            rows = [(one["name"], one["in"], str(one.get("description", ""))) for one in facts.get("parameters", ())]
            if rows:
                body += html_table(("parameter", "in", "meaning"), rows)
    return html_page(title, body)
