"""The command line: bad input gives one clear line and an exit code, and the help pages teach."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import typer
from equiscreen import __version__
from equiscreen.__main__ import main
from equiscreen.cli.app import app
from equiscreen.pipeline.errors import EquiscreenError
from equiscreen.screening import open_scores
from equiscreen.screening.scoring.screen import command_line

from ..conftest import write_extxyz


def in_this_process(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line here: a new process takes a second or more for imports."""
    out, err = StringIO(), StringIO()
    argv = ["equiscreen", *map(str, words)]
    with patch.object(sys, "argv", argv), redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as end:
        main()
    return subprocess.CompletedProcess(argv, int(end.value.code or 0), out.getvalue(), err.getvalue())


def equiscreen(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a new process."""
    return subprocess.run(
        [sys.executable, "-m", "equiscreen", *map(str, words)], capture_output=True, text=True, check=False
    )


def assert_one_line(done: subprocess.CompletedProcess[str], *parts: str) -> None:
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line and not line.startswith("Dask dashboard")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("equiscreen: ")
    for part in parts:
        assert part in lines[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of 6 crystals, and with files that cannot be read."""
    path = tmp_path_factory.mktemp("cli")
    write_extxyz(path / "s.extxyz", 6)
    done = in_this_process("featurize", path / "s.extxyz", "--out", path / "g.zarr", "--scheduler", "threads")
    assert done.returncode == 0
    assert "read 6 = stored 6 + failed 0 + duplicate 0" in done.stdout
    (path / "empty.csv").write_text("")
    (path / "bad.cif").write_text("data_x\n_cell_length_a 4\n")
    (path / "slip.yaml").write_text("training: {max_epoch: 3}\n")
    return path


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (("featurize", "{}/nothing.cif", "--out", "{}/o.zarr"), ("nothing.cif", "no such file")),
        (("featurize", "{}/empty.csv", "--out", "{}/o.zarr"), ("empty.csv", "empty")),
        (("featurize", "{}/bad.cif", "--out", "{}/o.zarr", "--scheduler", "threads"), ("bad.cif", "none of its")),
        (("featurize", "{}/s.extxyz", "--out", "{}/g.zarr"), ("g.zarr", "exists", "--overwrite")),
        (("featurize", "{}/s.extxyz", "--out", "{}/o.zarr", "--label", "x=y[eV]"), ("label 'x'", "'y'", "keys found")),
        (("featurize", "{}/s.extxyz", "--out", "{}/o.zarr", "--label", "x"), ("NAME[:SHAPE]=KEY.PATH[unit]",)),
        (
            ("featurize", "{}/s.extxyz", "--out", "{}/o.zarr", "--labels", "none"),
            ("shipped mapping (mlearn, pymatgen-entries)",),
        ),
        (("featurize", "{}/s.extxyz", "--out", "{}/o.zarr", "--cutoff", "-1"), ("cutoff of -1",)),
        (
            ("featurize", "{}/s.extxyz", "--out", "{}/o.zarr", "--scheduler", "tcp://127.0.0.1:1"),
            ("tcp://127.0.0.1:1",),
        ),
        (("train", "{}/nothing.zarr", "--out", "{}/run"), ("nothing.zarr", "no such store")),
        (("train", "{}/g.zarr", "--out", "{}/run", "--config", "{}/none.yaml"), ("none.yaml", "no such file")),
        (("train", "--out", "{}/run"), ("no graph stores to train on", "G.zarr")),
        (("train", "{}/g.zarr", "--out", "{}/run", "--config", "{}/slip.yaml"), ("max_epoch", "'max_epochs'")),
        (
            ("train", "{}/g.zarr", "--out", "{}/run", "--repeat", "{}/run"),
            ("--repeat takes", "--from, --replay, --limit and --seeds"),
        ),
        (("train", "--out", "{}/again", "--repeat", "{}/none"), ("none", "not a run folder")),
        (("train", "{}/g.zarr", "--out", "{}/run", "--from", "{}/none.ckpt"), ("none.ckpt", "no such checkpoint")),
        (("export", "{}/nothing.ckpt", "--out", "{}/m.onnx"), ("nothing.ckpt", "no such checkpoint")),
        (("screen", "{}/g.zarr", "--model", "{}/bad.cif", "--out", "{}/s.zarr"), ("bad.cif", "not an ONNX file")),
        (("screen", "{}/none.zarr", "--model", "{}/m.onnx", "--out", "{}/s.zarr"), ("none.zarr", "no such store")),
        (("info", "{}/nothing"), ("nothing", "no such file")),
        (("info", "{}/s.extxyz"), ("s.extxyz", "not a store")),
    ],
)
def test_mistakes_are_one_line(
    folder: Path,
    words: tuple[str, ...],
    parts: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # In this process, which has already imported PyTorch: that takes a new process five seconds. Captured at the level
    # of file descriptors, so that a line printed by another thread or a C library is seen too.
    command = [word.format(folder) for word in words]
    monkeypatch.setattr(sys, "argv", ["equiscreen", *command])
    with pytest.raises(SystemExit) as end:
        main()
    printed = capfd.readouterr()
    assert_one_line(subprocess.CompletedProcess(command, int(str(end.value.code)), printed.out, printed.err), *parts)


def test_a_mistake_is_one_line_of_the_program(folder: Path) -> None:
    assert_one_line(equiscreen("featurize", folder / "nothing.cif", "--out", folder / "o.zarr"), "no such file")


@pytest.mark.parametrize(
    ("error", "part"),
    [
        (EquiscreenError(), "EquiscreenError"),
        (TimeoutError(), "TimeoutError"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "the disk is full (/x/y)"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "/x/y: Permission denied"),
        (MemoryError(), "out of memory"),
        (RuntimeError("can't start new thread"), "out of memory (can't start new thread)"),
        (ImportError("a.so: failed to map segment from shared object", name="a"), "out of memory (a.so"),
        (ModuleNotFoundError("No module named 'smact'", name="smact"), "pip install 'equiscreen[select]'"),
        (KeyError("x"), "unexpected KeyError: 'x'; please report this"),
        (AssertionError(), "unexpected AssertionError: AssertionError; please report this"),
        (RecursionError("too deep\nindeed"), "too deep indeed"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_one_line_with_a_reason(
    error: Exception, part: str, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with patch("equiscreen.cli.terminal.describe.describe", side_effect=error):  # whatever a library may raise
        assert_one_line(command_line("info", "x"), part)


def test_screening_from_the_command_line(folder: Path, exported: Callable[[str], Path]) -> None:
    out = folder / "scores.zarr"
    done = equiscreen("screen", folder / "g.zarr", "--model", exported("float32"), "--out", out)
    assert done.returncode == 0, done.stderr
    assert "6 structures (6 ok)" in done.stdout
    assert '"equiscreen-scores/1"' in in_this_process("info", out, "--json").stdout
    for path, parts in (
        (out, ("6 structures: 6 ok", "eV/atom", "model: ", "energy scheme: own")),
        (folder / "g.zarr", ("graph store, 6 structures", "read 6 = stored 6", "from s.extxyz")),
        (exported("float32"), ("ONNX model", "predicts energy (eV)", "Al, Cu, Au", "cutoff 4.5")),
    ):
        lines = in_this_process("info", path).stdout
        assert all(part in lines for part in parts), lines
        assert len(lines.splitlines()) <= 12
    verified = in_this_process("info", folder / "g.zarr", "--verify")
    assert "all checksums match" in verified.stdout


def test_stores_grow_and_join_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    more = write_extxyz(tmp_path / "more.extxyz", 3, seed=9)
    store, words = tmp_path / "g.zarr", ("--scheduler", "threads")
    saved = tmp_path / "labels.yaml"
    first = in_this_process(
        "featurize", more, "--out", store, "--label", "energy=energy[meV]", "--save-labels", saved, *words
    )
    assert first.returncode == 0, first.stderr
    assert "meV" in saved.read_text()
    grown = in_this_process("featurize", folder / "s.extxyz", "--out", store, "--append", "--labels", saved, *words)
    assert "read 6 = stored 6 + failed 0 + duplicate 0 (9 in the store)" in grown.stdout, grown.stderr
    joined = in_this_process("merge", store, folder / "g.zarr", "--out", tmp_path / "all.zarr", *words)
    assert "read 15 = stored 15 + failed 0 + duplicate 0" in joined.stdout, joined.stderr  # energies differ in unit
    assert_one_line(
        in_this_process("featurize", more, "--out", store, "--append", "--overwrite"), "--append", "--overwrite"
    )


@pytest.mark.slow
def test_candidates_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "candidates.parquet"
    done = in_this_process("generate", "--out", out, "--count", "50", "--seed", "1", "--elements", "Li,Na,O,Cl,F")
    assert done.returncode == 0, done.stderr
    assert "50 candidates" in done.stdout
    stored = in_this_process("featurize", out, "--out", tmp_path / "c.zarr", "--scheduler", "threads")
    assert "read 50 = stored 50" in stored.stdout, stored.stderr


def test_a_models_cutoff_is_taken(folder: Path, exported: Callable[[str], Path]) -> None:
    out = folder / "short.zarr"
    words = ("featurize", folder / "s.extxyz", "--out", out, "--model", exported("float32"), "--scheduler", "threads")
    assert in_this_process(*words).returncode == 0
    assert '"cutoff": 4.5' in in_this_process("info", out, "--json").stdout
    assert_one_line(in_this_process(*words, "--cutoff", "3"), "--cutoff and --model")


VERBS = [
    *("demo", "generate", "featurize", "merge", "train", "refit", "import", "export", "screen"),
    *("info", "relax", "hull", "cascade", "select", "report", "rank", "models", "references", "properties"),
    *("publish", "crate", "serve", "distill"),
]


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches(verb: str) -> None:
    done = in_this_process(verb, "--help")
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) > 10
    assert "  Example" in done.stdout
    assert f"      equiscreen {verb} " in done.stdout
    page = done.stdout.splitlines()
    assert page.index(next(line for line in page if line.startswith("  Example"))) == 4  # usage, what it does, example
    assert page == in_this_process(verb, "-h").stdout.splitlines()
    overview = in_this_process("--help").stdout.partition("The whole job:")[2]
    assert verb in overview
    assert "..." not in overview  # click cuts a summary that is longer than a line


def test_every_verb_and_option_is_explained() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    assert sorted(group.commands) == sorted(VERBS)
    for name, command in group.commands.items():
        for parameter in command.params:
            assert getattr(parameter, "help", ""), f"{name}: {parameter.name}"


def test_options_of_all_verbs_may_stand_before_the_verb(folder: Path) -> None:
    store = folder / "g.zarr"
    assert json.loads(in_this_process("--json", "info", store).stdout)["counts"]["stored"] == 6
    first = in_this_process("--quiet", "featurize", folder / "s.extxyz", "--out", folder / "q.zarr", "--limit", "2")
    assert (first.returncode, first.stdout, first.stderr) == (0, "", "")
    assert "Traceback" in in_this_process("-v", "info", folder / "none").stderr
    late = in_this_process("--model", "x", "rank").stderr
    assert "--model goes after the command: equiscreen COMMAND --model" in late
    assert "--json goes after the command" in in_this_process("--json").stderr
    assert "--version" in in_this_process("--verson").stderr


def test_a_slip_in_a_verb_or_option_is_told_with_the_right_word() -> None:
    assert "Did you mean 'screen'" in in_this_process("scren").stderr
    assert "--model" in in_this_process("screen", "--modl", "x").stderr


def test_accounts_are_json_for_machines_and_nothing_on_request(folder: Path, tmp_path: Path) -> None:
    words = ("featurize", folder / "s.extxyz", "--scheduler", "threads")
    done = in_this_process(*words, "--out", tmp_path / "a.zarr", "--json")
    assert json.loads(done.stdout)["stored"] == 6, done.stdout
    quiet = in_this_process(*words, "--out", tmp_path / "b.zarr", "--quiet")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert_one_line(in_this_process(*words, "--out", tmp_path / "b.zarr", "--json"), "b.zarr", "exists")
    assert "Traceback" in in_this_process(*words, "--out", tmp_path / "b.zarr", "--verbose").stderr


def test_estimates_reports_and_lists_are_whole_objects(
    folder: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    words = (folder / "s.extxyz", "--model", exported("float32"), "--out", tmp_path / "s.zarr")
    cost = json.loads(in_this_process("screen", *words, "--estimate", "--json").stdout)
    assert (cost["steps"]["featurize"]["records"], cost["steps"]["screen"]["structures"]) == (6, 6)
    cost = json.loads(in_this_process("relax", *words, "--max-steps", "2", "--estimate", "--json").stdout)
    assert (cost["steps"]["relax"]["structures"], cost["steps"]["relax"]["sample"]) == (6, 6)
    assert in_this_process("screen", *words, "--scheduler", "threads").returncode == 0
    page = json.loads(in_this_process("report", tmp_path / "s.zarr", "--json").stdout)
    assert (page["rows"], page["ranked_by"]) == (6, None)
    assert page["bytes_on_disk"] == Path(page["path"]).stat().st_size
    weights = json.loads(in_this_process("import", "--list", "--json").stdout)["weights"]
    assert {"7net-0", "nequix-mp-1"} <= {one["name"] for one in weights}
    assert weights[0]["sha256"][0].startswith("7052cb42")


def test_another_kind_of_input_is_told_with_the_command_that_makes_the_right_one(
    folder: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    crystals, graphs, scores = folder / "s.extxyz", folder / "g.zarr", tmp_path / "s.zarr"
    model = exported("float32")
    out = ("--out", tmp_path / "o")
    assert (
        in_this_process("screen", graphs, "--model", model, "--out", scores, "--scheduler", "threads").returncode == 0
    )
    for words, cure in (
        (("train", crystals, *out), f"`equiscreen featurize {crystals} --out G.zarr`"),
        (("train", graphs, "--replay", graphs, *out), "training.fine_tune.replay requires a checkpoint"),
        (("refit", graphs, graphs, *out), f"`equiscreen train {graphs} --out RUN`"),
        (("merge", crystals, *out), f"`equiscreen featurize {crystals} --out G.zarr`"),
        (("train", scores, *out), f"the graph store of its structures is {graphs}"),
        (("select", graphs, *out), f"`equiscreen screen {graphs} --model NAME --out S.zarr`"),
        (("report", crystals), f"`equiscreen screen {crystals} --model NAME --out S.zarr`"),
        (("export", model, *out), "use one that `equiscreen train` or `equiscreen import` wrote"),
        (("export", "7net-0", *out), "`equiscreen train` and `equiscreen import` write checkpoints"),
        (("screen", graphs, "--model", graphs, *out), f"`equiscreen train {graphs} --out RUN`"),
        (("info", crystals), "`equiscreen featurize`"),
    ):
        assert_one_line(in_this_process(*words), cure)


def test_scores_as_candidates_stand_for_their_structures(
    folder: Path, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    model, words = exported("float32"), ("--scheduler", "threads")
    first = in_this_process("relax", folder / "g.zarr", "--model", model, "--out", tmp_path / "r.zarr", *words)
    assert first.returncode == 0, first.stderr
    again = in_this_process("screen", tmp_path / "r.zarr", "--model", model, "--out", tmp_path / "s.zarr", *words)
    assert again.returncode == 0, again.stderr
    relaxed, scores = open_scores(tmp_path / "r.zarr"), open_scores(tmp_path / "s.zarr")
    assert scores.attrs["graph_store"]["path"] == "r.graphs.zarr"
    ok = relaxed["status"].values == 0
    assert np.allclose(scores["energy"].values[ok], relaxed["energy"].values[ok], atol=1e-5)


def test_version() -> None:
    assert in_this_process("-V").stdout.strip() == __version__
    assert equiscreen("--version").stdout.strip() == __version__  # the one real process that only prints


TINY = """
network: {hidden_irreps: 4x0e + 2x1o, n_radial: 2, correlation: 1, n_interactions: 1}
training: {max_epochs: 1, threads: 1, split: {validation: 0.34}}
"""


@pytest.mark.slow
def test_training_and_fine_tuning_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(TINY)
    trained = equiscreen("train", folder / "g.zarr", "--config", config, "--out", run)
    assert trained.returncode == 0, trained.stderr
    assert "1 epochs on 4 structures" in trained.stdout
    assert "validation MAE on 2: energy " in trained.stdout
    tuned = equiscreen("train", folder / "g.zarr", "--config", config, "--out", tmp_path / "tuned", "--from", run)
    assert tuned.returncode == 0, tuned.stderr
    assert f"checkpoint: {run}" in (tmp_path / "tuned" / "config.yaml").read_text()
    about = equiscreen("info", tmp_path / "tuned", "--json").stdout
    assert '"equiscreen-model/1"' in about
    assert '"members": 1' in about


@pytest.mark.slow
def test_an_ensemble_and_a_repetition_from_the_command_line(folder: Path, tmp_path: Path) -> None:
    config, run = tmp_path / "c.yaml", tmp_path / "run"
    config.write_text(TINY)
    trained = equiscreen("train", folder / "g.zarr", "--config", config, "--out", run, "--seeds", "2")
    assert trained.returncode == 0, trained.stderr
    assert "2 members" in trained.stdout
    assert '"members": 2' in equiscreen("info", run, "--json").stdout
    exported = equiscreen("export", run, "--out", tmp_path / "m.onnx")
    assert exported.returncode == 0, exported.stderr
    assert '"members": 2' in equiscreen("info", tmp_path / "m.onnx", "--json").stdout
    again = equiscreen("train", "--repeat", run / "member-1", "--out", tmp_path / "again")
    assert again.returncode == 0, again.stderr
    assert_one_line(
        equiscreen("train", folder / "g.zarr", "--config", config, "--out", tmp_path / "t", "--from", run),
        "an ensemble; fine-tune one of its members",
    )


def test_the_stored_command_holds_no_secret_and_no_output() -> None:
    words = ["screen", "https://me:secret@host/c.zip?token=secret", "--model", "m.onnx", "--out", "s3://a:secret@b/s"]
    assert command_line(words) == "equiscreen screen 'https://***@host/c.zip?token=***' --model m.onnx"
    assert command_line([*words[:4], "--out=s3://a:secret@b/s"]) == command_line(words)
