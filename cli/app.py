"""The command `equiscreen`: its verbs in the order of `--help`, its version, and how it reports errors."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from .. import __version__
from ..pipeline.errors import EquiscreenError
from .demo import demo
from .export import export
from .info import info
from .model import import_, train
from .pipeline import featurize, generate, merge
from .results import hull, report, select
from .screening import cascade, relax, screen

app = typer.Typer(
    help="Screen crystal structures with E(3)-equivariant neural networks.\n\n"
    "The usual workflow: `featurize` structure files into a graph store, `train` a network on it (or `import` "
    "published weights), `export` the network to ONNX, `screen` or `relax` candidates with the ONNX file, then rank "
    "them with `hull`, `select` and `report`. `equiscreen demo` runs all of this on an example in a few minutes; "
    "`equiscreen VERB --help` explains each verb.",
    no_args_is_help=True,
    add_completion=False,
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
}

# In the order of the workflow, which is that of `--help`.
_VERBS: dict[str, Callable[..., None]] = {
    "demo": demo,
    "generate": generate,
    "featurize": featurize,
    "merge": merge,
    "train": train,
    "import": import_,
    "export": export,
    "screen": screen,
    "relax": relax,
    "hull": hull,
    "cascade": cascade,
    "select": select,
    "report": report,
    "info": info,
}
for _name, _verb in _VERBS.items():
    app.command(_name)(_verb)


def _print_version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. A user's mistake prints one line to standard error and exits with code 1."""
    try:
        app()
    except EquiscreenError as error:
        print(f"equiscreen: {error}", file=sys.stderr)
        sys.exit(1)
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0], "cpu,train")
        print(f"equiscreen: {error.name} is not installed: pip install 'equiscreen[{extra}]'", file=sys.stderr)
        sys.exit(1)
    except OSError as error:
        full = "the disk is full; free some space and run the same command again" if error.errno == errno.ENOSPC else ""
        print(f"equiscreen: {full or error}", file=sys.stderr)
        sys.exit(1)
