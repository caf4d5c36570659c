"""Training plots show the data they are given; calibration recognises an ensemble that predicts its own errors."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from equiscreen.model.evaluation import calibration as calibrating
from equiscreen.model.evaluation import plots
from equiscreen.model.evaluation.calibration import calibration
from equiscreen.model.evaluation.plots import Curve, Parity, calibration_plot, learning_curves, parity_plots
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

UNITS = {"energy": "eV/atom", "forces": "eV/angstrom", "stress": "eV/angstrom^3"}
PNG = b"\x89PNG\r\n\x1a\n"
SIZES = st.integers(0, 60)
# A few distinct values, so that many are equal.
COARSE = st.integers(0, 6).map(float)


def write_log(path: Path, rows: list[dict[str, float]]) -> Path:
    """Write a log like Lightning's: columns in alphabetical order, most cells empty."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, sorted({name for row in rows for name in row}))
        writer.writeheader()
        writer.writerows(rows)
    return path


def epochs(first: int, last: int, scale: float = 1.0) -> list[dict[str, float]]:
    """Rows that a training logs over some epochs; validation comes first, as in Lightning."""
    rows: list[dict[str, float]] = []
    for k in range(first, last):
        loss = scale / (1 + k)
        errors = {"energy_mae": 0.1 * loss, "forces_mae": 0.3 * loss, "band_gap_mae": loss, "loss": 2 * loss}
        rows.append({"epoch": k, "step": 9 * k, **{f"validation/{name}": x for name, x in errors.items()}})
        rows.append({"epoch": k, "step": 9 * k, "training/loss": loss, "training/seconds": 3.0})
    return rows


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(PNG) and 10_000 < path.stat().st_size < 2_000_000


def offsets(figure: Any, panel: int) -> list[np.ndarray[Any, Any]]:
    """Points of each scatter plot in a panel."""
    return [np.asarray(drawn.get_offsets()) for drawn in figure.axes[panel].collections]


