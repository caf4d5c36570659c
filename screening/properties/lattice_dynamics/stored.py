"""Phonons of one crystal of a dataset of properties, ready for phonopy's functions and for plots."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ....pipeline.errors import ConfigError, StoreError
from ....pipeline.store.graph_store import GraphStore
from ...dataset.reader import place_of_graphs
from ...dataset.scores import open_scores
from ...relaxation.symmetry import symmetrized
from ..protocol import BornCharges, check_installed
from .force_constants import nac_parameters, with_force_constants
from .spectra import Bands, DensityOfStates

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


def stored_phonopy(dataset: str | Path, structure_id: str) -> Any:
    """Return phonopy's `Phonopy` object of a crystal, with its force constants and, if they were given, Born charges.

    Example:
        >>> from equiscreen.screening import compute_properties
        >>> from equiscreen.screening.properties.lattice_dynamics.stored import stored_phonopy
        >>> found = compute_properties("relaxed.zarr", "model.onnx", "p.zarr", ["phonons"], scheduler="threads")
        >>> phonopy = stored_phonopy("p.zarr", found["structure_id"].values[0])
        >>> phonopy.run_mesh(20.0).frequencies.shape[1]
        3

    Args:
        dataset: Dataset of `compute_properties` with the property phonons.
        structure_id: Id of the crystal; if several crystals have this id, the first is used.

    Raises:
        StoreError: The dataset cannot be read, or holds no force constants of the crystal.
        ConfigError: There is no crystal with this id, or phonopy is not installed.
    """
    check_installed("stored_phonopy", ["phonopy"])
    found = open_scores(dataset)
    if "force_constants" not in found:
        raise StoreError(
            f"{dataset} holds no force constants; give the dataset that `equiscreen properties --what phonons` wrote"
        )
    rows = np.flatnonzero(found["structure_id"].values == structure_id)
    if len(rows) == 0:
        raise ConfigError(f"{dataset}: no structure has the id {structure_id!r}; the array structure_id lists all ids")
    row = int(rows[0])
    pairs = _rows(found, "force_constant_pair", row)
    if pairs.start == pairs.stop:
        raise StoreError(
            f"{dataset}: {structure_id} has no phonons ({found['status_note'].values[row] or 'no reason was recorded'})"
        )
    structure = GraphStore(place_of_graphs(dataset, found.attrs, None)).block(row, row + 1, labels=False).structure(0)
    crystal = symmetrized(structure, float(found.attrs["settings"]["relaxation"]["symprec"]))
    matrix = found["phonon_supercell"].values[row].astype(np.int64)
    constants = found["force_constants"][pairs].values
    n_supercell = len(crystal) * round(abs(np.linalg.det(matrix)))
    phonopy = with_force_constants(crystal, matrix, constants.reshape(-1, n_supercell, 3, 3))
    if "born_charge" in found:
        charges = found["born_charge"][_rows(found, "phonon_atom", row)].values
        phonopy.nac_params = nac_parameters(phonopy, BornCharges(charges, found["dielectric_tensor"].values[row]))
    return phonopy


def _rows(found: xr.Dataset, dim: str, row: int) -> slice:
    """Return the rows of a structure in the tables along a dimension."""
    counts = found[f"n_{dim}"].values
    end = int(counts[: row + 1].sum())
    return slice(end - int(counts[row]), end)


def band_figure(path: Bands, states: DensityOfStates) -> Figure:
    """Draw the bands along their path, with the density of states beside them.

    Args:
        path: The bands, from `spectra.bands`.
        states: The density of states, from `spectra.density_of_states`.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            "figures need matplotlib, which is not installed: pip install 'equiscreen[report]'"
        ) from error
    figure = Figure(figsize=(7.0, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3, 1])
    ends = [place for place, label in enumerate(path.labels) if label]
    for start, stop in zip(ends[::2], ends[1::2], strict=True):
        left.plot(path.distance[start : stop + 1], path.frequency[start : stop + 1], color="tab:blue", linewidth=0.9)
    left.set_xticks(*_ticks(path, ends))
    left.grid(axis="x", linewidth=0.5)
    left.set(xlim=(path.distance[0], path.distance[-1]), ylabel="frequency (THz); negative if imaginary")
    left.axhline(0.0, color="black", linewidth=0.5)
    right.plot(states.density, states.frequency, color="tab:blue", linewidth=0.9)
    right.set(xlim=(0, None), xlabel="states\n(1/THz per atom)")
    return figure


def _ticks(path: Bands, ends: list[int]) -> tuple[list[float], list[str]]:
    """Return places and names of the ends of segments; where the path jumps, one place has both names."""
    names: dict[float, list[str]] = {}
    for place in ends:
        label = path.labels[place].replace("GAMMA", "Γ")
        here = names.setdefault(round(float(path.distance[place]), 6), [])
        if label not in here:
            here.append(label)
    return list(names), ["|".join(labels) for labels in names.values()]
