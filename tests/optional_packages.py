"""Packages that the test extra has only for some versions of Python."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from packaging.version import Version


def has_torch_sim() -> bool:
    """Whether TorchSim is installed, in a version that `OnnxModel` works with; these need Python 3.12 or later."""
    try:
        return Version(version("torch-sim-atomistic")) >= Version("0.6")
    except PackageNotFoundError:
        return False
