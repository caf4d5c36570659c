"""Catalogue of the models that are known by name, one entry for each fidelity."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...model.pretrained.registry import REGISTRY, Published
from ...pipeline.errors import ModelFileError
from ...pipeline.suggestions import unknown_name

# Minimum number of hash digits in `NAME@HASH`.
_MIN_DIGITS = 8
# Edges per second (energy, forces and stress) on both cores of the machine in tests/benchmarks/pretrained_rate.txt, the
# source of the figure. Models that are not listed have not been measured.
_EDGES_PER_SECOND = {"7net-0": 47_000}
# Largest difference between the energies of 32 random structures and of their mirror images, eV/atom, as `equiscreen
# import` prints it (torch 2.13): a lower bound for other structures.
_MIRROR_VIOLATION = {"7net-0": 1e-4, "7net-l3i5": 2e-4, "7net-mf-0/PBE": 9e-4, "7net-mf-0/R2SCAN": 6e-4}
# Root mean square error of energies above hull, eV/atom, on the 215,488 unique prototypes of WBM, crystals that are not
# in the training data: Matbench Discovery (Riebesell et al., Nat. Mach. Intell. 7, 836 (2025)), section `discovery`
# of the models' YAML files in its repository.
_HULL_ERROR = {"7net-0": 0.092, "7net-l3i5": 0.087, "nequix-mp-1-pft": 0.085}


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model that is known by name.

    Attributes:
        published: The published weights.
        fidelity: Fidelity of the weights; empty if they have only one.
    """

    published: Published
    fidelity: str

    @property
    def name(self) -> str:
        """Name for `--model`: the name of the weights, with the fidelity if there are several."""
        return f"{self.published.name}/{self.fidelity}" if self.fidelity else self.published.name

    @property
    def sha256(self) -> str:
        """SHA-256 of the weights file."""
        return self.published.sha256[0]

    @property
    def scheme(self) -> str:
        """Energy scheme of the predictions."""
        return self.published.schemes[self.fidelity]

    @property
    def mirror_violation(self) -> float | None:
        """Largest energy difference seen between mirror images, eV/atom; 0 for O(3), None if not measured."""
        return 0.0 if self.published.symmetry == "o3" else _MIRROR_VIOLATION.get(self.name)

    @property
    def hull_error(self) -> float | None:
        """Root mean square error of energies above hull of relaxed new crystals, eV/atom; None if unknown."""
        return _HULL_ERROR.get(self.name)

    @property
    def edges_per_second(self) -> int | None:
        """Measured speed, edges/s on two cores; None if it was not measured."""
        return _EDGES_PER_SECOND.get(self.name)

    @property
    def source(self) -> str:
        """Where the weights come from: a package, or a URL."""
        return "package sevenn" if self.published.packaged else self.published.url

    def to_dict(self) -> dict[str, Any]:
        """Return everything that is known about the model, ready for JSON."""
        weights = self.published
        return {
            "name": self.name,
            "aliases": [*weights.aliases],
            "good_for": weights.purpose,
            "licence": weights.licence,
            "citation": weights.citation,
            "training_data": weights.training_data,
            "functional": weights.functionals[self.fidelity],
            "energy_scheme": self.scheme,
            "n_elements": weights.n_elements,
            "cutoff_angstrom": weights.cutoff,
            "symmetry": weights.symmetry,
            "mirror_violation_eV_per_atom": self.mirror_violation,
            "hull_error_eV_per_atom": self.hull_error,
            "size_bytes": weights.size,
            "edges_per_second": self.edges_per_second,
            "source": self.source,
            "sha256": self.sha256,
        }


CATALOG: Mapping[str, CatalogModel] = {
    model.name: model
    for model in (CatalogModel(weights, fidelity) for weights in REGISTRY.values() for fidelity in weights.schemes)
}
_WEIGHTS = {name: weights for weights in REGISTRY.values() for name in (weights.name, *weights.aliases)}


def is_known(name: str) -> bool:
    """Whether a name, with or without fidelity and hash, refers to weights in the catalogue."""
    return name.partition("@")[0].partition("/")[0] in _WEIGHTS


def find_model(name: str, modality: str | None = None) -> CatalogModel:
    """Find a model by ``NAME[/FIDELITY][@HASH]``.

    Args:
        name: The name; HASH is the first 8 or more digits of the SHA-256 of the weights file.
        modality: Fidelity, if the name does not give one; None chooses the first, which is PBE.

    Raises:
        ModelFileError: There is no such name or fidelity, the name and `modality` give different fidelities, or the
            hash is malformed or does not match the weights.
    """
    whole, at, digits = name.partition("@")
    base, slash, stated = whole.partition("/")
    weights = _WEIGHTS.get(base)
    if weights is None:
        raise ModelFileError(unknown_model(name))
    fidelity = stated if slash else modality
    if modality is not None and fidelity != modality:
        raise ModelFileError(
            f"{name}: the name gives the fidelity {stated}, but `--modality` gives {modality}; use only one of the two"
        )
    if fidelity is not None and "" in weights.schemes:
        raise ModelFileError(f"{name}: {base} has only one fidelity; use `{base}`")
    if fidelity is not None and fidelity not in weights.schemes:
        raise ModelFileError(f"{name}: {unknown_name('fidelity', fidelity, weights.schemes)}")
    if at and not re.fullmatch(f"[0-9a-fA-F]{{{_MIN_DIGITS},64}}", digits):
        raise ModelFileError(
            f"{name}: @ must be followed by the first digits (at least {_MIN_DIGITS}) of the weights' SHA-256: "
            f"{base}@{weights.sha256[0][:_MIN_DIGITS]}"
        )
    if not weights.sha256[0].startswith(digits.lower()):
        raise ModelFileError(
            f"{name}: the SHA-256 of {base} is {weights.sha256[0]}, which does not begin with the digits after @; "
            "leave out @ and the digits to use these weights"
        )
    return CATALOG[CatalogModel(weights, next(iter(weights.schemes)) if fidelity is None else fidelity).name]


def unknown_model(name: str) -> str:
    """Return a message about a name that is neither in the catalogue nor a file."""
    names = [*dict.fromkeys([*_WEIGHTS, *CATALOG])]
    reason = unknown_name("model", name.partition("@")[0], names)
    return f"{reason} (there is no such file either; `equiscreen models` lists the models)"
