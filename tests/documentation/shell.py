"""Shell blocks in bash, with an `equiscreen` that runs in the test process, which has imported everything already.

Starting Python and its libraries takes several seconds for each command, and starting Dask workers as many again. So
bash finds a small client under the name `equiscreen`, which passes its words, folder, environment and output to the
test process. All else is real: globs, pipes, variables, other programs.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from equiscreen.cli.app import main
from equiscreen.model.training import ensemble, repeat, train

from ..conftest import traced_once

# Most epochs of a training: pages show settings that are good for a user.
EPOCHS = 2
_CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    words = [os.getcwd(), dict(os.environ), sys.argv[1:]]
    socket.send_fds(server, [json.dumps(words).encode()], [1, 2])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 70))
"""
_VERBS_WITH_WORKERS = frozenset({"featurize", "merge", "screen", "relax", "cascade", "rank", "properties", "distill"})
_POLL_S = 0.02


@contextlib.contextmanager
def short_trainings() -> Iterator[None]:
    """Train for at most `EPOCHS` epochs in this block."""
    whole = train.make_recipe

    def short(*arguments: Any, **options: Any) -> Any:
        recipe = whole(*arguments, **options)
        settings = recipe.config.training
        settings = settings.model_copy(update={"max_epochs": min(settings.max_epochs, EPOCHS)})
        return replace(recipe, config=recipe.config.model_copy(update={"training": settings}))

    with pytest.MonkeyPatch.context() as patch:
        for module in (train, ensemble, repeat):
            patch.setattr(module, "make_recipe", short)
        yield


@dataclass(frozen=True, slots=True)
class Ended:
    """How a block ended.

    Attributes:
        code: Exit code of bash.
        output: What it printed, standard output and error together.
    """

    code: int
    output: str


class Shell:
    """Runs the shell blocks of a page; programs that they leave in the background live as long as this object.

    Args:
        programs: Folders of programs that the scripts may use, besides those of this environment.
    """

    def __init__(self, *programs: Path) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="docs-")
        folder = Path(self._scratch.name)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / "socket"))
        self._listener.listen()
        self._listener.settimeout(_POLL_S)
        client = folder / "bin" / "equiscreen"
        client.parent.mkdir()
        client.write_text(_CLIENT.format(python=sys.executable, address=str(folder / "socket")))
        client.chmod(0o755)
        self._programs = [client.parent, *programs, Path(sys.executable).parent]
        self._groups: list[int] = []

    def run(self, script: str, folder: Path) -> Ended:
        """Run a script; it ends at the first command that fails."""
        with (Path(self._scratch.name) / "output").open("w+b") as output:
            process = subprocess.Popen(
                ["bash", "-eu", "-o", "pipefail", "-c", script],
                cwd=folder,
                env={**os.environ, "PATH": os.pathsep.join([*map(str, self._programs), os.environ["PATH"]])},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            self._groups.append(process.pid)
            while process.poll() is None:
                with contextlib.suppress(TimeoutError):
                    connection, _ = self._listener.accept()
                    with connection:
                        connection.settimeout(None)
                        _serve(connection)
            output.seek(0)
            return Ended(process.returncode, output.read().decode(errors="replace"))

    def close(self) -> None:
        """End programs that still run in the background."""
        for group in self._groups:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGTERM)
        self._listener.close()
        self._scratch.cleanup()


def _serve(connection: socket.socket) -> None:
    """Run the command of a client, with its folder, environment and output, and send it the exit code."""
    data, files, _, _ = socket.recv_fds(connection, 1 << 20, 2)
    while more := connection.recv(1 << 20):
        data += more
    folder, environment, words = json.loads(data)
    verb = next((word for word in words if not word.startswith("-")), "")
    if verb in _VERBS_WITH_WORKERS and not any(word.startswith("--scheduler") for word in words):
        words = [*words, "--scheduler", "threads"]
    code = 0
    with (
        open(files[0], "w") as out,  # noqa: PTH123 - a file descriptor
        open(files[1], "w") as err,  # noqa: PTH123 - a file descriptor
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, environment, clear=True),
        mock.patch.object(sys, "argv", ["equiscreen", *words]),
        short_trainings(),
        traced_once(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
    connection.sendall(str(code).encode())


def without_installation(script: str) -> tuple[str, list[str]]:
    """Separate the lines that install packages from the others, which are run.

    Returns:
        The script without those lines, and the lines.
    """
    lines = script.splitlines(keepends=True)
    installing = [line for line in lines if line.lstrip().startswith("pip install ")]
    return "".join(line for line in lines if line not in installing), installing
