"""Diagrams of the convex hull in systems of two and three elements: the phases, the hull and the candidates."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from ase.formula import Formula
from numpy.typing import NDArray

from ...pipeline.errors import ConfigError
from ..dataset.scores import UNRELAXED
from .candidate_table import CandidateTable

# Maximum number of systems, those with the most candidates first, and of candidates drawn in each.
_SYSTEMS, _CANDIDATES = 30, 500
_FORMATION, _ABOVE = "formation_energy_per_atom", "energy_above_hull"
# Height of an equilateral triangle of side 1.
_HEIGHT = sqrt(3) / 2
# Facets whose unit normal has a smaller downward component are vertical sides of the hull.
_DOWN = 1e-8


def hull_diagrams(table: CandidateTable, phases: Mapping[str, Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """Return plotly figures of the binary and ternary systems of the candidates.

    Systems in which an element has no reference are left out, and only the 30 systems with the most candidates are
    drawn.

    Args:
        table: Candidates. The diagram of a system shows the first 500 with a formation energy; unrelaxed energies are
            used if the table has no relaxed ones.
        phases: Formulas, formation energies (eV/atom) and ids of the references, as the hull records them.

    Returns:
        Traces and layout by system, such as ``Al-Ni``; systems with the most candidates first.

    Raises:
        ConfigError: scipy is not installed.
    """
    relaxed = next((end for end in ("", UNRELAXED) if _FORMATION + end in table.values), None)
    if relaxed is None or not phases:
        return {}
    candidates: dict[tuple[str, ...], list[int]] = defaultdict(list)
    energies = table.values[_FORMATION + relaxed]
    for place, formula in enumerate(table.values["formula"]):
        system = _system(formula)
        if len(system) in (2, 3) and energies[place] is not None:
            candidates[system].append(place)
    found = {}
    for system, places in sorted(candidates.items(), key=lambda item: (-len(item[1]), item[0])):
        known = [place for place, formula in enumerate(phases["formula"]) if set(_system(formula)) <= set(system)]
        elements = {phases["formula"][place] for place in known if len(_system(phases["formula"][place])) == 1}
        if len({_system(formula) for formula in elements}) == len(system):
            draw = _binary if len(system) == 2 else _ternary
            found["-".join(system)] = draw(system, table, places[:_CANDIDATES], phases, known, relaxed)
        if len(found) == _SYSTEMS:
            break
    return found


def _system(formula: str) -> tuple[str, ...]:
    return tuple(sorted(Formula(formula).count(), key=atomic_numbers.__getitem__))


def _fractions(formulas: Sequence[str], system: Sequence[str]) -> NDArray[np.float64]:
    """Return atomic fractions: float64[n, elements]."""
    counts = [Formula(formula).count() for formula in formulas]
    amounts = np.array([[count.get(symbol, 0) for symbol in system] for count in counts], dtype=np.float64)
    return np.asarray(amounts / amounts.sum(axis=1, keepdims=True))


def _points(
    system: Sequence[str],
    table: CandidateTable,
    places: Sequence[int],
    phases: Mapping[str, Sequence[Any]],
    known: Sequence[int],
    relaxed: str,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return fractions, formation energies (eV/atom) and labels of the phases and of the candidates."""
    formulas = [str(phases["formula"][place]) for place in known]
    energies = [float(phases[_FORMATION][place]) for place in known]
    names = [
        f"{formula}<br>{phases['id'][place]}<br>{energy:.3f} eV/atom"
        for formula, place, energy in zip(formulas, known, energies, strict=True)
    ]
    drawn = [str(table.values["formula"][place]) for place in places]
    values = [float(table.values[_FORMATION + relaxed][place]) for place in places]
    above = [table.values.get(_ABOVE + relaxed, {place: None})[place] for place in places]
    labels = [
        f"{place + 1}. {formula}<br>{value:.3f} eV/atom" + ("" if distance is None else f", {distance:.3f} above hull")
        for place, formula, value, distance in zip(places, drawn, values, above, strict=True)
    ]
    return (
        {"fractions": _fractions(formulas, system), "energy": np.array(energies), "text": names},
        {"fractions": _fractions(drawn, system), "energy": np.array(values), "text": labels, "above": above},
    )


