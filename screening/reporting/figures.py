"""Figures of a report as HTML."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from .content import Distribution

if TYPE_CHECKING:
    import plotly.graph_objects as go

_INK, _BLUE, _GREY = "#222222", "#2a5f9e", "#9aa5b1"
# Largest number of points in a plot; more would only slow down the page.
_MAX_POINTS = 5_000
_SEED = 0
_CALIBRATION_BINS = 10
# Rows of the periodic table: number of elements from the left and from the right; the f block is drawn below.
_PERIODS = ((1, 1), (2, 6), (2, 6), (2, 16), (2, 16), (2, 15), (2, 15))
_COLUMNS = 18
_F_BLOCK = ((57, 8), (89, 9))
_F_LENGTH = 15


def funnel(steps: Sequence[tuple[str, int]]) -> str:
    """Return a funnel of counts, one bar per step."""
    from plotly import graph_objects as go  # noqa: PLC0415 - an extra, and slow to import

    figure = go.Figure(
        go.Bar(
            x=[max(count, 0) for _, count in steps],
            y=[name for name, _ in steps],
            orientation="h",
            marker_color=_BLUE,
            text=[f"{count:,}" for _, count in steps],
            textposition="auto",
            cliponaxis=False,
            hoverinfo="skip",
        )
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    figure.update_xaxes(title="structures")
    return _html(figure, 80 + 40 * len(steps))


def distribution(spread: Distribution) -> str:
    """Return a histogram."""
    from plotly import graph_objects as go  # noqa: PLC0415 - as above

    centers = (spread.edges[1:] + spread.edges[:-1]) / 2
    figure = go.Figure(
        go.Bar(x=centers, y=spread.counts, width=np.diff(spread.edges), marker_color=_BLUE, marker_line_width=0)
    )
    figure.update_xaxes(title=f"{spread.name.replace('_', ' ')}, {spread.units}")
    figure.update_yaxes(title="structures")
    if spread.name.startswith("energy_above_hull") and "std" not in spread.name:
        figure.add_vline(x=0, line_color=_INK, line_dash="dot")
    note = "Values beyond either end are counted in the last bar at that end."
    return f"{_html(figure, 320)}<p class='note'>{note}</p>"


def periodic_table(hits: Mapping[str, int]) -> str:
    """Return a periodic table coloured by the number of hits that contain each element."""
    from plotly import graph_objects as go  # noqa: PLC0415 - as above

    places = {place: symbol for symbol, place in element_places().items()}
    height = max(row for row, _ in places) + 1
    counts = np.full((height, _COLUMNS), np.nan)
    text = [[""] * _COLUMNS for _ in range(height)]
    for (row, column), symbol in places.items():
        counts[row, column] = hits.get(symbol, 0)
        text[row][column] = f"{symbol}<br>{hits[symbol]:,}" if symbol in hits else symbol
    figure = go.Figure(
        go.Heatmap(
            z=np.log10(1 + counts),
            text=text,
            texttemplate="%{text}",
            textfont_size=10,
            colorscale=[[0, "#f2f4f7"], [1, "#7fb0e6"]],
            showscale=False,
            hoverinfo="text",
            xgap=1,
            ygap=1,
        )
    )
    figure.update_yaxes(autorange="reversed", visible=False)
    figure.update_xaxes(visible=False)
    return (
        _html(figure, 430)
        + "<p class='note'>Numbers count structures that contain the element; the colour scale is logarithmic.</p>"
    )


def element_places() -> dict[str, tuple[int, int]]:
    """Return the (row, column) of each element in an 18-column table with lanthanides and actinides below."""
    out: dict[str, tuple[int, int]] = {}
    number = 1
    for row, (left, right) in enumerate(_PERIODS):
        for column in range(left):
            out[chemical_symbols[number]] = (row, column)
            number += 1
        block = next((index for index, (first, _) in enumerate(_F_BLOCK) if first == number), None)
        if block is not None:
            for place in range(_F_LENGTH):
                out[chemical_symbols[number]] = (_F_BLOCK[block][1], 2 + place)
                number += 1
        for column in range(_COLUMNS - right, _COLUMNS):
            out[chemical_symbols[number]] = (row, column)
            number += 1
    return out


def parity_plot(label: NDArray[np.float64], prediction: NDArray[np.float64]) -> str:
    """Return a parity plot.

    Args:
        label: float64[n], labels, eV/atom.
        prediction: float64[n], predictions, eV/atom.
    """
    from plotly import graph_objects as go  # noqa: PLC0415 - as above

    error = prediction - label
    chosen = np.random.default_rng(_SEED).permutation(len(label))[:_MAX_POINTS]
    ends = [float(min(label.min(), prediction.min())), float(max(label.max(), prediction.max()))]
    figure = go.Figure(
        [
            go.Scatter(x=ends, y=ends, mode="lines", line_color=_GREY, hoverinfo="skip"),
            go.Scatter(
                x=label[chosen],
                y=prediction[chosen],
                mode="markers",
                marker={"size": 4, "color": _BLUE, "opacity": 0.5},
            ),
        ]
    )
    figure.update_xaxes(title="label, eV/atom")
    figure.update_yaxes(title="prediction, eV/atom")
    text = (
        f"{len(label):,} structures: mean error {error.mean():+.4f}, mean absolute error {np.abs(error).mean():.4f}, "
        f"root mean square error {np.sqrt((error**2).mean()):.4f} eV/atom. Energies are not shifted."
    )
    drawn = f" Only {len(chosen):,} of them are drawn." if len(chosen) < len(label) else ""
    return f"{_html(figure, 420)}<p class='note'>{text}{drawn}</p>"


def calibration_plot(error: NDArray[np.float64], spread: NDArray[np.float64]) -> str:
    """Return a calibration plot: root mean square error against predicted uncertainty.

    Args:
        error: float64[n], prediction minus label, eV/atom.
        spread: float64[n], standard deviation among the members of the ensemble, eV/atom.
    """
    from plotly import graph_objects as go  # noqa: PLC0415 - as above

    bins = [rows for rows in np.array_split(np.argsort(spread, kind="stable"), _CALIBRATION_BINS) if len(rows)]
    predicted = [float(np.sqrt((spread[rows] ** 2).mean())) for rows in bins]
    found = [float(np.sqrt((error[rows] ** 2).mean())) for rows in bins]
    end = max(*predicted, *found)
    figure = go.Figure(
        [
            go.Scatter(x=[0, end], y=[0, end], mode="lines", line_color=_GREY, hoverinfo="skip"),
            go.Scatter(x=predicted, y=found, mode="lines+markers", line_color=_BLUE),
        ]
    )
    figure.update_xaxes(title="predicted standard deviation, eV/atom")
    figure.update_yaxes(title="root mean square error, eV/atom")
    note = (
        "Each point is a tenth of the structures, grouped by predicted uncertainty; above the line, errors are larger "
        "than predicted."
    )
    return f"{_html(figure, 380)}<p class='note'>{note}</p>"


def _html(figure: go.Figure, height: int) -> str:
    figure.update_layout(
        height=height,
        template="plotly_white",
        showlegend=False,
        margin={"l": 60, "r": 20, "t": 10, "b": 50},
        font={"color": _INK, "family": "system-ui, sans-serif", "size": 13},
    )
    settings: dict[str, Any] = {"displayModeBar": False, "responsive": True}
    text: str = figure.to_html(full_html=False, include_plotlyjs=False, config=settings)
    # plotly gives the element a random name, but two reports of one dataset have to be identical.
    return re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", f"figure-{zlib.crc32(figure.to_json().encode())}", text)
