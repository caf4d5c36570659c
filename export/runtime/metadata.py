"""What an ONNX model file says of itself, in its metadata."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Self

from ...pipeline.errors import ModelFileError
from ...pipeline.graphs.potential import OutputSpec

ONNX_SCHEMA = "equiscreen-onnx/1"
_PREFIX = "equiscreen."


@dataclass(frozen=True, slots=True)
class ModelMetadata:
    """The contract of a model file.

    Attributes:
        cutoff: Angstrom.
        elements: Atomic numbers that the model knows.
        dtype: Of the vectors: "float32" or "float64".
        outputs: What it finds.
        symmetry: Group under which the model is equivariant.
        energy_scheme: Which energies it speaks.
        training_data: Hash of the graph store that it was trained on.
        weights_sha256: Of all its constants.
        parity: Largest differences from PyTorch, measured at export.
        validation: Mean absolute errors on the validation structures.
        test: The same on the test structures, if there are any.
        equiscreen: Version that exported it.
        members: Networks whose mean it is; more than one put out their spread too.
        mirror_violation: Largest changes under a mirror, by output, of a network that is SO(3) equivariant only.
        calibration: Of the spread of an ensemble: root mean square of error over spread, by output.
        laws: Largest violations of symmetry, by output and what was done to structures, measured at export.
        origin: Of imported weights: name, file, fidelity, functional, training data, licence, citation.
        schema: Version of this contract.
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
    calibration: Mapping[str, float] = field(default_factory=dict)
    laws: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, str] = field(default_factory=dict)
    schema: str = ONNX_SCHEMA

    def to_props(self) -> dict[str, str]:
        """As strings, each a JSON value."""
        return {f"{_PREFIX}{name}": json.dumps(_plain(getattr(self, name))) for name in self.__slots__}

    @classmethod
    def from_props(cls, props: Mapping[str, str], where: str) -> Self:
        """Read back.

        Raises:
            ModelFileError: Not ours, or of another schema.
        """
        found = {key.removeprefix(_PREFIX): value for key, value in props.items() if key.startswith(_PREFIX)}
        try:
            values: dict[str, Any] = {name: json.loads(value) for name, value in found.items()}
        except ValueError as error:
            raise ModelFileError(f"{where}: unreadable metadata") from error
        schema = values.get("schema")
        if schema != ONNX_SCHEMA:
            raise ModelFileError(f"{where}: schema {schema!r} where {ONNX_SCHEMA!r} is wanted; was it exported by us?")
        missing = {item.name for item in fields(cls)} - values.keys()
        if missing:
            raise ModelFileError(f"{where}: metadata lacks {', '.join(sorted(missing))}")
        try:
            values["elements"] = tuple(int(number) for number in values["elements"])
            values["outputs"] = tuple(
                OutputSpec(**{**output, "shape": tuple(output["shape"])}) for output in values["outputs"]
            )
        except (TypeError, KeyError, ValueError) as error:
            raise ModelFileError(f"{where}: unreadable metadata") from error
        return cls(**{name: value for name, value in values.items() if name in cls.__slots__})


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return (
        [asdict(item) if isinstance(item, OutputSpec) else item for item in value]
        if isinstance(value, tuple)
        else value
    )
