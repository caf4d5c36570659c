"""Buffers that stay in float64 when a module is cast."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ExactBuffers(nn.Module):
    """A module some of whose constants keep their float64: sums over structures, and the units of what is summed."""

    def __init__(self) -> None:
        super().__init__()
        self._exact: list[str] = []

    def register_exact(self, name: str, value: Tensor, *, persistent: bool = False) -> None:
        """Add a constant that moves to other devices but is not cast."""
        self.register_buffer(name, value, persistent=persistent)
        self._exact.append(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactBuffers:
        exact = {name: self.get_buffer(name) for name in self._exact}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            setattr(self, name, value.to(self.get_buffer(name).device))
        return self
