"""Exported models as TorchSim models, for its batched relaxations and dynamics.

TorchSim is not a dependency of equiscreen: `pip install 'torch-sim-atomistic>=0.6'`, with Python 3.12 or later. Tested
with version 0.6.2.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch_sim.models.interface import ModelInterface
from torch_sim.state import SimState

from ..pipeline.errors import InvalidStructureError, ModelFileError
from ..pipeline.graphs.graph_block import GraphBlock
from ..pipeline.structures.structure import Structure
from .runtime.onnx_potential import OnnxPotential


class OnnxModel(ModelInterface):  # type: ignore[misc]  # TorchSim is untyped
    """An exported model as a TorchSim model, which evaluates all systems of a state at once.

    Energies are in eV and forces in eV/angstrom. Stresses are in eV/angstrom^3, positive under tension as TorchSim's
    optimizers expect; a system that is not periodic in all three directions has NaN, and cannot be used with a cell
    filter.

    A model given by its path is evaluated on the CPU; tensors on another device are copied there and back at each step.
    The results carry no gradients.

    TorchSim's autobatchers measure the memory of GPUs only. Give them `max_memory_scaler`, the largest batch in units
    of `memory_scales_with`: about 400 atoms keep the CPU busy, as larger batches are divided anyway.

    Example:
        >>> import torch_sim as ts
        >>> from ase.build import bulk
        >>> from equiscreen.export import OnnxModel
        >>> model = OnnxModel("model.onnx")
        >>> with_cell = {"cell_filter": ts.CellFilter.frechet}
        >>> relaxed = ts.optimize(
        ...     [bulk("Cu")], model, optimizer=ts.Optimizer.lbfgs, max_steps=5, init_kwargs=with_cell
        ... )
        >>> relaxed.n_systems
        1

    Args:
        model: Path of an ONNX file exported by equiscreen, or a loaded potential.
        device: Device for states that TorchSim creates; None is the CPU.
        dtype: Data type of states that TorchSim creates; the network computes in its own dtype.
        compute_forces: Whether to return forces. Leaving them out saves no time.
        compute_stress: Whether to return stresses. Leaving them out saves no time.
        threads: Number of ONNX Runtime threads if `model` is a path; None uses all cores.

    Raises:
        ModelFileError: The file cannot be read, is not a model exported by equiscreen, or lacks the energy or a
            requested output.
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
        # For TorchSim's autobatchers: the number of neighbours within the cutoff grows with the density.
        self._memory_scales_with = "n_atoms_x_density"
        self.potential = model if isinstance(model, OnnxPotential) else OnnxPotential.load(model, threads=threads)
        wanted = {"energy": True, "forces": compute_forces, "stress": compute_stress}
        made = {spec.name for spec in self.potential.outputs}
        if absent := [name for name, is_wanted in wanted.items() if is_wanted and name not in made]:
            raise ModelFileError(
                f"{'the model' if model is self.potential else model} does not predict {', '.join(absent)}; use a "
                "model exported with these outputs"
            )

    def forward(self, state: SimState, **_: Any) -> dict[str, torch.Tensor]:
        """Evaluate all systems of a state; called by TorchSim.

        Args:
            state: The systems.
            _: Arguments for other models of a sum, which are ignored.

        Returns:
            "energy" [n_systems], "forces" [n_atoms, 3], "stress" [n_systems, 3, 3], and the model's other outputs by
            name, [n_systems or n_atoms, ...], NaN for systems without a value; in the dtype of the state, on its
            device, and with atoms in its order.

        Raises:
            InvalidStructureError: A system is invalid, for example with two atoms at one position or a flat cell.
            UnknownElementError: The model does not cover an element.
        """
        # TorchSim keeps the atoms of a system together, but systems may be in any order.
        order = np.argsort(_array(state.system_idx), kind="stable")
        found = self.potential.evaluate(_graphs(state, order, self.potential.cutoff))
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


def _graphs(state: SimState, order: NDArray[np.int64], cutoff: float) -> GraphBlock:
    """Build the graphs of all systems, with atoms in `order`.

    Raises:
        InvalidStructureError: A system cannot become a graph, or there are no systems.
    """
    ends = np.cumsum(np.bincount(_array(state.system_idx)))[:-1]
    numbers = np.split(_array(state.atomic_numbers)[order], ends)
    positions = np.split(_array(state.positions)[order], ends)
    pbc = _array(state.pbc)
    graphs = []
    # TorchSim stores lattice vectors as columns.
    for index, cell in enumerate(_array(state.row_vector_cell)):
        try:
            structure = Structure.from_cartesian(numbers[index], positions[index], cell, pbc)
            graphs.append(GraphBlock.from_structures([structure], cutoff))
        except InvalidStructureError as error:
            raise InvalidStructureError(f"system {index} of the state: {error}") from error
    if not graphs:
        raise InvalidStructureError("the state has no systems")
    return GraphBlock.concatenate(graphs)
