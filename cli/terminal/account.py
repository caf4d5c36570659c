"""What a command prints: a summary of its run on standard output, as text or JSON, and notes on standard error."""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, is_dataclass
from functools import wraps
from typing import Annotated, Any, get_type_hints

import typer

from ...pipeline.redaction import redact_text


@dataclass(frozen=True)
class Messages:
    """Which messages the user wants to see.

    Attributes:
        as_json: Whether the summary of a run is printed as one JSON object.
        quiet: Whether only errors, and the JSON object if it is wanted, are shown.
        verbose: Whether an error shows its traceback.
    """

    as_json: bool = False
    quiet: bool = False
    verbose: bool = False


_wanted: ContextVar[Messages] = ContextVar("wanted", default=Messages())  # noqa: B039 - it is frozen
_OPTIONS = {
    "as_json": Annotated[
        bool, typer.Option("--json", help="Print the summary of the run as one JSON object instead of text.")
    ],
    "quiet": Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", help="Show no progress, notes or run summary; errors and --json output still appear."
        ),
    ],
    "verbose": Annotated[bool, typer.Option("--verbose", "-v", help="Show the traceback of an error.")],
}


def with_messages(verb: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options --json, --quiet and --verbose, except for those that it defines itself."""
    own = inspect.signature(verb)
    added = {name: kind for name, kind in _OPTIONS.items() if name not in own.parameters}

    @wraps(verb)
    def run(**words: Any) -> None:
        _wanted.set(Messages(**{name: words.pop(name) for name in added}))
        verb(**words)

    hints = get_type_hints(verb, include_extras=True) | added
    run.__annotations__ = hints
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [one.replace(kind=keyword, annotation=hints[name]) for name, one in own.parameters.items()]
    parameters += [inspect.Parameter(name, keyword, default=False, annotation=kind) for name, kind in added.items()]
    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    return run


def shows_progress() -> bool:
    """Whether a command shows its progress."""
    return not _wanted.get().quiet


def shows_tracebacks() -> bool:
    """Whether an error shows its traceback."""
    return _wanted.get().verbose


def wants_json() -> bool:
    """Whether the summary of a run is printed as one JSON object."""
    return _wanted.get().as_json


def tell(text: str) -> None:
    """Print a note on standard error, for example about the next step, unless --quiet is given."""
    if not _wanted.get().quiet:
        print(redact_text(text), file=sys.stderr, flush=True)


def account(text: object, found: object = None, **more: Any) -> None:
    """Print the summary of a finished run on standard output.

    Args:
        text: The summary as readable text.
        found: What the run returned, for the JSON object. For a dataset, the attributes and the number of rows are
            printed; a report or mapping is printed whole. If None, `text` is used instead.
        more: Additional entries of the JSON object, such as the path of the output.
    """
    wanted = _wanted.get()
    if wanted.as_json:
        facts = {name: redact_text(str(value)) for name, value in more.items()} | _facts(
            text if found is None else found
        )
        print(json.dumps(_plain({**facts, "summary": str(text)}), default=str))
    elif not wanted.quiet:
        print(text, flush=True)


def _facts(found: Any) -> dict[str, Any]:
    if is_dataclass(found) and not isinstance(found, type):
        return asdict(found)
    if hasattr(found, "attrs") and hasattr(found, "sizes"):
        return {"rows": int(found.sizes["structure"]), **found.attrs}
    return dict(found) if isinstance(found, Mapping) else {}


def _plain(value: Any) -> Any:
    """Convert a value for JSON: keys become strings, and numbers that JSON cannot represent become None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return _plain(value.tolist()) if hasattr(value, "tolist") else value  # NumPy arrays and numbers
