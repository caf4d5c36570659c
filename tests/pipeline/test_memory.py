"""A lack of memory is recognised whichever library reports it, and nothing else is mistaken for it."""

from __future__ import annotations

import pytest
import torch
from equiscreen.pipeline.memory import is_out_of_memory

MESSAGES = (
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 "
    "bytes. Error code 12 (Cannot allocate memory)",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : bfc_arena.cc:376 Failed to allocate memory for requested buffer",
    "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
    "bad allocation",
    "CUDA failure 2: out of memory",
    "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED",
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_of_libraries_are_recognised(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("no such words")])
def test_error_types_are_recognised_whatever_they_say(error: BaseException) -> None:
    assert is_out_of_memory(error)


def test_pytorch_reports_it_on_the_cpu() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), RuntimeError("sizes do not match")])
def test_other_errors_are_not(error: BaseException) -> None:
    assert not is_out_of_memory(error)
