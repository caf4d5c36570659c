"""Several exported models evaluated as one ensemble: mean, spread, and the energy of each member."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import ModelFileError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import SPREAD, Evaluation, OutputSpec, with_spread
from .metadata import ModelMetadata
from .onnx_potential import TEACHER, OnnxPotential, model_provenance

MEMBERS_ARRAY, MEMBER = "energy_members", "member"

Models = str | Path | Sequence[str | Path]


class Ensemble:
    """One or several models as one potential.

    A single model is evaluated on its own. Several models give the mean of every output, its sample standard deviation
    (with n - 1) as ``NAME_std``, as the exported file of an ensemble does, and the energies of all members as
    ``energy_members``. The ensemble covers the elements that all members cover.

    Args:
        members: At least one model.
        names: Paths of the model files, for messages and provenance.

    Raises:
        ModelFileError: There are no members, their energy schemes or outputs differ, or, if there are several members,
            one of them is given twice or is itself an ensemble.
    """

    def __init__(self, members: Sequence[OnnxPotential], names: Sequence[str]) -> None:
        if not members:
            raise ModelFileError("there is no model; give at least one ONNX file")
        self.members, self.names = tuple(members), tuple(names)
        self._check()
        first = self.members[0]
        self.slots, self.in_flight = min(member.slots for member in self.members), first.in_flight
        self.cutoff = max(member.cutoff for member in self.members)
        self.elements = tuple(sorted(set.intersection(*(set(member.elements) for member in self.members))))
        self.outputs = first.outputs if len(self.members) == 1 else self._outputs(first.outputs)

    @classmethod
    def load(cls, models: Models, **settings: Any) -> Self:
        """Load model files.

        Args:
            models: Path of one model file, or of several.
            **settings: Keyword arguments of `OnnxPotential.load`.

        Raises:
            ModelFileError: As in `Ensemble` and `OnnxPotential.load`.
            DeviceError: This machine does not have the device.
        """
        paths = paths_of(models)
        return cls([OnnxPotential.load(path, **settings) for path in paths], [str(path) for path in paths])

    @property
    def metadata(self) -> dict[str, ModelMetadata]:
        """Metadata of each member, by the path of its file."""
        return {name: member.metadata for name, member in zip(self.names, self.members, strict=True)}

    @property
    def minimum_distances(self) -> dict[tuple[int, int], float]:
        """Smallest distance of each pair of elements in the training data, angstrom, keyed by atomic numbers.

        If members differ, the largest value counts: a structure that is too dense for one member is too dense for the
        ensemble.
        """
        out: dict[tuple[int, int], float] = {}
        for member in self.members:
            for pair, distance in (member.minimum_distances or {}).items():
                out[pair] = max(distance, out.get(pair, 0.0))
        return out

    @property
    def sha256(self) -> str:
        """SHA-256 of the model file; for several files, SHA-256 of their hashes in order."""
        return _joined([member.sha256 for member in self.members])

    def evaluate(self, block: GraphBlock) -> Evaluation:
        """Evaluate all outputs for all structures of a block.

        Raises:
            UnknownElementError: A member does not cover an element.
        """
        each = [member.evaluate(block) for member in self.members]
        if len(each) == 1:
            return each[0]
        found: dict[str, NDArray[np.float64]] = {}
        for spec in self.members[0].outputs:
            values = np.stack([evaluation.arrays()[spec.name] for evaluation in each])
            found[spec.name] = values.mean(axis=0)
            found[f"{spec.name}{SPREAD}"] = values.std(axis=0, ddof=1)
        own = {name: found.pop(name, getattr(each[0], name)) for name in ("energy", "forces", "stress")}
        found[MEMBERS_ARRAY] = np.stack([evaluation.energy for evaluation in each], axis=1)
        virials = [evaluation.virial for evaluation in each if evaluation.virial is not None]
        virial = np.mean(virials, axis=0) if len(virials) == len(each) else None
        return Evaluation(**own, properties=found, virial=virial)

    def provenance(self) -> dict[str, Any]:
        """Describe the models that the results come from; several models are listed under ``files``."""
        each = [model_provenance(name, member) for name, member in zip(self.names, self.members, strict=True)]
        if len(each) == 1:
            return each[0]
        bases = {member.metadata.energy_basis for member in self.members}
        return {
            **{name: value for name, value in each[0].items() if name not in TEACHER},
            **({"energy_basis": bases.pop()} if len(bases) == 1 else {}),
            "path": ", ".join(model["path"] for model in each),
            "sha256": self.sha256,
            "weights_sha256": _joined([member.metadata.weights_sha256 for member in self.members]),
            "symmetry": ", ".join(dict.fromkeys(member.metadata.symmetry for member in self.members)),
            "members": len(each),
            "cutoff": self.cutoff,
            "files": each,
        }

    def _outputs(self, outputs: Sequence[OutputSpec]) -> tuple[OutputSpec, ...]:
        each = OutputSpec(MEMBERS_ARRAY, "structure", (len(self.members),), "eV")
        return (*with_spread(outputs), *([each] if any(spec.name == "energy" for spec in outputs) else []))

    def _check(self) -> None:
        first, name = self.members[0], self.names[0]
        for place, (other, its_name) in enumerate(zip(self.members[1:], self.names[1:], strict=True), start=1):
            schemes = [member.metadata.energy_scheme for member in (first, other)]
            if schemes[0] != schemes[1]:
                raise ModelFileError(
                    f"{its_name}: the energies follow the scheme {schemes[1]}, but the energies of {name} follow "
                    f"{schemes[0]}, and different schemes cannot be averaged; screen with each model separately"
                )
            if first.outputs != other.outputs:
                found = [", ".join(spec.name for spec in member.outputs) for member in (first, other)]
                raise ModelFileError(
                    f"{its_name} predicts {found[1]}, but {name} predicts {found[0]}; export both with the same "
                    "--outputs"
                )
            earlier = [member.sha256 for member in self.members[:place]]
            if other.sha256 in earlier:
                same = self.names[earlier.index(other.sha256)]
                raise ModelFileError(f"{its_name} is the same model as {same}; give it only once")
        for member, its_name in zip(self.members, self.names, strict=True):
            if len(self.members) > 1 and member.metadata.members > 1:
                raise ModelFileError(
                    f"{its_name} is already an ensemble; screen with it alone, or export its members separately"
                )


def paths_of(models: Models) -> list[str | Path]:
    """Return the paths of one or several models, as a list."""
    return [models] if isinstance(models, str | Path) else list(models)


def _joined(digests: Sequence[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()
