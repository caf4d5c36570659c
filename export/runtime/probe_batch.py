"""A batch of structures and their results, stored in a model file, to test whether a GPU gives the same results."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ...pipeline.errors import DeviceError, EquiscreenError, ModelFileError
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.graphs.potential import SPREAD, Potential
from ...pipeline.structures.structure import Structure


@dataclass(frozen=True, slots=True)
class ProbeBatch:
    """Structures, and what the model predicts for them on the CPU.

    Attributes:
        structures: The structures.
        outputs: Results by output: float64[n_structures or n_atoms, *shape], in the unit of the output.
        limits: Largest allowed difference by output (energies: per atom).
    """

    structures: tuple[Structure, ...]
    outputs: Mapping[str, NDArray[np.float64]]
    limits: Mapping[str, float]

    @classmethod
    def of(cls, potential: Potential, structures: Sequence[Structure], limits: Mapping[str, float]) -> Self:
        """Evaluate structures on the CPU.

        Args:
            potential: The exported model.
            structures: Structures of elements that the model covers.
            limits: Largest allowed difference of each output; outputs without a limit are not stored.
        """
        block = GraphBlock.from_structures(structures, potential.cutoff)
        found = potential.evaluate(block).arrays()
        return cls(tuple(structures), {name: found[name] for name in limits}, dict(limits))

    def to_json(self) -> dict[str, Any]:
        """Return the batch as values for JSON; numbers keep all bits, and NaN becomes None."""
        return {
            "structures": [
                {
                    "numbers": structure.atomic_number.tolist(),
                    "cell": structure.cell.tolist(),
                    "coordinates": structure.frac_coord.tolist(),
                    "pbc": structure.pbc.tolist(),
                }
                for structure in self.structures
            ],
            "outputs": {name: _without_nan(values) for name, values in self.outputs.items()},
            "limits": dict(self.limits),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> Self:
        """Read a batch from the values that `to_json` returned.

        Args:
            values: Values read from JSON.
            where: Name of the model file, for messages.

        Raises:
            ModelFileError: The values do not describe a batch.
        """
        try:
            structures = tuple(
                Structure.from_fractional(item["numbers"], item["cell"], item["coordinates"], item["pbc"])
                for item in values["structures"]
            )
            outputs = {name: np.array(found, dtype=np.float64) for name, found in values["outputs"].items()}
            limits = {name: float(values["limits"][name]) for name in outputs}
        except (TypeError, KeyError, ValueError, AttributeError, OverflowError, EquiscreenError) as error:
            raise ModelFileError(f"{where}: the probe batch cannot be read; export the model again") from error
        return cls(structures, outputs, limits)

    def check(self, potential: Potential, name: str, device: str) -> dict[str, float]:
        """Evaluate the batch twice, and compare the results with one another and with the stored ones.

        Args:
            potential: The model, on the device to test.
            name: Name of the model file, for messages.
            device: Name of the device, for messages.

        Returns:
            Largest difference from the stored results by output.

        Raises:
            DeviceError: A difference exceeds its limit, or the two evaluations differ in a bit.
            ModelFileError: The stored results are not for the outputs of the model.
        """
        block = GraphBlock.from_structures(self.structures, potential.cutoff)
        found, again = potential.evaluate(block), potential.evaluate(block).arrays()
        differing = [key for key, values in found.arrays().items() if not _same_bits(values, again[key])]
        if differing:
            raise DeviceError(
                f"{name}: two evaluations of one batch on {device} differ in {', '.join(differing)}; try another "
                "version of ONNX Runtime, or choose cpu"
            )
        if any(key not in again or again[key].shape != values.shape for key, values in self.outputs.items()):
            raise ModelFileError(f"{name}: the probe batch does not match the outputs; export the model again")
        report = differences(found.arrays(), self.outputs, block, self.outputs)
        for key, difference in report.items():
            if not difference <= self.limits[key]:
                raise DeviceError(
                    f"{name}: {key} on {device} differs from the CPU by {difference:.1e}, above the limit "
                    f"{self.limits[key]:.1e}; try another version of ONNX Runtime, or choose cpu"
                )
        return report


def _without_nan(values: NDArray[np.float64]) -> Any:
    """Return an array as nested lists, with None in place of NaN."""
    plain = values.astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _same_bits(a: NDArray[np.float64], b: NDArray[np.float64]) -> bool:
    return np.array_equal(a, b, equal_nan=True)


def differences(
    found: Mapping[str, NDArray[np.float64]],
    expected: Mapping[str, NDArray[np.float64]],
    block: GraphBlock,
    outputs: Iterable[str],
) -> dict[str, float]:
    """Return the largest absolute differences between two evaluations, by output (energies: per atom).

    A NaN in only one evaluation gives a NaN; outputs that are NaN everywhere in both evaluations are skipped.
    """
    out = {}
    for name in outputs:
        both_absent = np.isnan(found[name]) & np.isnan(expected[name])
        if both_absent.all():
            continue  # no structure has this output
        difference = np.where(both_absent, 0.0, np.abs(found[name] - expected[name]))
        if name.removesuffix(SPREAD) == "energy":
            difference = difference / block.n_atoms
        out[name] = float(difference.max())
    return out
