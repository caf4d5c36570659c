"""Exported models as models of TorchSim, so that its batched relaxations and dynamics can use them.

TorchSim is no dependency: pip install torch-sim-atomistic. Of its versions, 0.3 has been tried.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from ..pipeline.errors import ConfigError, InvalidStructureError, ModelFileError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.structures.structure import Structure
from .runtime.onnx_potential import OnnxPotential


class OnnxModel(ModelInterface):  # type: ignore[misc]  # TorchSim is untyped
    """An exported model as a model of TorchSim, which evaluates all systems of a state in one go.

    Energies are in eV, forces in eV/angstrom. Stresses are in eV/angstrom^3, positive under tension as TorchSim's
    optimizers expect; they exist for systems that are periodic in all three directions, and are refused for others.

    ONNX Runtime computes on the processor: tensors on another device are copied there and back at each step. The
    results carry no gradients.

    `torch_sim.io` makes systems that are periodic in one or two directions, slabs for instance, periodic in none, and
    this cannot be seen from a state. Of a state whose `pbc` is a tensor of three, each direction is respected.

    Example:
        >>> model = OnnxModel("model.onnx")  # doctest: +SKIP
        >>> torch_sim.optimize(images, model, optimizer=torch_sim.frechet_cell_fire)  # doctest: +SKIP

    Args:
        model: An ONNX file of ours, or a potential that is loaded already.
        device: Where TorchSim is to keep the states that it makes itself; None is the processor.
        dtype: Of the states that TorchSim makes itself; the network computes in its own.
        compute_forces: Put forces into the results; False saves no time.
        compute_stress: Put stresses into the results; False saves no time, but lets molecules and slabs through.
        threads: Of ONNX Runtime, for a file; None takes all cores. A potential has its own.

    Raises:
        ModelFileError: No model of ours, or one without an energy, or without forces or stress that are wanted.
    """

    def __init__(
        self,
        model: str | Path | OnnxPotential,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float64,
        compute_forces: bool = True,
        compute_stress: bool = True,
        threads: int | None = None,
    ) -> None:
        super().__init__()
        self._device = torch.device(device or "cpu")
        self._dtype = dtype
        self._compute_forces = compute_forces
        self._compute_stress = compute_stress
        # What TorchSim's autobatchers go by; the neighbours of an atom lie within a cutoff.
        self._memory_scales_with = "n_atoms_x_density"
        self.potential = model if isinstance(model, OnnxPotential) else OnnxPotential.load(model, threads=threads)
        wanted = {"energy": True, "forces": compute_forces, "stress": compute_stress}
        made = {spec.name for spec in self.potential.outputs}
        if absent := [name for name, is_wanted in wanted.items() if is_wanted and name not in made]:
            raise ModelFileError(f"{model}: a model without {', '.join(absent)}")

    def forward(self, state: SimState | dict[str, Any]) -> dict[str, torch.Tensor]:
        """Evaluate all systems of a state; what TorchSim calls.

        Args:
            state: A state, or a dictionary with its fields, of which `masses` and `system_idx` may be absent.

        Returns:
            "energy" [n_systems], "forces" [n_atoms, 3] and "stress" [n_systems, 3, 3], and the model's other outputs
            by name, [n_systems or n_atoms, ...], NaN for systems that have none; in the state's dtype, on its device,
            and with atoms in its order.

        Raises:
            ConfigError: Stresses of what is not periodic in all three directions.
            InvalidStructureError: Atoms on one place, a flat cell, and the like.
            UnknownElementError: An element that the model does not know.
        """
        if isinstance(state, dict):
            state = SimState(**{"masses": torch.ones_like(state["positions"][:, 0]), **state})
        pbc = np.broadcast_to(_array(torch.as_tensor(state.pbc)).astype(bool), 3)
        if self.compute_stress and not pbc.all():
            raise ConfigError(
                "a stress needs crystals that are periodic in all three directions; "
                "for others: OnnxModel(..., compute_stress=False)"
            )
        # TorchSim keeps the atoms of a system together, but the systems in any order.
        order = np.argsort(_array(state.system_idx), kind="stable")
        found = self.potential.evaluate(_graphs(state, order, pbc, self.potential.cutoff))
        arrays, back = found.arrays(), np.argsort(order)
        unwanted = {"forces": not self.compute_forces, "stress": not self.compute_stress}
        results = {}
        for spec in self.potential.outputs:
            if not unwanted.get(spec.name, False):
                values = arrays[spec.name][back] if spec.per == "atom" else arrays[spec.name]
                results[spec.name] = torch.from_numpy(values).to(state.device, state.dtype)
        return results


def _array(tensor: torch.Tensor) -> NDArray[Any]:
    values: NDArray[Any] = tensor.detach().cpu().numpy()
    return values


def _graphs(state: SimState, order: NDArray[np.int64], pbc: NDArray[np.bool_], cutoff: float) -> GraphBlock:
    """The graphs of all systems, with atoms in `order`.

    Raises:
        InvalidStructureError: A system that cannot become a graph, or none at all.
    """
    ends = np.cumsum(np.bincount(_array(state.system_idx)))[:-1]
    numbers = np.split(_array(state.atomic_numbers)[order], ends)
    positions = np.split(_array(state.positions)[order], ends)
    graphs = []
    # TorchSim stores lattice vectors as columns.
    for index, cell in enumerate(_array(state.row_vector_cell)):
        try:
            structure = Structure.from_cartesian(numbers[index], positions[index], cell, pbc)
            graphs.append(GraphBlock.from_structures([structure], cutoff))
        except InvalidStructureError as error:
            raise InvalidStructureError(f"system {index} of the state: {error}") from error
    if not graphs:
        raise InvalidStructureError("a state without systems")
    return GraphBlock.concatenate(graphs)
