"""Record of the model whose predictions are the labels of a graph store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Self

from ..errors import StoreError
from .graph_store import GraphStore

LABELLING_MODEL = "labelling_model"


@dataclass(frozen=True, slots=True)
class LabellingModel:
    """The model that computed the labels of a store, as recorded in the root attribute `labelling_model`.

    Attributes:
        name: Name of the model, or of its file.
        sha256: SHA-256 of its ONNX file.
        weights_sha256: SHA-256 of its weights, as in the metadata of the file.
        energy_scheme: Energy scheme of its energies; see `pipeline.energy_schemes`.
        energy_basis: SHA-256 of the weights that define the zero of energy of the scheme ``own``: the model's own or,
            if the model was distilled itself, its teacher's.
        origin: What is known about the model: functional, training data, licence, citation.
    """

    name: str
    sha256: str
    weights_sha256: str
    energy_scheme: str
    energy_basis: str
    origin: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_stores(cls, stores: Sequence[GraphStore]) -> Self | None:
        """Return the model that computed the labels of all stores; None if it is unknown or not the same for all.

        Raises:
            StoreError: The record is damaged.
        """
        found = [store.attrs.get(LABELLING_MODEL) for store in stores]
        if not found or found[0] is None or any(other != found[0] for other in found):
            return None
        try:
            return cls(**found[0])
        except TypeError as error:
            raise StoreError(
                f"{stores[0].path}: the root attribute {LABELLING_MODEL!r} is invalid; write the store again"
            ) from error

    def to_attrs(self) -> dict[str, object]:
        """Return the root attribute that records the model."""
        return {LABELLING_MODEL: asdict(self)}

    def of_student(self) -> dict[str, str]:
        """Return the origin of a network that learned these labels, for its model card.

        ``distilled_from``, ``teacher_sha256`` and ``energy_basis`` identify the teacher; what is known about the
        teacher (functional, training data, licence, citation) follows under its own names.
        """
        kept = ("fidelity", "functional", "training_data", "licence", "citation")
        about = {name: self.origin[name] for name in kept if self.origin.get(name)}
        return {
            "distilled_from": self.name,
            "teacher_sha256": self.sha256,
            "energy_basis": self.energy_basis,
            **about,
        }
