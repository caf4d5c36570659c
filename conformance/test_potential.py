"""The laws, for the potential given on the command line: ``pytest --pyargs equiscreen.conformance --model MODEL``."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from equiscreen.conformance.laws import PotentialLaws
from equiscreen.conformance.plugin import SUBJECT
from equiscreen.pipeline.graphs.potential import Potential


class TestPotential(PotentialLaws):
    """Laws of the potential that `--model` or `--calculator` gives."""

    # Wide enough for any envelope; where the cutoff is known exactly, the law also looks for jumps.
    near_the_cutoff = (0.05, 0.5)

    @pytest.fixture(autouse=True)
    def _claims(self, pytestconfig: pytest.Config) -> None:
        subject = pytestconfig.stash.get(SUBJECT, None)
        if subject is None:  # collected by the path of the file, or with the whole package
            pytest.fail(
                "no potential was given; run `pytest --pyargs equiscreen.conformance --model MODEL`", pytrace=False
            )
        self.tolerance, self.float64, self.exact = subject.tolerance, subject.float64, subject.exact
        self.reflections, self.cutoff_known = subject.reflections, subject.cutoff_known

    @pytest.fixture
    def potential(self, pytestconfig: pytest.Config) -> Potential:
        """The potential given on the command line."""
        return pytestconfig.stash[SUBJECT].potential

    @pytest.fixture
    def elements(self, pytestconfig: pytest.Config) -> Sequence[int]:
        """Atomic numbers of the elements that are tested."""
        return pytestconfig.stash[SUBJECT].elements