def test_learning_curves_are_the_columns_of_the_log(tmp_path: Path) -> None:
    log = write_log(tmp_path / "metrics.csv", epochs(0, 12))
    figure = plots._curves_figure(plots.read_curves(log), UNITS)
    assert figure is not None
    assert [ax.get_title() for ax in figure.axes] == ["loss", "energy", "forces", "band gap"]
    assert figure.axes[2].get_ylabel() == "validation MAE (eV/Å)"
    assert figure.axes[3].get_ylabel() == "validation MAE"
    assert [ax.get_yscale() for ax in figure.axes] == ["log"] * 4
    expected = 1 / np.arange(1.0, 13)
    for ax, factors in zip(figure.axes, ([1, 2], [0.1], [0.3], [1]), strict=True):
        for line, factor in zip(ax.lines, factors, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), np.arange(1, 13))
            np.testing.assert_allclose(line.get_ydata(), factor * expected, rtol=1e-12)
    learning_curves(log, tmp_path / "curves.png", UNITS)
    assert is_png(tmp_path / "curves.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["curves.png", "metrics.csv"]


def test_of_an_epoch_done_twice_the_last_counts(tmp_path: Path) -> None:
    again = write_log(tmp_path / "again.csv", [*epochs(0, 7, scale=5.0), *epochs(4, 9)])
    once = write_log(tmp_path / "once.csv", [*epochs(0, 4, scale=5.0), *epochs(4, 9)])
    found, expected = plots.read_curves(again), plots.read_curves(once)
    assert found.keys() == expected.keys()
    for name, curve in expected.items():
        np.testing.assert_array_equal(found[name].epoch, curve.epoch)
        np.testing.assert_array_equal(found[name].value, curve.value)


def test_the_validation_of_the_finished_model_is_no_epoch(tmp_path: Path) -> None:
    rows = epochs(0, 5)
    log = write_log(tmp_path / "metrics.csv", [*rows, {**rows[-2], "epoch": 5}])
    assert all(curve.epoch.max() == 5 for curve in plots.read_curves(log).values())  # counted from 1


@pytest.mark.parametrize("content", [None, "", "epoch,step\n", "epoch,step,training/loss\n0,1,\n", "no log at all\n\n"])
def test_a_log_with_nothing_in_it_makes_no_file(tmp_path: Path, content: str | None) -> None:
    log = tmp_path / "metrics.csv"
    if content is not None:
        log.write_text(content)
    learning_curves(log, tmp_path / "curves.png", UNITS)
    assert not (tmp_path / "curves.png").exists()


@given(end=st.integers(0, 2000), junk=st.binary(max_size=20))
def test_a_log_that_was_cut_off_or_damaged_is_read_as_far_as_it_goes(
    tmp_path_factory: pytest.TempPathFactory, end: int, junk: bytes
) -> None:
    log = write_log(tmp_path_factory.mktemp("log") / "metrics.csv", epochs(0, 12))
    log.write_bytes(log.read_bytes()[:end] + junk)
    for curve in plots.read_curves(log).values():
        assert isinstance(curve, Curve)
        assert np.isfinite(curve.value).all()
        assert (np.diff(curve.epoch) > 0).all()


def test_columns_without_numbers_have_no_panel(tmp_path: Path) -> None:
    rows = [{**row, "validation/stress_mae": math.nan} for row in epochs(0, 3)]
    figure = plots._curves_figure(plots.read_curves(write_log(tmp_path / "metrics.csv", rows)), UNITS)
    assert figure is not None
    assert "stress" not in [ax.get_title() for ax in figure.axes]


def test_parity_shows_all_points_and_their_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    label, noise = generator.normal(size=(2, 40, 3))
    held_out = label[:9].copy()
    held_out[2] = np.nan
    pairs = [
        Parity("forces", "eV/angstrom", held_out, held_out + 0.25, "validation"),
        Parity("forces", "eV/angstrom", label, label + noise, "training"),
        Parity("energy", "eV/atom", label[:, 0], label[:, 0], "test"),
        Parity("stress", "eV/angstrom^3", np.full(4, np.nan), np.zeros(4), "test"),
    ]
    figure = plots._parity_figure(pairs)
    assert figure is not None
    forces, energy = figure.axes
    assert (forces.get_title(), energy.get_title()) == ("forces", "energy")
    assert (forces.get_xlabel(), forces.get_ylabel()) == ("label (eV/Å)", "prediction (eV/Å)")
    training, validation = offsets(figure, 0)
    np.testing.assert_array_equal(training, np.stack([label.ravel(), (label + noise).ravel()], axis=1))
    np.testing.assert_allclose(validation[:, 1] - validation[:, 0], 0.25, rtol=1e-12)
    texts = [text.get_text() for text in forces.get_legend().get_texts()]
    assert texts == [f"training, n = 120\nMAE {np.abs(noise).mean():.3g} eV/Å", "validation, n = 24\nMAE 0.25 eV/Å"]
    (diagonal,) = forces.lines
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert forces.get_xlim() == forces.get_ylim()
    parity_plots(pairs, tmp_path / "parity.png")
    assert is_png(tmp_path / "parity.png")


def test_many_points_are_thinned_and_the_title_says_so(tmp_path: Path) -> None:
    label = np.random.default_rng(3).normal(size=100_000)
    pairs = [
        Parity("forces", "eV/angstrom", label, label + 0.5, "training"),
        Parity("forces", "eV/angstrom", label[:900], label[:900] - 0.5, "test"),
    ]
    figure, again = plots._parity_figure(pairs), plots._parity_figure(pairs)
    assert figure is not None
    assert again is not None
    training, test = offsets(figure, 0)
    assert (len(training), len(test)) == (19_100, 900)
    assert np.isin(training[:, 0], label).all()
    assert len(np.unique(training[:, 0])) == 19_100
    np.testing.assert_array_equal(training, offsets(again, 0)[0])
    assert figure.axes[0].get_title() == "forces\n20,000 of 100,900 points, at random"
    assert "n = 100,000" in figure.axes[0].get_legend().get_texts()[0].get_text()
    parity_plots(pairs, tmp_path / "parity.png")
    assert is_png(tmp_path / "parity.png")


@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=3))
def test_thinning_draws_as_much_as_it_may(sizes: list[int]) -> None:
    chosen = plots._select_points(sizes)
    # Shares are rounded to whole numbers.
    assert min(sum(sizes), plots.MAX_DRAWN) - len(sizes) < sum(map(len, chosen)) <= plots.MAX_DRAWN
    for some, size in zip(chosen, sizes, strict=True):
        assert len(np.unique(some)) == len(some)
        assert len(some) == 0 or (some.min() >= 0 and some.max() < size)


def test_parity_of_nothing_makes_no_file(tmp_path: Path) -> None:
    nothing = Parity("energy", "eV/atom", np.array([np.nan]), np.array([1.0]), "test")
    for pairs in ([], [nothing]):
        parity_plots(pairs, tmp_path / "parity.png")
    assert list(tmp_path.iterdir()) == []


def test_parity_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    one = np.ones(3)
    with pytest.raises(ValueError, match="forces"):
        Parity("forces", "eV/angstrom", one, one[:2], "test")
    pairs = [Parity("energy", unit, one, one, "test") for unit in ("eV", "eV/atom")]
    with pytest.raises(ValueError, match="energy: all units in one panel must be equal"):
        parity_plots(pairs, tmp_path / "parity.png")