def _binary(system: Sequence[str], *given: Any) -> dict[str, Any]:
    """Return a plot of formation energy against composition, with the lower hull."""
    phases, candidates = _points(system, *given)
    x = phases["fractions"][:, 1]
    corners = _lower_hull(x, phases["energy"])
    hull = {
        "type": "scatter",
        "mode": "lines",
        "x": x[corners].tolist(),
        "y": phases["energy"][corners].tolist(),
        "line": {"color": "--ink", "width": 1.5},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    traces = [
        hull,
        _markers(x.tolist(), phases["energy"].tolist(), phases["text"], "references", "--soft", "circle-open"),
        _markers(
            candidates["fractions"][:, 1].tolist(),
            candidates["energy"].tolist(),
            candidates["text"],
            "candidates",
            "--accent",
            "circle",
        ),
    ]
    axes = {
        "xaxis": {"title": {"text": f"fraction of {system[1]} in {'-'.join(system)}"}, "range": [-0.02, 1.02]},
        "yaxis": {"title": {"text": "formation energy, eV/atom"}},
    }
    return {"data": traces, "layout": axes}


def _ternary(system: Sequence[str], *given: Any) -> dict[str, Any]:
    """Return the triangle of compositions, with edges of the hull, and candidates coloured by energy above hull."""
    phases, candidates = _points(system, *given)
    where, places = _in_triangle(phases["fractions"]), _in_triangle(candidates["fractions"])
    corners, edges = _facets(where, phases["energy"])
    lines_x: list[float | None] = []
    lines_y: list[float | None] = []
    for i, j in edges:
        lines_x += [*where[[i, j], 0].tolist(), None]
        lines_y += [*where[[i, j], 1].tolist(), None]
    hull = {
        "type": "scatter",
        "mode": "lines",
        "x": lines_x,
        "y": lines_y,
        "line": {"color": "--line", "width": 1.2},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    stable = _markers(
        where[corners, 0].tolist(),
        where[corners, 1].tolist(),
        [phases["text"][place] for place in corners],
        "references on the hull",
        "--ink",
        "circle",
    )
    drawn = _markers(
        places[:, 0].tolist(), places[:, 1].tolist(), candidates["text"], "candidates", "--accent", "diamond"
    )
    if all(value is not None for value in candidates["above"]):
        drawn["marker"] |= {
            "color": candidates["above"],
            "colorscale": "Viridis",
            "reversescale": True,
            "cmin": 0.0,
            "cmax": max(0.1, min(0.5, *candidates["above"])) if len(candidates["above"]) > 1 else 0.1,
            "colorbar": {"title": {"text": "above hull, eV/atom", "side": "right"}, "thickness": 12},
        }
    names = [
        {"text": symbol, "x": float(x), "y": float(y), "showarrow": False, "yshift": 14 if y > 0 else -14}
        for symbol, (x, y) in zip(system, _in_triangle(np.eye(3)), strict=True)
    ]
    axis = {"visible": False, "range": [-0.1, 1.1]}
    return {
        "data": [hull, stable, drawn],
        "layout": {"xaxis": axis, "yaxis": {**axis, "scaleanchor": "x"}, "annotations": names},
    }


def _markers(x: list[float], y: list[float], text: list[str], name: str, colour: str, symbol: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "x": x,
        "y": y,
        "text": text,
        "name": name,
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"color": colour, "symbol": symbol, "size": 8},
    }


def _in_triangle(fractions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return points in a triangle with the elements at left, right and top, in this order: float64[n, 2]."""
    return np.stack([fractions[:, 1] + fractions[:, 2] / 2, fractions[:, 2] * _HEIGHT], axis=1)


def _lower_hull(x: NDArray[np.float64], energy: NDArray[np.float64]) -> list[int]:
    """Return the indices of the corners of the lower hull, from left to right, by Andrew's monotone chain."""
    found: list[int] = []
    for place in np.lexsort((energy, x)).tolist():
        if found and x[found[-1]] == x[place]:
            continue  # a higher phase of the same composition
        while len(found) > 1 and _turn(x, energy, found[-2], found[-1], place) <= 0:
            found.pop()
        found.append(place)
    return found


def _turn(x: NDArray[np.float64], energy: NDArray[np.float64], a: int, b: int, c: int) -> float:
    """Return a number that is positive if b lies below the line from a to c."""
    return float((x[b] - x[a]) * (energy[c] - energy[a]) - (x[c] - x[a]) * (energy[b] - energy[a]))


def _facets(where: NDArray[np.float64], energy: NDArray[np.float64]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the indices of the corners of the lower hull above the triangle, and the edges between them."""
    try:
        from scipy.spatial import ConvexHull  # noqa: PLC0415 - an extra, and only ternary systems need it
    except ModuleNotFoundError as error:
        raise ConfigError(
            "diagrams of ternary hulls need scipy, which is not installed: pip install 'equiscreen[report]'"
        ) from error

    # A point far above keeps the hull three-dimensional if all phases lie in one plane.
    apex = [*where.mean(axis=0), energy.max() + 10.0]
    hull = ConvexHull(np.vstack([np.column_stack([where, energy]), apex]))
    lower = hull.simplices[hull.equations[:, 2] < -_DOWN]
    pairs = np.sort(np.concatenate([lower[:, [0, 1]], lower[:, [1, 2]], lower[:, [0, 2]]]), axis=1)
    return np.unique(lower).tolist(), [(int(i), int(j)) for i, j in np.unique(pairs, axis=0)]
