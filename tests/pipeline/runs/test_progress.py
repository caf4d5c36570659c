"""Progress lines never state an unknown time, and are never repeated."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from equiscreen.pipeline.runs import progress
from equiscreen.pipeline.runs.progress import ProgressReport
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

LINE = re.compile(r"screen: [\d,]+( of [\d,]+)? structures(, [\d,.e-]+/s)?(, (\d+ (s|min|h|days)|over 100 days) left)?")


def lines(capsys: pytest.CaptureFixture[str], total: int, steps: Sequence[int], resumed: int = 0) -> list[str]:
    """What a run prints in which every step is worth a line."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "LINE_EVERY_S", -1.0)
        with ProgressReport("screen", total) as report:
            report.resume(resumed)
            for step in steps:
                report.advance(step)
    return capsys.readouterr().err.splitlines()


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**12), st.lists(st.integers(0, 10**12), max_size=4), st.integers(0, 10**6))
def test_every_line_is_possible(capsys: pytest.CaptureFixture[str], total: int, steps: list[int], resumed: int) -> None:
    for line in lines(capsys, total, steps, resumed):
        assert LINE.fullmatch(line), line
        done, _, known = line.removeprefix("screen: ").split(" structures")[0].partition(" of ")
        assert not known or int(done.replace(",", "")) <= int(known.replace(",", ""))


def test_without_a_rate_no_time_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    """What earlier runs have done says nothing about the rate of this one."""
    assert lines(capsys, 1200, [0], resumed=600)[0] == "screen: 600 of 1,200 structures"
    assert lines(capsys, 0, [5])[-1].startswith("screen: 5 of 5 structures, ")


def test_the_last_line_is_printed_once(capsys: pytest.CaptureFixture[str]) -> None:
    found = lines(capsys, 3, [1, 2])
    assert [line.split(" structures")[0] for line in found] == ["screen: 0 of 3", "screen: 1 of 3", "screen: 3 of 3"]


def test_the_time_left_is_never_absurd(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    report = ProgressReport("screen", 1_000_000, enabled=False)
    report.resume(999_000)
    assert report.time_left() == ""  # earlier runs say nothing about the rate of this one
    now[0] = 10.0
    report.advance(10)
    assert report.time_left() == "16 min left"
    now[0] = 1000.0  # nothing has come since: the time left grows
    assert report.time_left() == "28 h left"
    now[0] = 1e9
    assert report.time_left() == "over 100 days left"


def test_progress_is_off_where_nobody_looks_unless_it_is_asked_for() -> None:
    assert not progress.shows_progress(None)  # standard error of a test is no terminal
    assert progress.shows_progress(True)
    assert not progress.shows_progress(False)
