"""A Slurm of two nodes, both on this machine, for tests: its own daemons and configuration, in a folder."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NODES = ("n1", "n2")
START_S = 60
_PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scontrol", "munged")
_MUNGE_FOLDERS = ("/run/munge", "/var/log/munge", "/var/lib/munge", "/etc/munge")


def why_not() -> str:
    """Why this machine cannot run Slurm for a test; empty if it can."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install slurm-wlm munge"
    return "" if os.geteuid() == 0 else "only root can start the daemons of Slurm"


@contextmanager
def two_nodes(folder: Path) -> Iterator[None]:
    """Run Slurm in this block, with `SLURM_CONF` set for its commands."""
    with ExitStack() as stack:
        if subprocess.run(["munge", "--no-input"], capture_output=True, check=False).returncode:
            stack.enter_context(_daemon(_munged()))
        config = _write_configuration(folder)
        before = os.environ.get("SLURM_CONF")
        os.environ["SLURM_CONF"] = str(config)
        try:
            stack.enter_context(_daemon(["slurmctld", "-D"]))
            for node in NODES:
                stack.enter_context(_daemon(["slurmd", "-D", "-N", node]))
            _wait_until_idle(folder)
            yield
        finally:
            subprocess.run(["scancel", "--me"], capture_output=True, check=False)
            _wait_for_no_jobs()
            os.environ.pop("SLURM_CONF")
            if before is not None:
                os.environ["SLURM_CONF"] = before


def jobs() -> list[str]:
    """IDs of the jobs that wait or run."""
    done = subprocess.run(["squeue", "--noheader", "--format=%A"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def set_state(node: str, state: str) -> None:
    """Take a node down (``down``), or bring it back (``resume``)."""
    subprocess.run(["scontrol", "update", f"nodename={node}", f"state={state}", "reason=test"], check=True)


def _munged() -> list[str]:
    """The command of the daemon that authenticates Slurm's messages; its folders belong to its user."""
    user = pwd.getpwnam("munge")
    for name in _MUNGE_FOLDERS:
        Path(name).mkdir(exist_ok=True)
        for path in (Path(name), *Path(name).iterdir()):
            os.chown(path, user.pw_uid, user.pw_gid)
    return ["runuser", "--user=munge", "--", "munged", "--foreground"]


def _write_configuration(folder: Path) -> Path:
    host, cpus = socket.gethostname(), os.cpu_count() or 1
    (folder / "state").mkdir()
    settings = {
        "ClusterName": "test",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": 16817,
        "SlurmUser": "root",
        "AuthType": "auth/munge",
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool-%n",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd-%n.pid",
        "SlurmctldLogFile": folder / "slurmctld.log",
        "SlurmdLogFile": folder / "slurmd-%n.log",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_Core",
        "ReturnToService": 0,
        "MpiDefault": "none",
    }
    nodes = [
        f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={16818 + number} CPUs={cpus} RealMemory=4000"
        for number, node in enumerate(NODES, 1)
    ]
    partition = f"PartitionName=all Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP"
    lines = [*(f"{name}={value}" for name, value in settings.items()), *nodes, partition]
    path = folder / "slurm.conf"
    path.write_text("\n".join(lines) + "\n")
    return path


@contextmanager
def _daemon(words: list[str]) -> Iterator[None]:
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_idle(folder: Path) -> None:
    words = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if sorted(set(done.stdout.split())) == sorted(NODES):
            return
        time.sleep(0.5)
    raise AssertionError(f"the nodes are not idle after {START_S} s: {(folder / 'slurmctld.log').read_text()[-2000:]}")


def _wait_for_no_jobs() -> None:
    deadline = time.monotonic() + START_S
    while jobs() and time.monotonic() < deadline:
        time.sleep(0.5)
