"""Objects of classes that are not imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from torch import Tensor


class Record:
    """An object read from a file: the arguments that it was made from, and its attributes.

    Attributes:
        kind: Dotted name of the class or function.
        args: Arguments of the class or function.
        fields: Attributes.
    """

    kind = ""
    args: tuple[Any, ...]
    fields: dict[str, Any]

    def __new__(cls, *args: Any) -> Self:
        """Keep the arguments; nothing is computed from them."""
        made = super().__new__(cls)
        made.args, made.fields = args, {}
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the attributes."""
        first, *others = state if isinstance(state, tuple) else (state,)
        for some in (first, *others):
            if isinstance(some, dict):
                self.fields |= some

    @property
    def name(self) -> str:
        """Name of the class, without its package."""
        return self.kind.rpartition(".")[2]

    def __getitem__(self, name: str) -> Any:
        """Return an attribute, submodule, parameter or buffer.

        Raises:
            KeyError: Nothing has this name.
        """
        for group in ("_modules", "_parameters", "_buffers"):
            found = self.fields.get(group) or {}
            if name in found:
                return found[name]
        return self.fields[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Return `self[name]`, or a default if nothing has this name."""
        try:
            return self[name]
        except KeyError:
            return default

    def child(self, *names: str) -> Record:
        """Return a submodule by the names on the way to it.

        Raises:
            KeyError: A submodule does not exist.
        """
        found = self
        for name in names:
            found = found.children()[name]
        return found

    def children(self) -> dict[str, Record]:
        """Return the submodules by name, without submodules that are None."""
        return {str(name): x for name, x in (self.fields.get("_modules") or {}).items() if isinstance(x, Record)}

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Yield parameters and buffers of the module and its submodules, by dotted name."""
        for group in ("_parameters", "_buffers"):
            for name, tensor in (self.fields.get(group) or {}).items():
                if isinstance(tensor, Tensor):
                    yield f"{prefix}{name}", tensor
        for name, module in self.children().items():
            yield from module.tensors(f"{prefix}{name}.")
