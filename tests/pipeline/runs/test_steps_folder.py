"""Folders of runs of several steps: resumed with the same plan, and never taken for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
from equiscreen.pipeline.errors import ConfigError, OutputExistsError
from equiscreen.pipeline.runs import steps_folder
from equiscreen.pipeline.runs.steps_folder import StepsFolder

FOLDER = StepsFolder(
    noun="trip", differences={"ship": "another ship"}, outputs=("step.zarr",), notes=frozenset({"notes"})
)
PLAN = {"ship": "a", "speed": {"knots": 3}, "crew": 2}


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A folder in which one step is finished."""
    out = tmp_path / "out"
    with FOLDER.opened(out, PLAN, overwrite=False):
        (out / "step.zarr").mkdir()
    return out


def test_the_same_plan_resumes_and_another_is_told_apart(begun: Path) -> None:
    with FOLDER.opened(begun, PLAN):
        assert (begun / "step.zarr").exists()
    other = {"ship": "b", "speed": {"knots": 4}, "crew": None}
    with (
        pytest.raises(
            OutputExistsError,
            match="holds a trip with another ship; knots 3 instead of 4; crew 2 instead of None; choose",
        ),
        FOLDER.opened(begun, other),
    ):
        pass


def test_a_setting_may_change_until_a_step_has_used_it(tmp_path: Path) -> None:
    folder = StepsFolder(
        noun="trip", differences={}, first_use={"crew": ("dinner", "swim")}, made_from={"menu": ("crew",)}
    )
    with folder.opened(tmp_path, {"ship": "a", "crew": 2}):
        (tmp_path / "boarding").mkdir()
        (tmp_path / "menu").touch()
    with (
        pytest.raises(OutputExistsError, match="ship 'a' instead of 'b';"),
        folder.opened(tmp_path, {"ship": "b", "crew": 3}),
    ):
        pass
    assert (tmp_path / "menu").exists()
    with folder.opened(tmp_path, {"ship": "a", "crew": 3}):
        assert not (tmp_path / "menu").exists()
        (tmp_path / "swim.partial").mkdir()
    with (
        pytest.raises(OutputExistsError, match="crew 3 instead of 2;"),
        folder.opened(tmp_path, {"ship": "a", "crew": 2}),
    ):
        pass


def test_a_damaged_plan_is_called_damaged(begun: Path) -> None:
    (begun / "trip.json").write_text("{")
    for overwrite, cure in ((None, "remove the folder"), (False, "use `--overwrite`")):
        with (
            pytest.raises(OutputExistsError, match=rf"trip\.json is damaged, .*; {cure} to start again"),
            FOLDER.opened(begun, PLAN, overwrite=overwrite),
        ):
            pass
    with FOLDER.opened(begun, PLAN, overwrite=True):
        assert not (begun / "step.zarr").exists()


def test_what_is_not_of_such_a_run_is_left_alone(begun: Path, tmp_path: Path) -> None:
    (begun / "thesis.tex").touch()
    with pytest.raises(OutputExistsError, match=r"holds thesis\.tex, "), FOLDER.opened(begun, PLAN, overwrite=True):
        pass
    assert (begun / "step.zarr").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").touch()
    with (
        pytest.raises(OutputExistsError, match="is not a trip"),
        FOLDER.opened(tmp_path / "mine", PLAN, overwrite=True),
    ):
        pass
    with (
        pytest.raises(OutputExistsError, match="is read by this run"),
        FOLDER.opened(begun, PLAN, [begun / "step.zarr"]),
    ):
        pass
    (tmp_path / "file").touch()
    with pytest.raises(OutputExistsError, match="cannot be written"), FOLDER.opened(tmp_path / "file", PLAN):
        pass


@pytest.mark.parametrize(
    ("name", "is_output"), [("step.zarr.partial", True), ("step.csv", False), ("step.zarrs", False)]
)
def test_a_name_that_begins_like_an_output_is_not_one(begun: Path, name: str, is_output: bool) -> None:
    (begun / name).touch()
    if is_output:
        with FOLDER.opened(begun, PLAN, overwrite=True):
            assert not (begun / name).exists()
    else:
        with pytest.raises(OutputExistsError, match=f"holds {name}, "), FOLDER.opened(begun, PLAN, overwrite=True):
            pass
        assert (begun / "step.zarr").exists()


def test_an_interrupted_removal_is_finished(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(path: Path) -> None:
        raise KeyboardInterrupt(path)

    with monkeypatch.context() as patch:
        patch.setattr(steps_folder.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt), FOLDER.opened(begun, PLAN, overwrite=True):
            pass
    with FOLDER.opened(begun, PLAN):
        assert not (begun / "step.zarr").exists()


def test_a_failure_before_the_first_step_leaves_the_folder_free(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def failing() -> None:
        with FOLDER.opened(out, PLAN):
            (out / "notes").touch()
            raise ConfigError("no such place")

    with pytest.raises(ConfigError):
        failing()
    with FOLDER.opened(out, {"ship": "b"}):
        pass
