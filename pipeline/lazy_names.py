"""Public names of a package that import their module only when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def lazy_names(
    package: str, modules: Mapping[str, str], **needed: tuple[str, ...]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Make the `__getattr__` and `__dir__` of a package whose public names are imported on first use.

    Args:
        package: Name of the package (`__name__`).
        modules: Relative name of the module that defines each public name.
        needed: For each public name that needs optional packages, these packages. If one of them is not installed,
            `dir` leaves the name out; otherwise `help`, which imports whatever `dir` lists, would fail.
    """

    def get(name: str) -> Any:
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(modules[name], package), name)
        setattr(sys.modules[package], name, value)  # so that this function runs once per name
        return value

    def names() -> list[str]:
        missing = {name for name, others in needed.items() if any(find_spec(other) is None for other in others)}
        return sorted({*vars(sys.modules[package]), *modules} - missing)

    return get, names
