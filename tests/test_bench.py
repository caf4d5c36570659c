"""`make bench`: figures are read from what the scripts print, runs are not repeated, and a line is fitted."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from .benchmarks import bench
from .conftest import ROOT

FOLDER = ROOT / "tests/benchmarks"
# The committed text of `relax_campaign` is from an earlier script with fewer sides; another test has its figures.
CAMPAIGN = "relax_campaign"
COMMITTED = [one for one in bench.BENCHMARKS if one.script != CAMPAIGN]
# A script that prints a rate, counts its runs in the file "runs", and fails if there is a file "broken".
SCRIPT = """
import sys
from pathlib import Path
folder = Path(sys.argv[1])
with (folder / "runs").open("a") as file:
    file.write("x")
print("rate 1,250 structures/s")
print("10 structures: 5 structures/s\\n100 structures: 25 structures/s")
sys.exit((folder / "broken").exists())
"""


@pytest.mark.parametrize("benchmark", COMMITTED, ids=lambda one: one.script)
def test_figures_are_found_in_the_committed_texts(benchmark: bench.Benchmark) -> None:
    text = (FOLDER / f"{benchmark.script}.txt").read_text()
    assert all((value := figure.read(text)) is not None and value > 0 for figure in benchmark.figures)
    assert benchmark.growth is None or len(benchmark.growth.read(text)) > 1


def test_figures_of_relaxations_are_found_in_what_the_script_prints(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each side takes twice as long as the one before it."""
    monkeypatch.syspath_prepend(str(FOLDER))
    campaign = import_module(CAMPAIGN)
    sides = [campaign.BEST, *campaign.SIDES]
    runs = {side: campaign.Run(10.0, 20.0 * 2**place, np.zeros(40), []) for place, side in enumerate(sides)}
    print()  # noqa: T201 - read below
    runs[campaign.BEST].print(campaign.BEST)
    campaign.print_ratios([runs])
    text = capsys.readouterr().out
    (benchmark,) = (one for one in bench.BENCHMARKS if one.script == CAMPAIGN)
    rate, *ratios = benchmark.figures
    assert rate.read(text) == 4
    for figure in ratios:
        (place,) = (place for place, side in enumerate(sides) if f", {side}:" in figure.what)
        assert figure.read(text) == 2**place


def test_each_script_is_there() -> None:
    assert [one.script for one in bench.BENCHMARKS if not (FOLDER / f"{one.script}.py").exists()] == []


@given(start=st.floats(0.1, 100), slope=st.floats(1e-6, 1), counts=st.sets(st.integers(1, 10**6), min_size=2))
def test_a_line_is_found_again(start: float, slope: float, counts: set[int]) -> None:
    found = bench.fitted([(count, start + slope * count) for count in counts])
    predicted = [found[0] + found[1] * count for count in counts]
    assert np.allclose(predicted, [start + slope * count for count in counts], rtol=1e-6)


@pytest.fixture
def benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bench.Benchmark:
    """A benchmark of the script above, which is the only one."""
    (tmp_path / "small.py").write_text(SCRIPT)
    monkeypatch.setattr(bench, "__file__", str(tmp_path / "bench.py"))
    figures = [bench.Figure("a rate", "structures/s", r"\nrate ([\d,]+)")]
    growth = bench.Growth("a size", r"\n([\d,]+) structures: ([\d,]+) structures/s")
    one = bench.Benchmark("small", "{data}", "", 1, figures, growth)
    monkeypatch.setattr(bench, "BENCHMARKS", (one,))
    return one


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    arguments = ["bench.py", "--data", str(folder), "--out", str(folder / "out"), *words]
    monkeypatch.setattr(sys, "argv", arguments)
    bench.main()


@pytest.mark.usefixtures("benchmark")
def test_a_run_is_not_repeated_and_the_table_has_its_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        run(tmp_path, monkeypatch, "--repeats", "2")
        assert (tmp_path / "runs").read_text() == "xx"
    table = (tmp_path / "out/table.md").read_text()
    assert "| a rate | 1,250 | 1,250 to 1,250 | structures/s | small.py |" in table
    # 2 s for 10 structures and 4 s for 100.
    assert "a size, 10 to 100: 1.78 s + 22222.2 µs each | 45 |" in table
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["outcomes"][0]["values"] == {"a rate": [1250.0, 1250.0]}
    assert results["machine"] == table.splitlines()[0]


@pytest.mark.usefixtures("benchmark")
def test_a_failure_is_reported_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").touch()
    with pytest.raises(SystemExit, match="small, 1 of 1, failed"):
        run(tmp_path, monkeypatch, "--quick")
    (tmp_path / "broken").unlink()
    run(tmp_path, monkeypatch, "--quick")
    assert (tmp_path / "runs").read_text() == "xx"
    assert "| a rate | 1,250 | one run |" in capsys.readouterr().out
