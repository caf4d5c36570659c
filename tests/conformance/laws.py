"""The laws of `equiscreen.conformance` for the networks in `networks`, whose isolated atoms have stated energies."""

from __future__ import annotations

from equiscreen.conformance.laws import PotentialLaws

from ..conftest import REFERENCES


class NetworkLaws(PotentialLaws):
    """Laws of an O(3) network with the reference energies of `networks`."""

    isolated = REFERENCES
