"""Buffers that stay in float64 when a module is cast."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class Float64Buffers(nn.Module):
    """A module with constants that stay in float64 when the module is cast, such as reference energies and scales."""

    def __init__(self) -> None:
        super().__init__()
        self._float64_names: list[str] = []

    def register_float64(self, name: str, value: Tensor, *, persistent: bool = False) -> None:
        """Register a constant that moves between devices but is never cast."""
        self.register_buffer(name, value, persistent=persistent)
        self._float64_names.append(name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Float64Buffers:
        exact = {name: self.get_buffer(name) for name in self._float64_names}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, value in exact.items():
            setattr(self, name, value.to(self.get_buffer(name).device))
        return self
