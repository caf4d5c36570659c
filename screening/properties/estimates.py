"""Estimated cost of a computation of properties."""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...export.runtime.dispersion import Dispersion, with_dispersion
from ...pipeline.energy_schemes import NO_DISPERSION
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE
from ..dataset.parts import uncompressed_bytes
from ..relaxation.output import relaxed_graph_arrays
from .compute import born_charges, chosen_preset, expected_work, potential_for
from .inputs import Candidates
from .lattice_dynamics.born_files import BornFiles
from .materials import Protocol, compute_materials
from .output import base_arrays, property_arrays
from .presets import Preset

SAMPLE = 4


@dataclass(frozen=True, slots=True)
class PropertiesEstimate:
    """Estimated cost; as text, one line.

    Attributes:
        structures: Number of structures.
        cells: Largest number of cells to evaluate, not counting relaxations.
        seconds: Time on one core, s.
        sample: Number of structures that the time is extrapolated from.
        bytes_on_disk: Largest size of the outputs, without text columns and tables.
        bytes_of_memory: Memory of a worker.
        follows_modes: Whether imaginary modes are followed.
    """

    structures: int
    cells: int
    seconds: float
    sample: int
    bytes_on_disk: float
    bytes_of_memory: int
    follows_modes: bool = False

    def __str__(self) -> str:
        followed = ", with imaginary modes as frequent as in it" if self.follows_modes else ""
        return (
            f"{self.structures:,} structures, at most {self.cells:,} cells to evaluate (relaxations not counted): "
            f"about {self.seconds:,.0f} s on one core (from a sample of {self.sample}{followed}), at most "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk (text columns not counted), "
            f"{self.bytes_of_memory / 1e6:,.0f} MB of "
            "memory per worker"
        )


def estimate(
    source: str | Path,
    model: str | Path,
    what: Sequence[str],
    *,
    preset: str | Preset = "default",
    where: str | None = None,
    relax: bool = True,
    born: str | Path | None = None,
    follow_modes: bool = False,
    limit: int | None = None,
    store: str | Path | None = None,
    dispersion: str = NO_DISPERSION,
) -> PropertiesEstimate:
    """Estimate the cost of `compute_properties`: compute some structures in this process, and scale up.

    Args:
        source: As for `compute_properties`.
        model: ONNX file.
        what: Names of the properties.
        preset: Protocol of the computation, as for `compute_properties`.
        where: Filter expression.
        relax: Whether the structures are relaxed first.
        born: File or folder of Born charges, as for `compute_properties`.
        follow_modes: Whether imaginary modes are followed.
        limit: Largest number of structures.
        store: Graph store of the source, if it was moved.
        dispersion: Name of the dispersion correction, as for `compute_properties`.

    Raises:
        EquiscreenError: As for `compute_properties`.
    """
    candidates = Candidates.of(source, where, limit, store)
    network = potential_for(model)
    potential = with_dispersion(network, Dispersion.of(dispersion, {str(model): network.metadata}))
    chosen = chosen_preset(preset, what, born=born is not None, follow_modes=follow_modes)
    protocol = Protocol.of(chosen, what, potential, relax=relax)
    work = expected_work(candidates, protocol)
    # Structures of typical cost: the largest of many could take very long.
    places = np.linspace(0, len(work) - 1, SAMPLE + 2)[1:-1] if len(work) > SAMPLE else np.arange(len(work))
    rows = np.sort(np.argsort(work, kind="stable")[places.astype(int)])
    block = candidates.place().block(candidates.rows[rows])
    charges = None if born is None else born_charges(BornFiles.at(born), candidates, protocol.relaxation.symprec)
    begin = time.monotonic()
    compute_materials(
        [block.structure(row) for row in range(len(block))],
        potential,
        protocol,
        None if charges is None else [charges[row] for row in rows],
    )
    seconds = (time.monotonic() - begin) * float(work.sum()) / max(1.0, float(work[rows].sum()))
    n_atoms = candidates.graphs.n_atoms[candidates.rows].tolist()
    cells = sum(one.workload(size).cells for one in protocol.properties for size in n_atoms)
    counts = {
        STRUCTURE: len(n_atoms),
        ATOM: sum(n_atoms),
        EDGE: int(candidates.graphs.n_edges[candidates.rows].sum(dtype=np.int64)),
    }
    arrays = (*base_arrays(protocol.relaxation), *property_arrays(protocol.properties), *relaxed_graph_arrays(()))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return PropertiesEstimate(
        len(candidates.rows), cells, seconds, len(rows), uncompressed_bytes(arrays, counts), memory, follow_modes
    )
