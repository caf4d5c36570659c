"""Loops that numpy has no words for, compiled by numba."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a function at its first call, and keep the machine code for other processes.

    Without fastmath: sums are taken in the order in which they are written, so that results are the same to the last
    bit wherever they are computed. Other threads go on meanwhile. The code is kept beside the module, or in the user's
    cache folder where that cannot be written (numba's NUMBA_CACHE_DIR sets another).
    """
    return cast("Callable[Parameters, Result]", numba.njit(cache=True, nogil=True)(function))
