"""Errors caused by the machine, mainly by a lack of memory."""

from __future__ import annotations

# Neither PyTorch (on the CPU) nor ONNX Runtime has an error type for running out of memory. PyTorch's allocator for the
# CPU says "can't allocate memory", the arenas of ONNX Runtime "Failed to allocate memory for requested buffer"
# (core/framework/bfc_arena.cc), the C++ library "bad_alloc", and CUDA's libraries "out of memory" and "ALLOC_FAILED".
# Under a limit on the address space (ulimit -v), the dynamic loader says "failed to map segment", Python "can't start
# new thread", and Arrow "Failed to launch worker thread".
_MESSAGES = (
    "allocate memory",
    "bad_alloc",
    "bad allocation",
    "out of memory",
    "alloc_failed",
    "failed to map segment",
    "can't start new thread",
    "failed to launch worker thread",
)

# Errors that the content of an input cannot cause: a lack of memory, or a library that cannot be loaded.
MACHINE_ERRORS = (MemoryError, ImportError)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that there was not enough memory, on the CPU or on a GPU.

    `torch.OutOfMemoryError` is recognised by its name, so that this function does not need PyTorch.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    text = str(error).lower()
    return any(message in text for message in _MESSAGES)
