"""Every public name is explained, with an example that `make docs-test` runs."""

from __future__ import annotations

import doctest
import inspect
import re
from importlib import import_module

import equiscreen
import pytest

PACKAGES = ("pipeline", "screening", "publishing", "campaigns", "export", "model")
NAMES = [f"{package}.{name}" for package in PACKAGES for name in import_module(f"equiscreen.{package}").__all__]


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_has_an_example_that_runs(name: str) -> None:
    package, _, attribute = name.partition(".")
    if attribute == "OnnxModel":
        pytest.importorskip("torch_sim", reason="the test extra has TorchSim on Python 3.12 and later")
    text = inspect.getdoc(getattr(import_module(f"equiscreen.{package}"), attribute)) or ""
    examples = doctest.DocTestParser().get_examples(text)
    assert "\nExample:\n    >>> " in text
    # The example of `serve` starts a server that runs until it is interrupted.
    assert any(doctest.SKIP in example.options for example in examples) == (name == "publishing.serve")


def test_the_package_shows_what_matters_most() -> None:
    text = equiscreen.__doc__ or ""
    assert sorted(re.findall(r"^\* ``(\w+)``:", text, re.MULTILINE)) == sorted(equiscreen.__all__)
    assert len(equiscreen.__all__) == 10
    assert doctest.DocTestParser().get_examples(text)
    for name in equiscreen.__all__:
        value = getattr(equiscreen, name)
        (package,) = (p for p in PACKAGES if name in import_module(f"equiscreen.{p}").__all__)
        assert value is getattr(import_module(f"equiscreen.{package}"), name)
    assert set(equiscreen.__all__) <= set(dir(equiscreen))
