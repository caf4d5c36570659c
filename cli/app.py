"""The program `equiscreen`: its commands in the order of `--help`, its version, and how it reports errors."""

from __future__ import annotations

import os
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from .. import __version__
from ..pipeline.errors import DISK_FULL, EquiscreenError, detail
from ..pipeline.memory import is_out_of_memory
from ..pipeline.redaction import redact_text
from .campaigns import distill, rank, references
from .demo import demo
from .export import export
from .info import info
from .model import import_, refit, train
from .models import models
from .pipeline import featurize, generate, merge
from .publishing import crate, publish, serve
from .results import hull, report, select
from .screening import cascade, properties, relax, screen
from .terminal.account import shows_tracebacks, with_messages
from .terminal.help_pages import Verb, Verbs

app = typer.Typer(
    help="Screen crystal structures with E(3)-equivariant neural networks.\n\n"
    "`rank` does the whole job: from structure files to a ranked list and a report. Step by step: `featurize` "
    "structure files into a graph store, `screen` or `relax` it with a model (published weights by name, or your own, "
    "made with `train` and `export`), then `hull`, `select` and `report`. `equiscreen demo` runs all of this on an "
    "example in a few minutes; `equiscreen COMMAND --help` explains each command. "
    "`--json`, `--quiet` and `--verbose` may come before or after the command.",
    no_args_is_help=True,
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

# The extra that installs each optional package; modules not listed here come with `cpu` and `train`.
_EXTRAS = {
    "pymatgen": "generate",
    "smact": "select",
    "ase_db_backends": "lmdb",
    "httpx": "remote",
    "s3fs": "remote",
    "aiohttp": "remote",
    "fastapi": "serve",
    "starlette": "serve",
    "uvicorn": "serve",
    "xpublish": "serve",
}

# The beginning of a URL after `Path` has collapsed its double slash.
_URL_AS_PATH = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
# Environment variable that makes errors show their tracebacks.
_TRACEBACK = "EQUISCREEN_TRACEBACK"

# Commands by stage of the workflow, in the order of `--help`.
_VERBS: dict[str, dict[str, Callable[..., None]]] = {
    "The whole job": {"rank": rank, "demo": demo},
    "Structures": {"generate": generate, "featurize": featurize, "merge": merge},
    "Models": {
        "models": models,
        "train": train,
        "distill": distill,
        "refit": refit,
        "import": import_,
        "export": export,
    },
    "Screening": {
        "screen": screen,
        "relax": relax,
        "references": references,
        "hull": hull,
        "cascade": cascade,
        "properties": properties,
    },
    "Results": {
        "select": select,
        "report": report,
        "publish": publish,
        "crate": crate,
        "serve": serve,
        "info": info,
    },
}


def _with_local_paths(verb: Callable[..., None]) -> Callable[..., None]:
    """Make a command reject URLs where it takes local paths, since `Path` would turn a URL into a local path."""

    @wraps(verb)
    def checked(**options: Any) -> None:
        given = [one for value in options.values() for one in (value if isinstance(value, list) else [value])]
        for path in given:
            if isinstance(path, Path) and _URL_AS_PATH.match(str(path)):
                url = str(path).replace(":/", "://", 1)
                raise EquiscreenError(
                    f"{url} is a URL, but only local paths can be used here; copy inputs to this machine first, "
                    "or copy outputs to the URL afterwards"
                )
        verb(**options)

    return checked


for _panel, _verbs in _VERBS.items():
    for _name, _verb in _verbs.items():
        app.command(_name, cls=Verb, rich_help_panel=_panel)(with_messages(_with_local_paths(_verb)))


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line.

    A failure prints one line on standard error, and the exit code is 1; a wrong option or argument gives the exit code
    2. With --verbose, the traceback is printed too; if EQUISCREEN_TRACEBACK is set, the exception is not caught.
    """
    if os.environ.get(_TRACEBACK):
        app()
    with _silent_background():
        try:
            app()
        except Exception as error:  # noqa: BLE001 - a user gets one line, not a traceback
            if shows_tracebacks():
                traceback.print_exception(error)
            print(f"equiscreen: {redact_text(_one_line(error))}", file=sys.stderr)
            sys.exit(1)


@contextmanager
def _silent_background() -> Iterator[None]:
    """Suppress tracebacks from threads and destructors of libraries; errors that matter also reach the main thread."""
    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = lambda _: None, lambda _: None
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = hooks


def _one_line(error: Exception) -> str:
    """Describe an error and its cure in one line."""
    if isinstance(error, EquiscreenError):
        return str(error) or type(error).__name__
    if is_out_of_memory(error):
        return f"out of memory ({detail(error)}); close other programs, or raise the memory limit (ulimit -v)"
    if isinstance(error, ModuleNotFoundError):
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "cpu,train")
        return f"{error.name} is not installed: pip install 'equiscreen[{extra}]'"
    if isinstance(error, OSError):
        return _system_error(error)
    return (
        f"unexpected {type(error).__name__}: {detail(error)}; please report this, with the output that the same "
        f"command prints when {_TRACEBACK}=1 is set"
    )


def _system_error(error: OSError) -> str:
    if error.errno in DISK_FULL:
        place = (
            error.filename or "where the output or the temporary files are; TMPDIR sets the folder for temporary files"
        )
        return f"the disk is full ({place}); free some space and run the same command again"
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else detail(error)
