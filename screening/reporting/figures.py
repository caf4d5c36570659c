"""Figures of a report: elements of the page, and data for plotly in the browser.

Colours are given as names of variables in page.css, so that figures follow the colours of the page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from ase.data import chemical_symbols
from numpy.typing import NDArray

from .content import Distribution
from .page import data
from .phonon_bands import PhononBands

_INK, _SOFT, _LINE, _ACCENT, _LOW, _HIGH = "--ink", "--soft", "--line", "--accent", "--low", "--high"
# Maximum number of points in a plot; more would only slow down the page.
_MAX_POINTS = 5_000
_SEED = 0
_MARGIN = {"l": 60, "r": 20, "t": 10, "b": 50}
# The legend is above the plot, since below it the legend would cover the title of the axis on a narrow page.
_LEGEND = {"orientation": "h", "x": 0.0, "y": 1.0, "yanchor": "bottom"}
# Rows of the periodic table: number of elements from the left and from the right; the f block is drawn below.
_PERIODS = ((1, 1), (2, 6), (2, 6), (2, 16), (2, 16), (2, 15), (2, 15))
_COLUMNS = 18
_F_BLOCK = ((57, 8), (89, 9))
_F_LENGTH = 15


def funnel(steps: Sequence[tuple[str, int]]) -> str:
    """Return a funnel of counts as an element of the page, with one bar per step."""
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [max(count, 0) for _, count in steps],
        "y": [name for name, _ in steps],
        "text": [f"{count:,}" for _, count in steps],
        "textposition": "auto",
        "cliponaxis": False,
        "hoverinfo": "skip",
        "marker": {"color": _ACCENT},
    }
    y = {"autorange": "reversed", "automargin": True}
    return _figure("funnel", [bars], 80 + 40 * len(steps), x={"title": {"text": "structures"}}, y=y)


def distribution(spread: Distribution) -> str:
    """Return a histogram of a column as an element of the page."""
    bars = {
        "type": "bar",
        "x": ((spread.edges[1:] + spread.edges[:-1]) / 2).tolist(),
        "y": spread.counts.tolist(),
        "width": np.diff(spread.edges).tolist(),
        "marker": {"color": _ACCENT, "line": {"width": 0}},
    }
    layout: dict[str, Any] = {}
    if spread.name.startswith("energy_above_hull") and "std" not in spread.name:
        zero = {"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"] = [{**zero, "line": {"color": _INK, "dash": "dot", "width": 1.5}}]
    title = f"{spread.name.replace('_', ' ')}, {spread.units}"
    axes = _axes(title, "structures")
    note = "Values beyond either end are counted in the last bar at that end."
    return f"{_figure(f'distribution-{spread.name}', [bars], 320, **axes, **layout)}<p class='note'>{note}</p>"


def periodic_table(hits: Mapping[str, int]) -> str:
    """Return a periodic table coloured by the number of hits that contain each element."""
    places = {place: symbol for symbol, place in element_places().items()}
    height = max(row for row, _ in places) + 1
    counts: list[list[float | None]] = [[None] * _COLUMNS for _ in range(height)]
    text = [[""] * _COLUMNS for _ in range(height)]
    for (row, column), symbol in places.items():
        counts[row][column] = float(np.log10(1 + hits.get(symbol, 0)))
        text[row][column] = f"{symbol}<br>{hits[symbol]:,}" if symbol in hits else symbol
    tiles = {
        "type": "heatmap",
        "z": counts,
        "text": text,
        "texttemplate": "%{text}",
        "textfont": {"size": 10, "color": _INK},
        "colorscale": [[0, _LOW], [1, _HIGH]],
        "showscale": False,
        "hoverinfo": "text",
        "xgap": 1,
        "ygap": 1,
    }
    axes: dict[str, Any] = {"x": {"visible": False}, "y": {"autorange": "reversed", "visible": False}}
    note = "Numbers count structures that contain the element; the colour scale is logarithmic."
    drawn = _figure("elements", [tiles], 430, margin={"l": 5, "r": 5, "t": 5, "b": 5}, least_width=640, **axes)
    return f"<div class='scroll'>{drawn}</div><p class='note'>{note}</p>"


def hulls(diagrams: Mapping[str, Mapping[str, Any]]) -> str:
    """Return diagrams of the hull, one of which is shown at a time.

    Args:
        diagrams: Traces and layout by system, as `hull_diagrams` returns them.
    """
    shared = _layout(460, {}, {}) | {"showlegend": True, "legend": _LEGEND, "margin": {**_MARGIN, "t": 40}}
    full = {
        name: {
            "data": one["data"],
            "layout": {
                **shared,
                **one["layout"],
                "xaxis": {**shared["xaxis"], **one["layout"]["xaxis"]},
                "yaxis": {**shared["yaxis"], **one["layout"]["yaxis"]},
            },
        }
        for name, one in diagrams.items()
    }
    options = "".join(f"<option>{name}</option>" for name in full)
    chooser = f"<div class='filters'><label>System <select id='system'>{options}</select></label></div>"
    note = "Hover over a point for its formula and energy. Lines connect the references that span the hull."
    element = "<div class='chosen-figure' id='hulls' style='height:460px'></div>"
    return f"{chooser}{element}<p class='note'>{note}</p>{data('hulls-data', full)}"


def bands(name: str, found: PhononBands) -> str:
    """Return the phonon bands of a crystal as an element of the page.

    Args:
        name: Id of the element.
        found: The bands.
    """
    x: list[float | None] = []
    y: list[float | None] = []
    for band in np.round(found.frequency, 3).T.tolist():
        for segment in found.segments:
            x += [*np.round(found.distance[segment], 4).tolist(), None]  # None ends a line
            y += [*band[segment], None]
    line = {"type": "scatter", "mode": "lines", "x": x, "y": y, "line": {"color": _ACCENT, "width": 1}}
    ticks = found.ticks()
    path = {"tickvals": list(ticks), "ticktext": list(ticks.values()), "range": [0.0, float(found.distance.max())]}
    frequency = {"title": {"text": "frequency, THz"}, "zerolinecolor": _INK}
    return _figure(name, [{**line, "hoverinfo": "y"}], 300, x={**path, "zeroline": False}, y=frequency)


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
    """Return a parity plot as an element of the page.

    Args:
        label: float64[n], labels, eV/atom.
        prediction: float64[n], predictions, eV/atom.
    """
    error = prediction - label
    chosen = np.random.default_rng(_SEED).permutation(len(label))[:_MAX_POINTS]
    ends = [float(min(label.min(), prediction.min())), float(max(label.max(), prediction.max()))]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": label[chosen].tolist(),
        "y": prediction[chosen].tolist(),
        "marker": {"size": 4, "color": _ACCENT, "opacity": 0.5},
    }
    axes = _axes("label, eV/atom", "prediction, eV/atom")
    text = (
        f"{len(label):,} structures: mean error {error.mean():+.4f}, mean absolute error {np.abs(error).mean():.4f}, "
        f"root mean square error {np.sqrt((error**2).mean()):.4f} eV/atom. Energies are not shifted."
    )
    drawn = f" Only {len(chosen):,} of them are drawn." if len(chosen) < len(label) else ""
    return f"{_figure('parity', [_diagonal(ends), points], 420, **axes)}<p class='note'>{text}{drawn}</p>"


def calibration_plot(predicted: Sequence[float], found: Sequence[float]) -> str:
    """Return a calibration plot: root mean square error against predicted uncertainty.

    Args:
        predicted: Predicted uncertainties of groups of structures, eV/atom; see `labelled_energies.binned_errors`.
        found: Root mean square errors of these groups, eV/atom.
    """
    line = {"mode": "lines+markers", "line": {"color": _ACCENT}}
    points = {"type": "scatter", "x": list(predicted), "y": list(found), **line}
    axes = _axes("predicted standard deviation, eV/atom", "root mean square error, eV/atom")
    note = (
        "Each point stands for a tenth of the structures, grouped by predicted uncertainty; above the line, errors are "
        "larger than predicted."
    )
    diagonal = _diagonal([0.0, max(*predicted, *found)])
    return f"{_figure('calibration', [diagonal, points], 380, **axes)}<p class='note'>{note}</p>"


def _axes(x: str, y: str) -> dict[str, Any]:
    """Return the layout of two axes with titles."""
    return {"x": {"title": {"text": x}}, "y": {"title": {"text": y}}}


def _diagonal(ends: Sequence[float]) -> dict[str, Any]:
    """Return the diagonal of a plot, on which both values are equal."""
    return {"type": "scatter", "mode": "lines", "x": ends, "y": ends, "line": {"color": _SOFT}, "hoverinfo": "skip"}


def _figure(
    name: str,
    traces: Sequence[Mapping[str, Any]],
    height: int,
    *,
    x: Mapping[str, Any],
    y: Mapping[str, Any],
    least_width: int = 0,
    **layout: Any,
) -> str:
    """Return a figure as an element of the page and its data.

    Args:
        name: Id of the element.
        traces: Traces of plotly.
        height: Height in pixels.
        x: Horizontal axis.
        y: Vertical axis.
        least_width: Width in pixels below which the figure scrolls.
        layout: Further keys of plotly's layout.
    """
    full = {**_layout(height, x, y), **layout}
    width = f";min-width:{least_width}px" if least_width else ""
    element = f"<div class='figure' id='{name}' style='height:{height}px{width}'></div>"
    return element + data(f"{name}-data", {"data": list(traces), "layout": full})


def _layout(height: int, x: Mapping[str, Any], y: Mapping[str, Any]) -> dict[str, Any]:
    """Return plotly's layout of a figure in the colours of the page."""
    lines = {"gridcolor": _LINE, "zerolinecolor": _LINE, "linecolor": _LINE}
    return {
        "height": height,
        "showlegend": False,
        "margin": _MARGIN,
        "font": {"color": _INK, "family": "system-ui, sans-serif", "size": 13},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "xaxis": {**lines, **x},
        "yaxis": {**lines, **y},
    }
