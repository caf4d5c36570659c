"""Metadata of an exported ONNX model."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ...pipeline.errors import EquiscreenError, ModelFileError
from ...pipeline.graphs.potential import OutputSpec
from ...pipeline.structures.elements import pair_numbers

ONNX_SCHEMA = "equiscreen-onnx/1"
_PREFIX = "equiscreen."
# Fields that files from earlier versions lack.
_ADDED = {
    "minimum_distances",
    "mirror_structures",
    "limits",
    "probes",
    "probe_batch",
    "bytes_per_slot",
    "elements_per_slot",
}


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """Everything that a model file records about itself.

    Attributes:
        cutoff: Cutoff radius, angstrom.
        elements: Atomic numbers that the model covers.
        dtype: Data type of weights and features, "float32" or "float64"; energies are summed in float64.
        outputs: Outputs of the model.
        symmetry: Group under which the model is equivariant: ``o3`` or ``so3``.
        energy_scheme: Energy scheme of the model (the DFT settings and corrections of its energies).
        training_data: Hashes of the graph stores that the model was trained on, separated by spaces; empty for imported
            weights.
        weights_sha256: SHA-256 of all constants of the graph.
        parity: Largest differences from PyTorch, by output and dtype, measured at export.
        validation: Mean absolute errors on the validation structures, by output and unit.
        test: Mean absolute errors on the test structures, by output and unit; empty without test structures.
        equiscreen: Version of equiscreen that exported the model.
        members: Number of networks; if there are several, the model predicts their mean and their spread.
        mirror_violation: Largest differences between structures and their mirror images, by output and unit, for a
            network that is only SO(3)-equivariant; other structures may differ more.
        mirror_structures: Number of structures on which `mirror_violation` was measured.
        calibration: Root mean square of the ratio of error to spread, by output, for an ensemble.
        laws: Largest violations of symmetry, by output and operation, measured at export.
        limits: Largest `parity` and `laws` that an export accepts, by output and unit.
        probes: ``structures`` is the number of structures on which `laws` was measured; ``forces eV/angstrom`` is the
            largest force on an atom in the measurements of `laws` and `parity`.
        probe_batch: Structures, and what the model predicts for them on the CPU, to test it on a GPU; see
            `export.runtime.probe_batch`. None in files of earlier versions.
        bytes_per_slot: Memory of an evaluation for each neighbour slot, bytes; see `export.memory`. 0 in files of
            earlier versions.
        elements_per_slot: Elements of the largest tensor of an evaluation for each neighbour slot. 0 in files of
            earlier versions.
        origin: Origin of imported weights, of refitted reference energies and of distilled networks; see
            `model.checkpoint.ModelCard`.
        minimum_distances: Smallest distance of each pair of elements in the training data (angstrom), such as
            ``{"Na-Cl": 2.4}``; pairs that are never neighbours within the cutoff are absent. None if the training data
            are unknown, as for imported weights.
        schema: Version of this metadata schema.
    """

    cutoff: float
    elements: tuple[int, ...]
    dtype: str
    outputs: tuple[OutputSpec, ...]
    symmetry: str
    energy_scheme: str
    training_data: str
    weights_sha256: str
    parity: Mapping[str, float]
    validation: Mapping[str, float] = field(default_factory=dict)
    test: Mapping[str, float] = field(default_factory=dict)
    equiscreen: str = ""
    members: int = 1
    mirror_violation: Mapping[str, float] = field(default_factory=dict)
    mirror_structures: int = 0
    calibration: Mapping[str, float] = field(default_factory=dict)
    laws: Mapping[str, float] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
    probes: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    minimum_distances: Mapping[str, float] | None = None
    probe_batch: Mapping[str, Any] | None = None
    bytes_per_slot: float = 0
    elements_per_slot: float = 0
    schema: str = ONNX_SCHEMA

    @property
    def energy_basis(self) -> str:
        """SHA-256 of the weights that define the zero of energy of the scheme ``own``: the teacher's, if distilled."""
        return self.origin.get("energy_basis", self.weights_sha256)

    def to_props(self) -> dict[str, str]:
        """Return the metadata as strings, each a JSON value."""
        return {f"{_PREFIX}{name}": json.dumps(_plain(getattr(self, name))) for name in self.__slots__}

    @classmethod
    def from_props(cls, props: Mapping[str, str], where: str) -> Self:
        """Parse the metadata of a model file.

        Args:
            props: Metadata properties of the ONNX model.
            where: Name of the file, for messages.

        Raises:
            ModelFileError: The file was not exported by equiscreen, has an unsupported schema, or its metadata is
                incomplete or unreadable.
        """
        found = {key.removeprefix(_PREFIX): value for key, value in props.items() if key.startswith(_PREFIX)}
        try:
            values: dict[str, Any] = {name: json.loads(value) for name, value in found.items()}
        except ValueError as error:
            raise ModelFileError(f"{where}: the metadata cannot be read; export the model again") from error
        schema = values.get("schema")
        if schema != ONNX_SCHEMA:
            raise ModelFileError(
                f"{where} has the schema {schema!r} instead of {ONNX_SCHEMA!r}; use a model exported by equiscreen, or "
                "export the model again with this version"
            )
        missing = {item.name for item in fields(cls)} - values.keys() - _ADDED
        if missing:
            raise ModelFileError(
                f"{where}: the metadata lacks {', '.join(sorted(missing))}; export the model again with this version"
            )
        try:
            values["elements"] = tuple(int(number) for number in values["elements"])
            values["outputs"] = tuple(
                OutputSpec(**{**output, "shape": tuple(output["shape"])}) for output in values["outputs"]
            )
            if values.get("minimum_distances") is not None:
                values["minimum_distances"] = _distances(values["minimum_distances"])
        except (TypeError, KeyError, ValueError, AttributeError, EquiscreenError) as error:
            raise ModelFileError(f"{where}: the metadata cannot be read; export the model again") from error
        return cls(**{name: value for name, value in values.items() if name in cls.__slots__})


def _distances(content: Mapping[str, Any]) -> dict[str, float]:
    distances = {pair: float(distance) for pair, distance in content.items() if pair_numbers(pair)}
    if not all(0 <= distance < math.inf for distance in distances.values()):
        raise ValueError("minimum_distances")
    return distances


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return (
        [asdict(item) if isinstance(item, OutputSpec) else item for item in value]
        if isinstance(value, tuple)
        else value
    )
