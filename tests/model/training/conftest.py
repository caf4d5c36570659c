"""Plots of trainings: they are not rendered, which would take most of the time, except where a test looks at them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from equiscreen.model.evaluation import plots

save = plots._save


@pytest.fixture(scope="package", autouse=True)
def _no_plots() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", lambda *_: None)
        yield


@contextmanager
def plots_drawn() -> Iterator[None]:
    """Render the plots of trainings in this block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plots, "_save", save)
        yield
