"""The pytest plugin behind ``pytest --pyargs equiscreen.conformance``, loaded by pytest through its entry point.

The options cannot be defined in a conftest.py, which pytest imports too late in an installed package. The plugin is
loaded in every run of pytest in an environment with equiscreen, so it does nothing, and imports nothing, unless these
laws are requested; other test suites may therefore use the same names for their options.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .subject import Subject

PACKAGE = "equiscreen.conformance"
SUBJECT = pytest.StashKey["Subject"]()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config, parser: pytest.Parser, args: list[str]) -> None:
    """Add the options if the laws are requested."""
    if not (early_config.known_args_namespace.pyargs and any(word.startswith(PACKAGE) for word in args)):
        return
    pytest.register_assert_rewrite(f"{PACKAGE}.laws")
    group = parser.getgroup(PACKAGE, "physical laws of a potential (equiscreen.conformance)")
    group.addoption(
        "--model",
        dest="conformance_model",
        help="ONNX file from `equiscreen export`, the name of published weights such as 7net-0, or a checkpoint.",
    )
    group.addoption(
        "--calculator",
        dest="conformance_calculator",
        metavar="MODULE:NAME",
        help="Test an ASE calculator instead of --model: the class or function that makes it, such as "
        "ase.calculators.emt:EMT.",
    )
    group.addoption(
        "--elements",
        dest="conformance_elements",
        default="",
        metavar="SYMBOLS",
        help="Elements to test, such as Al,Cu. Default: all elements of the model; required for a calculator.",
    )
    group.addoption(
        "--tolerance",
        dest="conformance_tolerance",
        type=float,
        metavar="X",
        help="Largest relative difference that rounding may cause. Default: 1e-10 for calculators and float64 models, "
        "2e-5 for float32 models; use 2e-5 for a calculator in float32.",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Load the potential early, so that a mistake on the command line is reported in one line."""
    option = config.option
    if hasattr(option, "conformance_model") and not option.help:
        config.stash[SUBJECT] = _subject(config)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """State which potential is tested."""
    return [f"potential: {config.stash[SUBJECT].describe()}"] if SUBJECT in config.stash else []


def _subject(config: pytest.Config) -> Subject:
    option = config.option
    if (option.conformance_model is None) == (option.conformance_calculator is None):
        raise pytest.UsageError(f"{PACKAGE} needs either --model MODEL or --calculator MODULE:NAME, and not both")
    try:
        from ..pipeline.errors import EquiscreenError  # noqa: PLC0415 - see above
        from .subject import parse_elements, subject_of_calculator, subject_of_model  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise pytest.UsageError(f"{error.name} is not installed: pip install 'equiscreen[conformance]'") from error
    if (here := str(config.invocation_params.dir)) not in sys.path:
        sys.path.append(here)  # for a calculator in a file in the current folder
    try:
        elements = parse_elements(option.conformance_elements)
        if option.conformance_model is not None:
            return subject_of_model(option.conformance_model, elements, option.conformance_tolerance)
        return subject_of_calculator(option.conformance_calculator, elements, option.conformance_tolerance)
    except EquiscreenError as error:
        raise pytest.UsageError(str(error)) from error
