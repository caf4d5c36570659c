"""Cluster files, and the job scripts that follow from them. No batch system is needed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from equiscreen.pipeline import featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError
from equiscreen.pipeline.runs.batch.jobs import job_options
from equiscreen.pipeline.runs.batch.settings import BatchSettings, BatchSystem

from ....conftest import write_extxyz

LEAST = 'memory: 8GB\nwalltime: "02:00:00"\n'
WHOLE = """\
jobs: 3
cores: 4
memory: 8GB
walltime: 1-00:00:00
workers: 2
queue: long
account: "1234"
interface: ib0
prologue: |
  module load python
  source env/bin/activate
directives: ["--qos=low"]
"""


def loaded(folder: Path, text: str) -> BatchSettings:
    (folder / "cluster.yaml").write_text(text)
    return BatchSettings.load(folder / "cluster.yaml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (LEAST + "qeue: long", "unknown key 'qeue'; did you mean 'queue'?"),
        ("memory: 8GB", "walltime: is missing; add it"),
        ("memory: 8GB\nwalltime: 8:00:00", 'walltime: must be HH:MM:SS or D-HH:MM:SS, in quotes, such as "08:00:00"'),
        ('memory: 8GB\nwalltime: "00:00:59"', "walltime must be at least one minute"),
        ('memory: 8\nwalltime: "02:00:00"', "memory: must be text; put it in quotes"),
        ('memory: "8"\nwalltime: "02:00:00"', "memory: must be an amount with a unit, such as 16GB"),
        (LEAST + "account: 1234", "account: must be text; put it in quotes"),
        (LEAST + "cores: 2.5", "cores: must be a whole number"),
        (LEAST + "cores: 2\nworkers: 3", "workers: 3 workers need at least as many cores; there are 2"),
        (LEAST + 'queue: "a\\nb"', "queue: must be one line of text"),
        (LEAST + "gpus: 2", "gpus: input should be less than or equal to 1"),
        (LEAST + LEAST, "cannot be read: the key 'memory' is given twice"),
        ("slurm", "is not a cluster file; it needs at least `memory:` and `walltime:`"),
    ],
)
def test_a_wrong_cluster_file_is_one_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as error:
        loaded(tmp_path, text)
    assert told in str(error.value)
    file = tmp_path / "cluster.yaml"
    assert str(error.value).startswith(f"{file} {told}" if told.startswith(("is ", "cannot ")) else f"{file}: ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hours", ["00:01:00", "00:30:00", "02:00:00", "7-00:00:00"])
def test_workers_end_before_the_walltime_of_their_job(hours: str) -> None:
    settings = BatchSettings(memory="8GB", walltime=hours)
    last = settings.lifetime_s + settings.stagger_s
    assert settings.walltime_s / 4 <= settings.lifetime_s - settings.stagger_s < last
    assert settings.walltime_s - last >= min(15, settings.walltime_s / 4)


def script(system: BatchSystem, settings: BatchSettings) -> str:
    jobqueue = pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    job_class: Any = getattr(jobqueue, f"{system.upper()}Cluster").job_cls
    return str(job_class("tls://10.0.0.1:8786", name="w", **job_options(system, settings)).job_script())


@pytest.mark.parametrize(
    ("system", "lines"),
    [
        (
            BatchSystem.SLURM,
            (
                *("#SBATCH -p long", "#SBATCH -A 1234", "#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G"),
                *("#SBATCH -t 24:00:00", "#SBATCH --qos=low"),
            ),
        ),
        (BatchSystem.PBS, ("#PBS -q long", "#PBS -A 1234", "#PBS -l walltime=24:00:00", "#PBS --qos=low")),
        (BatchSystem.LSF, ("#BSUB -q long", '#BSUB -P "1234"', "#BSUB -n 4", "#BSUB -W 24:00", "#BSUB --qos=low")),
        (BatchSystem.SGE, ("#$ -q long", "#$ -P 1234", "#$ -l h_rt=24:00:00", "#$ --qos=low")),
    ],
)
def test_the_job_script_asks_for_what_the_file_says(
    tmp_path: Path, system: BatchSystem, lines: tuple[str, ...]
) -> None:
    written = script(system, loaded(tmp_path, WHOLE)).splitlines()
    assert set(lines) <= set(written)
    assert written.index("module load python") < written.index("source env/bin/activate")
    (command,) = [line for line in written if "distributed.cli.dask_worker" in line]
    assert command.startswith(sys.executable)
    for words in (
        "tls://10.0.0.1:8786",
        "--nthreads 2",
        "--nworkers 2",
        "--interface ib0",
        "--death-timeout 180",
        "--lifetime=85800s",
    ):
        assert words in command


def test_a_job_with_a_gpu_runs_one_worker(tmp_path: Path) -> None:
    settings = loaded(tmp_path, LEAST + "cores: 8\ngpus: 1")
    assert settings.processes == 1
    assert "#SBATCH --gres=gpu:1" in script(BatchSystem.SLURM, settings)
    assert "--resources=GPU=1" in script(BatchSystem.SLURM, settings)
    with pytest.raises(ConfigError, match="gpus: pbs has no standard option for GPUs"):
        job_options(BatchSystem.PBS, settings)


@pytest.mark.parametrize(
    ("scheduler", "told"),
    [
        ("slurm", "slurm: the cluster file is missing; use --scheduler slurm:cluster.yaml"),
        ("slurm:none.yaml", "none.yaml cannot be read: No such file or directory"),
        ("slurm:cluster.yaml", "sbatch was not found on this machine"),
        ("lsf:cluster.yaml", "bsub was not found on this machine"),
    ],
)
def test_what_cannot_be_submitted_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str, told: str
) -> None:
    pytest.importorskip("dask_jobqueue", reason="the extra `cluster` is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    source = write_extxyz(tmp_path / "s.extxyz", 2)
    (tmp_path / "cluster.yaml").write_text(LEAST)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(EquiscreenError) as error:
        featurize(source, tmp_path / "g.zarr", scheduler=scheduler)
    assert str(error.value).startswith(told)
    assert sorted(tmp_path.iterdir()) == before


def test_without_dask_jobqueue_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    (tmp_path / "cluster.yaml").write_text(LEAST)
    with pytest.raises(EquiscreenError) as error:
        featurize(
            write_extxyz(tmp_path / "s.extxyz", 2), tmp_path / "g.zarr", scheduler=f"slurm:{tmp_path / 'cluster.yaml'}"
        )
    assert str(error.value) == "dask-jobqueue is not installed: pip install 'equiscreen[cluster]'"
