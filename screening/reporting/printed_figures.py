"""The charts of a report as files for publications: PNG and SVG, as wide as a column, and their numbers as CSV.

Colours are from the palette of Okabe and Ito, Color Universal Design (2008), and the colour map cividis; both are
distinguishable with any colour vision. Equal data give equal bytes with the same version of matplotlib.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...pipeline.atomic import atomic_path
from ...pipeline.errors import ConfigError, OutputExistsError
from ...pipeline.runs.staging import check_file
from .content import Distribution, ReportContent
from .figures import element_places
from .labelled_energies import LabelledEnergies

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, BLACK, GREY = "#0072B2", "#000000", "#999999"
# Suffixes of the files of a chart, with the first bytes of such files.
_BEGINS = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".csv": None}
_MM = 1 / 25.4  # inches
_COLUMN = 85 * _MM
_DPI = 300
_STYLE = {
    "font.size": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "svg.hashsalt": "equiscreen",
}
_PALE = 0.15  # shade of the least frequent element
_TILE = 0.92
_GAP = 0.03  # between a corner of a triangle and the name of its element


@dataclass(frozen=True, slots=True)
class PrintedFigure:
    """A chart of a report, to be written as files.

    Attributes:
        name: Name of its files, without suffix.
        height: Height in millimetres; the width is one column, 85 mm.
        table: Columns of the CSV file, by heading with unit; all of one length.
        draw: Function that draws the chart.
    """

    name: str
    height: float
    table: Mapping[str, Sequence[Any]]
    draw: Callable[[Axes], None]


def write_figures(
    folder: Path,
    content: ReportContent,
    diagrams: Mapping[str, Mapping[str, Any]],
    energies: LabelledEnergies | None,
    inputs: Sequence[str | Path],
    *,
    overwrite: bool,
) -> list[Path]:
    """Write the charts of a report into a folder: ``NAME.png``, ``NAME.svg`` and ``NAME.csv`` for each.

    Args:
        folder: Folder, which may hold other files.
        content: Content of the report.
        diagrams: Hulls of binary and ternary systems, as `hull_diagrams` returns them.
        energies: Energies with labels; None if there are none.
        inputs: Paths that the report is made from; no file is written over or into these.
        overwrite: Replace existing files.

    Returns:
        Paths of the files.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputExistsError: A file exists, or the folder cannot be made.
    """
    try:
        from matplotlib import rc_context  # noqa: PLC0415 - an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise ConfigError(
            "figures need matplotlib, which is not installed: pip install 'equiscreen[report]'"
        ) from error
    charts = [*_charts(content, diagrams, energies)]
    paths = [folder / f"{chart.name}{suffix}" for chart in charts for suffix in _BEGINS]
    for path in paths:
        check_file(path, inputs, overwrite=overwrite, begins=_BEGINS[path.suffix])
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(
            f"{folder} cannot be used as the folder for figures ({error.strerror}); choose another `--figures`"
        ) from error
    for chart in charts:
        with rc_context(_STYLE):
            figure = Figure(figsize=(_COLUMN, chart.height * _MM), layout="constrained")
            chart.draw(figure.add_subplot())
            _write(folder / f"{chart.name}.png", _image(figure, "png", {"Software": None}))
            _write(folder / f"{chart.name}.svg", _image(figure, "svg", {"Date": None}))
        _write(folder / f"{chart.name}.csv", _csv(chart.table))
    return paths


def _write(path: Path, content: bytes) -> None:
    with atomic_path(path) as scratch:
        scratch.write_bytes(content)


def _image(figure: Figure, form: str, metadata: Mapping[str, None]) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format=form, dpi=_DPI, metadata=metadata)
    return stream.getvalue()


def _csv(table: Mapping[str, Sequence[Any]]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream)
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return stream.getvalue().encode()


def _charts(
    content: ReportContent, diagrams: Mapping[str, Mapping[str, Any]], energies: LabelledEnergies | None
) -> Iterator[PrintedFigure]:
    yield _funnel(content.funnel)
    yield from map(_histogram, content.distributions)
    if content.element_hits:
        yield _elements(content.element_hits)
    if energies is not None:
        yield _parity(energies)
    if energies is not None and energies.calibration is not None:
        yield _calibration(*energies.calibration)
    for system, diagram in diagrams.items():
        yield _hull(system, diagram)


def _funnel(steps: Sequence[tuple[str, int]]) -> PrintedFigure:
    names, counts = [name for name, _ in steps], [max(count, 0) for _, count in steps]

    def draw(axes: Axes) -> None:
        bars = axes.barh(names, counts, color=BLUE)
        axes.bar_label(bars, [f"{count:,}" for count in counts], padding=2)
        axes.invert_yaxis()
        axes.set_xlim(0, 1.2 * max(1, *counts))  # room for the counts beside the bars
        axes.locator_params(axis="x", integer=True)
        axes.set_xlabel("structures")

    return PrintedFigure("funnel", 15 + 7 * len(steps), {"step": names, "structures": counts}, draw)


def _histogram(spread: Distribution) -> PrintedFigure:
    left, right = spread.edges[:-1], spread.edges[1:]

    def draw(axes: Axes) -> None:
        axes.bar(left, spread.counts, right - left, align="edge", color=BLUE)
        if spread.name.startswith("energy_above_hull") and "std" not in spread.name:
            axes.axvline(0, color=BLACK, linestyle=":", linewidth=0.8)
        axes.set_xlabel(f"{spread.name.replace('_', ' ')} ({spread.units})")
        axes.set_ylabel("structures")
        axes.locator_params(axis="y", integer=True)

    table = {
        f"from ({spread.units})": left.tolist(),
        f"to ({spread.units})": right.tolist(),
        "structures": spread.counts.tolist(),
    }
    return PrintedFigure(f"distribution_{spread.name}", 60, table, draw)


def _elements(hits: Mapping[str, int]) -> PrintedFigure:
    from matplotlib.colors import to_rgba  # noqa: PLC0415 - an extra
    from matplotlib.patches import Rectangle  # noqa: PLC0415

    def draw(axes: Axes) -> None:
        most = np.log1p(max(hits.values()))
        for symbol, (row, column) in element_places().items():
            count = hits.get(symbol, 0)
            shade = _PALE + (1 - _PALE) * np.log1p(count) / most if count else 0.0
            face = to_rgba(BLUE, shade)
            tile = Rectangle((column, row), _TILE, _TILE, facecolor=face, edgecolor=GREY, linewidth=0.3)
            axes.add_patch(tile)
            ink = "white" if shade > 0.5 else BLACK
            axes.text(column + _TILE / 2, row + _TILE / 2, symbol, fontsize=5, ha="center", va="center", color=ink)
        axes.set(xlim=(0, 18), ylim=(10, 0), aspect="equal")
        axes.axis("off")

    ranked = sorted(hits.items(), key=lambda item: (-item[1], item[0]))
    table: dict[str, Sequence[Any]] = {
        "element": [symbol for symbol, _ in ranked],
        "structures": [count for _, count in ranked],
    }
    return PrintedFigure("elements", 50, table, draw)


def _parity(energies: LabelledEnergies) -> PrintedFigure:
    def draw(axes: Axes) -> None:
        axes.axline((float(energies.label[0]),) * 2, slope=1, color=GREY, linewidth=0.8)
        axes.plot(energies.label, energies.prediction, "o", color=BLUE, markersize=2, alpha=0.5, rasterized=True)
        axes.set_xlabel("label (eV/atom)")
        axes.set_ylabel("prediction (eV/atom)")
        error = np.abs(energies.prediction - energies.label).mean()
        axes.set_title(f"mean absolute error {error:.4f} eV/atom", fontsize=8)

    table = {"label (eV/atom)": energies.label.tolist(), "prediction (eV/atom)": energies.prediction.tolist()}
    return PrintedFigure("parity", 75, table, draw)


def _calibration(predicted: Sequence[float], found: Sequence[float]) -> PrintedFigure:
    def draw(axes: Axes) -> None:
        axes.axline((0, 0), slope=1, color=GREY, linewidth=0.8)
        axes.plot(predicted, found, "o-", color=BLUE, markersize=3)
        axes.set_xlabel("predicted standard deviation (eV/atom)")
        axes.set_ylabel("root mean square error (eV/atom)")

    table = {"predicted standard deviation (eV/atom)": predicted, "root mean square error (eV/atom)": found}
    return PrintedFigure("calibration", 75, table, draw)


def _hull(system: str, diagram: Mapping[str, Any]) -> PrintedFigure:
    lines, *points = diagram["data"]
    is_binary = "annotations" not in diagram["layout"]
    styles = (("s", "none", BLACK), ("o", BLUE, BLUE)) if is_binary else (("s", BLACK, BLACK), ("o", BLUE, BLUE))

    def draw(axes: Axes) -> None:
        x, y = ([np.nan if value is None else value for value in lines[axis]] for axis in "xy")
        axes.plot(x, y, color=BLACK if is_binary else GREY, linewidth=0.8, zorder=1)
        for one, (marker, face, edge) in zip(points, styles, strict=True):
            shades = one["marker"]["color"]
            if isinstance(shades, list):
                scale: dict[str, Any] = {"c": shades, "cmap": "cividis_r", "vmin": 0, "vmax": one["marker"]["cmax"]}
                drawn = axes.scatter(one["x"], one["y"], s=14, marker="D", label=one["name"], zorder=2, **scale)
                axes.figure.colorbar(drawn, label="above hull (eV/atom)", shrink=0.8)
            else:
                look: dict[str, Any] = {"marker": marker, "facecolors": face, "edgecolors": edge, "linewidths": 0.8}
                axes.scatter(one["x"], one["y"], s=14, label=one["name"], zorder=2, **look)
        if is_binary:
            axes.set_xlabel(diagram["layout"]["xaxis"]["title"]["text"])
            axes.set_ylabel("formation energy (eV/atom)")
        else:
            for one in diagram["layout"]["annotations"]:
                low = one["yshift"] < 0
                shift = -_GAP if low else _GAP
                axes.text(one["x"], one["y"] + shift, one["text"], ha="center", va="top" if low else "bottom")
            axes.set(aspect="equal", xlim=(-0.08, 1.08), ylim=(-0.12, 1.0))
            axes.axis("off")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.18), ncols=2)

    layout = diagram["layout"]
    # For a triangle, the coordinates in the drawing; the column `phase` names the phase at each point.
    x_name, y_name = (
        (layout["xaxis"]["title"]["text"], "formation energy (eV/atom)") if is_binary else ("position x", "position y")
    )
    table: dict[str, list[Any]] = {name: [] for name in ("kind", "phase", x_name, y_name)}
    for one in points:
        table["kind"] += [one["name"]] * len(one["x"])
        table["phase"] += [text.replace("<br>", "; ") for text in one["text"]]
        table[x_name] += one["x"]
        table[y_name] += one["y"]
    return PrintedFigure(f"hull_{system}", 70, table, draw)