@pytest.mark.parametrize(("too_small", "coverage"), [(1.0, (0.6827, 0.9545)), (2.0, (0.3829, 0.6827))])
def test_normal_errors_are_covered_as_their_spread_says(too_small: float, coverage: tuple[float, float]) -> None:
    generator = np.random.default_rng(4)
    spread = np.exp(generator.normal(size=100_000))
    found = calibration(too_small * spread * generator.normal(size=spread.shape), spread)
    # Four standard errors of 100,000 draws: 1 / sqrt(2 n) for the ratio, 0.5 / sqrt(n) for a fraction.
    assert found["ratio"] == pytest.approx(too_small, rel=0.009)
    assert (found["coverage_1"], found["coverage_2"]) == pytest.approx(coverage, abs=0.0064)


@given(st.data())
def test_rank_correlation_is_that_of_scipy_with_equal_values(data: st.DataObject) -> None:
    n = data.draw(st.integers(2, 60))
    error, spread = (data.draw(arrays(np.float64, n, elements=COARSE)) for _ in range(2))
    found = calibration(error, spread)["spearman"]
    if len(set(error)) == 1 or len(set(spread)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(spearmanr(error, spread).statistic, abs=1e-12)  # rounding


@given(st.data())
def test_calibration_knows_no_order_sign_or_unit(data: st.DataObject) -> None:
    n = data.draw(SIZES)
    error, spread = (data.draw(arrays(np.float64, n, elements=COARSE)) for _ in range(2))
    order = np.array(data.draw(st.permutations(range(n))), dtype=int)
    # A factor of 4 causes no rounding.
    other = calibration(-4 * error[order], 4 * spread[order])
    assert other == pytest.approx(calibration(error, spread), rel=1e-12, nan_ok=True)


def test_points_without_spread_or_label_do_no_harm(tmp_path: Path) -> None:
    error, spread = np.array([0.3, 1.0, -2.0, 5.0]), np.array([0.0, 1.0, 2.0, np.nan])
    found = calibration_plot(error, spread, "eV", tmp_path / "calibration.png")
    assert found["ratio"] == 1.0
    assert found["coverage_1"] == pytest.approx(2 / 3)
    assert is_png(tmp_path / "calibration.png")


@pytest.mark.parametrize(("error", "spread"), [([], []), ([1.0], [0.0]), ([0.0], [1.0]), ([np.nan], [1.0])])
def test_calibration_of_nothing_makes_no_file(tmp_path: Path, error: list[float], spread: list[float]) -> None:
    calibration_plot(np.array(error), np.array(spread), "eV", tmp_path / "calibration.png")
    assert list(tmp_path.iterdir()) == []


def test_calibration_refuses_what_is_no_spread(tmp_path: Path) -> None:
    one = np.ones(3)
    with pytest.raises(ValueError, match="spreads"):
        calibration_plot(one, one[:2], "eV", tmp_path / "calibration.png")
    with pytest.raises(ValueError, match="negative"):
        calibration_plot(one, -one, "eV", tmp_path / "calibration.png")


def test_calibration_shows_errors_and_their_bins() -> None:
    generator = np.random.default_rng(5)
    spread = np.exp(generator.normal(size=3000))
    error = spread * generator.normal(size=3000)
    figure = plots._calibration_figure(error, spread, "eV/atom", calibration(error, spread))
    assert figure is not None
    left, right = figure.axes
    (points,) = offsets(figure, 0)
    np.testing.assert_array_equal(points, np.stack([spread, np.abs(error)], axis=1))
    once, twice = left.lines
    np.testing.assert_array_equal(once.get_ydata(), once.get_xdata())
    np.testing.assert_array_equal(twice.get_ydata(), 2 * np.asarray(twice.get_xdata()))
    assert {ax.get_xscale() for ax in (left, right)} | {ax.get_yscale() for ax in (left, right)} == {"log"}
    assert (left.get_ylabel(), right.get_ylabel()) == ("absolute error (eV/atom)", "RMS error (eV/atom)")
    predicted, found = (np.asarray(side) for side in right.lines[0].get_data())
    assert len(predicted) == calibrating.MAX_BINS
    # With equally many points per bin, the mean over bins is the mean over all points.
    assert np.mean(predicted**2) == pytest.approx(np.mean(spread**2))
    assert np.mean(found**2) == pytest.approx(np.mean(error**2))
    # Five standard errors of the mean of 300 squares.
    np.testing.assert_allclose(found / predicted, 1, atol=0.2)


@given(st.integers(1, 300))
def test_bins_hold_equally_many_points_in_the_order_of_the_spread(n: int) -> None:
    spread = np.random.default_rng(n).uniform(1, 2, size=n)
    predicted, found = calibrating.binned_rms(3 * spread, spread)
    assert len(predicted) == min(calibrating.MAX_BINS, max(1, n // calibrating.POINTS_PER_BIN))
    assert (np.diff(predicted) > 0).all()
    np.testing.assert_allclose(found, 3 * predicted, rtol=1e-12)
