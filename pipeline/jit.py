"""Just-in-time compilation, with numba, of loops that NumPy cannot express."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import numba

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def compiled(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Compile a function on its first call, and cache the machine code for other processes.

    `fastmath` is off: sums are taken in the order in which they are written, so that results are identical to the last
    bit wherever they are computed. The GIL is released, so other threads keep running. The code is cached beside the
    module or, if that folder is not writable, in the user's cache folder; set NUMBA_CACHE_DIR to choose another folder.
    """
    return cast("Callable[Parameters, Result]", numba.njit(cache=True, nogil=True)(function))
