"""Plots of a training run: learning curves, predictions against labels, and calibration of an ensemble's spread."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...pipeline.atomic import atomic_path
from .calibration import Floats, binned_rms, both_finite, calibration, sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Subset = Literal["training", "validation", "test"]

# More points would only make a panel slower and darker.
MAX_DRAWN = 20_000
# Errors can be arbitrarily small, and would stretch a logarithmic axis without adding information.
SMALLEST_OF_MEDIAN = 1e-3
PANEL = (4.0, 3.6)  # inches
DPI = 150
LARGEST_MARK = 18.0  # square points
# Palette of Okabe and Ito, Color Universal Design (2008), distinguishable with any colour vision. Markers differ too.
COLORS: dict[Subset, str] = {"training": "#0072B2", "validation": "#E69F00", "test": "#009E73"}
MARKERS: dict[Subset, str] = {"training": "o", "validation": "s", "test": "^"}
DRAWING_ORDER: tuple[Subset, ...] = ("training", "validation", "test")
_MAE = re.compile(r"validation/(.+)_mae")


@dataclass(frozen=True, slots=True)
class Parity:
    """Labels and predictions of one quantity on one subset of the structures.

    Attributes:
        name: Name of the quantity; pairs with the same name share a panel.
        unit: Unit of labels and predictions; empty if dimensionless.
        label: float[...], NaN where missing.
        found: float[...], predictions, of the same shape.
        subset: Subset that the structures belong to.

    Raises:
        ValueError: The shapes of labels and predictions differ.
    """

    name: str
    unit: str
    label: NDArray[np.floating[Any]]
    found: NDArray[np.floating[Any]]
    subset: Subset

    def __post_init__(self) -> None:
        if self.label.shape != self.found.shape:
            raise ValueError(
                f"{self.name}: labels have shape {self.label.shape}, but predictions have shape {self.found.shape}"
            )

    def points(self) -> tuple[Floats, Floats]:
        """Return labels and predictions where both are finite, float64[n] each."""
        return both_finite(self.label, self.found)


@dataclass(frozen=True, slots=True)
class Curve:
    """One column of a training log.

    Attributes:
        epoch: int64[n], counted from 1, as in the progress output.
        value: float64[n].
    """

    epoch: NDArray[np.int64]
    value: Floats


def learning_curves(log: Path, out: Path, units: Mapping[str, str]) -> None:
    """Plot losses and mean absolute validation errors against the epoch.

    If the log is missing or empty, no file is written.

    Args:
        log: ``metrics.csv`` of Lightning's `CSVLogger`.
        out: Path of the PNG.
        units: Units of the quantities, by name. Panels follow this order; panels of other quantities come last.
    """
    figure = _curves_figure(read_curves(log), units)
    if figure is not None:
        _save(figure, out)


def read_curves(log: Path) -> dict[str, Curve]:
    """Read losses and mean absolute errors of a log, by column name.

    The last entry of an epoch counts, since a resumed run may repeat an epoch. The row after the last training epoch,
    in which Lightning logs the validation of the finished model, is skipped. A truncated file is read as far as its
    numbers are valid.

    Returns:
        Curves of the columns that hold a finite number; empty if the log is missing or empty.
    """
    if not log.is_file():
        return {}
    columns: dict[str, dict[int, float]] = {}
    with log.open(newline="", errors="replace") as file:
        for row in csv.DictReader(file):
            epoch = _number(row.get("epoch"))
            if not math.isfinite(epoch):
                continue
            for name, cell in row.items():
                if _is_drawn(name) and cell:
                    columns.setdefault(name, {})[round(epoch)] = _number(cell)
    last = max(columns["training/loss"]) if "training/loss" in columns else None
    curves = {name: _curve(values, last) for name, values in columns.items()}
    return {name: curve for name, curve in curves.items() if len(curve.epoch)}


def parity_plots(pairs: Sequence[Parity], out: Path) -> None:
    """Plot predictions against labels, with one panel per quantity that shows all subsets.

    Mean absolute errors and axis limits refer to all points; a panel with more than 20,000 points shows a random
    selection, as its title states. If no point is labelled, no file is written.

    Args:
        pairs: Labels and predictions, in the order of the panels.
        out: Path of the PNG.

    Raises:
        ValueError: A quantity has two units.
    """
    figure = _parity_figure(pairs)
    if figure is not None:
        _save(figure, out)


def calibration_plot(
    error: NDArray[np.floating[Any]], spread: NDArray[np.floating[Any]], unit: str, out: Path
) -> dict[str, float]:
    """Plot errors of an ensemble against its spread, and measure how well the spread predicts the errors.

    The left panel shows each error, the right panel root mean squares in bins with equal numbers of points, sorted by
    spread. Points whose spread is zero cannot be shown on a logarithmic axis. If there are no other points, or if all
    their errors are zero, no file is written.

    Args:
        error: float[...], mean of the ensemble minus the label; NaN where the label is missing.
        spread: float[...], standard deviation of the members, of the same shape.
        unit: Unit of errors and standard deviations.
        out: Path of the PNG.

    Returns:
        The result of `calibration`.

    Raises:
        ValueError: The shapes differ, or a spread is negative.
    """
    numbers = calibration(error, spread)
    figure = _calibration_figure(error, spread, unit, numbers)
    if figure is not None:
        _save(figure, out)
    return numbers


def _is_drawn(column: str | None) -> bool:
    # `csv` collects the cells of a row that is longer than the header under the name None.
    return column is not None and (column in {"training/loss", "validation/loss"} or bool(_MAE.fullmatch(column)))


def _number(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:  # the end of a truncated file
        return math.nan


def _curve(values: Mapping[int, float], last: int | None) -> Curve:
    epochs = sorted(k for k, v in values.items() if math.isfinite(v) and (last is None or k <= last))
    return Curve(np.array(epochs, dtype=np.int64) + 1, np.array([values[k] for k in epochs], dtype=np.float64))


def _curves_figure(curves: Mapping[str, Curve], units: Mapping[str, str]) -> Figure | None:
    found = [match[1] for match in map(_MAE.fullmatch, curves) if match]
    names = [*(name for name in units if name in found), *(name for name in found if name not in units)]
    losses = [subset for subset in DRAWING_ORDER if f"{subset}/loss" in curves]
    if not names and not losses:
        return None
    figure, panels = _panels(len(names) + bool(losses))
    if losses:
        ax = panels.pop(0)
        for subset in losses:
            _line(ax, curves[f"{subset}/loss"], subset, label=subset)
        ax.legend(frameon=False, fontsize=9)
        ax.set_ylabel("loss")
        _title(ax, "loss")
    for ax, name in zip(panels, names, strict=True):
        _line(ax, curves[f"validation/{name}_mae"], "validation")
        ax.set_ylabel(_with_unit("validation MAE", units.get(name, "")))
        _title(ax, _words(name))
    return figure


def _line(ax: Axes, curve: Curve, subset: Subset, **settings: Any) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - takes half a second to import, and only plots need it

    # Markers show the epochs of a short run, and make a single epoch visible at all.
    marker = MARKERS[subset] if len(curve.epoch) <= 50 else None
    ax.plot(curve.epoch, curve.value, color=COLORS[subset], marker=marker, markersize=3, linewidth=1.2, **settings)
    _make_log(ax, "y", curve.value)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")


def _parity_figure(pairs: Sequence[Parity]) -> Figure | None:
    groups: dict[str, list[Parity]] = {}
    for pair in pairs:
        if len(pair.points()[0]):
            groups.setdefault(pair.name, []).append(pair)
    if not groups:
        return None
    figure, panels = _panels(len(groups))
    for ax, group in zip(panels, groups.values(), strict=True):
        _parity_panel(ax, sorted(group, key=lambda pair: DRAWING_ORDER.index(pair.subset)))
    return figure


def _parity_panel(ax: Axes, group: Sequence[Parity]) -> None:
    name, unit = group[0].name, group[0].unit
    if any(pair.unit != unit for pair in group):
        raise ValueError(f"{name}: all units in one panel must be equal, not {sorted({pair.unit for pair in group})}")
    points = [pair.points() for pair in group]
    chosen = _select_points([len(label) for label, _ in points])
    n_drawn, total = sum(map(len, chosen)), sum(len(label) for label, _ in points)
    for pair, (label, found), some in zip(group, points, chosen, strict=True):
        mae = f"MAE {np.abs(found - label).mean():.3g} {_symbols(unit)}".rstrip()
        style: dict[str, Any] = {"color": COLORS[pair.subset], "marker": MARKERS[pair.subset], **_marker_style(n_drawn)}
        ax.scatter(label[some], found[some], label=f"{pair.subset}, n = {len(label):,}\n{mae}", **style)
    ends = _ends(np.concatenate([side for pair in points for side in pair]))
    ax.plot(ends, ends, color="black", linewidth=0.8)
    ax.set(
        xlim=ends, ylim=ends, aspect="equal", xlabel=_with_unit("label", unit), ylabel=_with_unit("prediction", unit)
    )
    _title(ax, _words(name) + _share_drawn(n_drawn, total))
    _legend(ax, markerscale=math.sqrt(LARGEST_MARK / _marker_style(n_drawn)["s"]))


def _calibration_figure(
    error: NDArray[np.floating[Any]], spread: NDArray[np.floating[Any]], unit: str, numbers: Mapping[str, float]
) -> Figure | None:
    size, sigma = sizes(error, spread)
    size, sigma = size[sigma > 0], sigma[sigma > 0]
    if not size.any():
        return None
    figure, (left, right) = _panels(2)
    _errors_panel(left, size, sigma, unit)
    predicted, found = binned_rms(size, sigma)
    right.plot(predicted, found, color=COLORS["training"], marker="o", markersize=5, linewidth=1.2, label="bins")
    ends = _ends(np.concatenate([predicted, found[found > 0]]), log=True)
    right.plot(ends, ends, color="black", linewidth=0.8, label="RMS error = RMS spread")
    right.set(xlim=ends, ylim=ends, aspect="equal")
    right.set(xlabel=_with_unit("RMS spread", unit), ylabel=_with_unit("RMS error", unit))
    _title(right, f"error / spread {numbers['ratio']:.2f}, rank correlation {numbers['spearman']:.2f}")
    _make_log(right, "x", np.array(ends))
    _make_log(right, "y", np.array(ends))
    _legend(right)
    return figure


def _errors_panel(ax: Axes, size: Floats, sigma: Floats, unit: str) -> None:
    """Plot all errors against their spreads, with lines at one and two spreads."""
    (some,) = _select_points([len(size)])
    ax.scatter(sigma[some], size[some], color=COLORS["training"], **_marker_style(len(some)))
    ends = np.array(_ends(sigma, log=True))
    for k, style in ((1, "-"), (2, "--")):
        ax.plot(ends, k * ends, color="black", linewidth=0.8, linestyle=style, label=f"{_times(k)}spread")
    drawn = np.concatenate([size[size > SMALLEST_OF_MEDIAN * np.median(size[size > 0])], 2 * ends])
    ax.set(xlim=ends, ylim=_ends(drawn, log=True))
    ax.set(xlabel=_with_unit("spread", unit), ylabel=_with_unit("absolute error", unit))
    _title(ax, "error and spread" + _share_drawn(len(some), len(size)))
    _make_log(ax, "x", ends)
    _make_log(ax, "y", drawn)
    _legend(ax)


def _select_points(sizes: Sequence[int]) -> list[NDArray[np.int64]]:
    """Choose the points of each set to draw: all, or a random selection of large sets (the same in each call)."""
    generator, left = np.random.default_rng(0), MAX_DRAWN
    chosen = [np.arange(size) for size in sizes]
    # Small sets come first; the larger sets get the unused rest of their shares.
    for place, k in enumerate(np.argsort(sizes, kind="stable")):
        share = left // (len(sizes) - place)
        if sizes[k] > share:
            chosen[k] = np.sort(generator.choice(sizes[k], share, replace=False))
        left -= len(chosen[k])
    return chosen


def _share_drawn(drawn: int, total: int) -> str:
    return "" if drawn == total else f"\n{drawn:,} of {total:,} points, at random"


def _panels(n: int) -> tuple[Figure, list[Axes]]:
    """Create a figure outside pyplot's global state, with `n` panels in rows of up to three."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415 - takes half a second to import, and only plots need it
    from matplotlib.figure import Figure  # noqa: PLC0415 - takes half a second to import, and only plots need it

    n_columns = n if n <= 3 else (2 if n == 4 else 3)
    n_rows = -(-n // n_columns)
    figure = Figure(figsize=(n_columns * PANEL[0], n_rows * PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    panels = [figure.add_subplot(n_rows, n_columns, place + 1) for place in range(n)]
    for ax in panels:
        ax.grid(visible=True, linewidth=0.4, color="0.88")
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
        for axis in (ax.xaxis, ax.yaxis):
            axis.label.set_fontsize(10)
    return figure, panels


def _save(figure: Figure, out: Path) -> None:
    """Write a figure to a PNG file, atomically."""
    with atomic_path(out) as scratch:
        figure.savefig(scratch, dpi=DPI, format="png")


def _marker_style(n: int) -> dict[str, Any]:
    """Return the marker area (square points) and opacity for a plot of `n` points; both decrease as `n` grows."""
    crowd = float(np.clip((math.log10(max(n, 1)) - 2) / 2, 0, 1))  # from 100 to 10,000
    return {"s": LARGEST_MARK - 14 * crowd, "alpha": 0.8 - 0.45 * crowd, "linewidths": 0}


def _ends(values: Floats, *, log: bool = False) -> tuple[float, float]:
    """Return axis limits, with a margin on both sides of the values."""
    low, high = float(values.min()), float(values.max())
    if log:
        room = max(1.15, (high / low) ** 0.05)
        return low / room, high * room
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - room, high + room


def _make_log(ax: Axes, which: Literal["x", "y"], values: Floats) -> None:
    """Make an axis logarithmic, with a few plain tick labels, if all values are positive."""
    from matplotlib import ticker  # noqa: PLC0415 - takes half a second to import, and only plots need it

    positive = values[values > 0]
    if len(positive) < len(values):
        return
    ax.set(**{f"{which}scale": "log"})
    axis = ax.xaxis if which == "x" else ax.yaxis
    decades = math.log10(positive.max() / positive.min())
    if decades < 0.7:
        axis.set_major_locator(ticker.MaxNLocator(5))
    else:
        steps = (1.0,) if decades > 2.5 else (1.0, 3.0) if decades > 1.3 else (1.0, 2.0, 5.0)
        axis.set_major_locator(ticker.LogLocator(subs=steps))
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}".replace("e-0", "e-")))
    axis.set_minor_formatter(ticker.NullFormatter())


def _title(ax: Axes, text: str) -> None:
    ax.set_title(text, fontsize=10)


def _legend(ax: Axes, *, markerscale: float = 1.0) -> None:
    """Add a legend in the corner that the diagonal leaves free."""
    legend = ax.legend(
        loc="upper left", fontsize=8, frameon=True, framealpha=0.7, edgecolor="none", markerscale=markerscale
    )
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)


def _with_unit(text: str, unit: str) -> str:
    return f"{text} ({_symbols(unit)})" if unit else text


def _symbols(unit: str) -> str:
    """Typeset a unit: eV/angstrom^3 becomes eV/Å with a superscript 3."""
    return re.sub(r"\^(-?\d+)", r"$^{\1}$", unit.replace("angstrom", "Å"))


def _words(name: str) -> str:
    return name.replace("_", " ")


def _times(k: int) -> str:
    return "" if k == 1 else f"{k} "
