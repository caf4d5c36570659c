"""The scores dataset: the labelled result of a screen, one row per structure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import xarray as xr

from ...export.runtime.ensemble import MEMBER, MEMBERS_ARRAY
from ...pipeline.graphs.potential import OutputSpec
from ...pipeline.store.checksums import check_content
from ...pipeline.store.graph_store import location, open_root
from ...pipeline.store.schema import (
    CARTESIAN,
    CARTESIAN_2,
    STRUCTURE,
    TEXT,
    VOIGT_NOTE,
    ArraySpec,
    flags,
    structure_array,
    tensor_dims,
)
from ...pipeline.store.shards import check_shards

# Datasets up to this uncompressed size are compared with their checksums when they are opened.
_CHECKED_BYTES = 256 << 20
CARRIED = ("structure_id", "source", "source_index")

SCORES_SCHEMA = "equiscreen-scores/1"
STATUS_MEANINGS = ("ok", "unknown_element", "not_finite", "too_large", "extrapolating")
OK, UNKNOWN_ELEMENT, NOT_FINITE, TOO_LARGE, EXTRAPOLATING = range(len(STATUS_MEANINGS))
# Statuses whose energies may be part of a hull or of a calibration.
RELIABLE_STATUSES = frozenset({"ok"})
# Statuses with an energy that can be reported. Unreliable energies are not part of any hull: an unconverged relaxation
# may end anywhere, and an extrapolated energy may be far too low.
USABLE_STATUSES = RELIABLE_STATUSES | {"not_converged", "extrapolating"}
# Column that datasets of properties have besides `status`: the outcome of the relaxation alone, on which energies
# depend.
RELAXATION_STATUS = "relaxation_status"
# Statuses that are ranked by their energy; all others come after them.
RANKED_STATUSES = RELIABLE_STATUSES | {"not_converged"}
# Suffix of the names of hull columns of structures that were not relaxed.
UNRELAXED = "_unrelaxed"
# What datasets of each kind hold.
KINDS = {
    "screened": "scores",
    "relaxed": "scores of relaxed structures",
    "properties": "properties of crystals",
    "labelled": "calculated energies",
}
COORDINATES = ("structure_id", "formula", "n_atoms", "volume", "status", "source", "source_index")


ENERGY_ARRAYS = (
    structure_array("energy", "float64", "total energy", units="eV"),
    structure_array("energy_per_atom", "float64", "energy divided by the number of atoms", units="eV/atom"),
    structure_array("max_force", "float64", "largest norm of the force on an atom", units="eV/angstrom"),
    structure_array(
        "stress",
        "float64",
        "stress (1/V) dE/d(strain), positive under tension as in ASE; NaN in directions that are not periodic, and "
        "altogether if the source gave no cell vector for one of them, since there is no volume then",
        units="eV/angstrom^3",
        dims=(CARTESIAN, CARTESIAN_2),
    ),
    structure_array(
        "in_plane_virial",
        "float64",
        "for slabs, dE/d(strain) in the plane divided by the area; NaN for all others",
        units="eV/angstrom^2",
        dims=(CARTESIAN, CARTESIAN_2),
    ),
    structure_array(
        "axial_virial",
        "float64",
        "for chains, dE/d(strain) along the axis divided by the length of the cell; NaN for all others",
        units="eV/angstrom",
    ),
)
SPREAD_ARRAYS = (
    structure_array(
        "energy_std", "float64", "standard deviation of the total energy among the members of the ensemble", units="eV"
    ),
    structure_array(
        "max_force_std",
        "float64",
        "largest norm of the standard deviations of the components of a force among the members of the ensemble",
        units="eV/angstrom",
    ),
)
# Outputs that `property_outputs` skips, because their arrays are defined differently or do not exist.
_KNOWN = frozenset(spec.name for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS)) | {MEMBERS_ARRAY, "stress_std"}
# Outputs from which arrays with other names are computed.
SOURCES = {
    "energy_per_atom": "energy",
    "max_force": "forces",
    "max_force_std": "forces_std",
    "in_plane_virial": "stress",
    "axial_virial": "stress",
}
STRUCTURE_ARRAYS = (
    structure_array("structure_id", TEXT, "name of the structure in its source"),
    structure_array("formula", TEXT, "reduced chemical formula"),
    structure_array("n_atoms", "int32", "number of atoms", units="1"),
    structure_array(
        "volume", "float64", "volume of the cell; NaN unless periodic in three directions", units="angstrom^3"
    ),
    structure_array("status", "uint8", "outcome of scoring", **flags(STATUS_MEANINGS)),
    structure_array("source", TEXT, "file that the structure came from"),
    structure_array("source_index", "int64", "index of the record in its source file, from 0", units="1"),
)


def score_arrays(outputs: Sequence[OutputSpec]) -> tuple[ArraySpec, ...]:
    """Return the arrays of the scores of a model. Outputs per atom are skipped, except that forces give `max_force`."""
    names = {spec.name for spec in outputs}
    known = [spec for spec in (*ENERGY_ARRAYS, *SPREAD_ARRAYS) if SOURCES.get(spec.name, spec.name) in names]
    members = [_members_array(spec.shape) for spec in outputs if spec.name == MEMBERS_ARRAY]
    return (*known, *members, *(_property_array(spec) for spec in property_outputs(outputs)), *STRUCTURE_ARRAYS)


def property_outputs(outputs: Sequence[OutputSpec]) -> list[OutputSpec]:
    """Return the outputs per structure that become arrays without any change."""
    return [spec for spec in outputs if spec.per == "structure" and spec.name not in _KNOWN]


def _members_array(shape: tuple[int, ...]) -> ArraySpec:
    description = "total energy predicted by each member of the ensemble"
    return structure_array(MEMBERS_ARRAY, "float64", description, dims=(MEMBER,), inner=shape, units="eV")


def _property_array(spec: OutputSpec) -> ArraySpec:
    description = spec.name.replace("_", " ") + ("" if spec.defined == "always" else f"; NaN except for {spec.defined}")
    dims = tensor_dims(STRUCTURE, spec.name, spec.shape)
    if "voigt" in dims:
        description += VOIGT_NOTE
    units = {"units": spec.unit} if spec.unit else {}
    return structure_array(spec.name, "float64", description, dims=dims[1:], inner=spec.shape, **units)


def open_scores(path: str | Path) -> xr.Dataset:
    """Open a scores dataset, lazily.

    Values are read on access, in this process, even while a Dask client is open; `scores.chunk()` makes Dask arrays of
    them. Every array has its `units`, its whole `description` and, for the axes of plots, a short `long_name`.
    `to_dataframe` turns the dataset into a table. A local dataset of up to 256 MiB (uncompressed) is compared with its
    checksums when it is opened.

    Example:
        >>> from equiscreen.screening import open_scores
        >>> scores = open_scores("scores.zarr")
        >>> scores["structure_id"].values.tolist(), scores["energy_per_atom"].attrs["units"]
        (['Al', 'Cu', 'AlCu', 'AlCu3'], 'eV/atom')

    Raises:
        StoreError: The dataset is missing, unfinished or damaged, or not a scores dataset.
    """
    root, place = open_root(path, SCORES_SCHEMA), location(path)
    arrays = dict(root.arrays())
    check_shards(place, arrays)
    if sum(array.nbytes for array in arrays.values()) <= _CHECKED_BYTES:
        check_content(place, arrays, str(root.attrs.get("store_hash")))
    # Without Dask arrays, which an open client would compute on its cluster, where the path may not exist.
    scores: xr.Dataset = xr.open_zarr(path, chunks=None)
    for array in scores.variables.values():
        if "description" in array.attrs:
            array.attrs.setdefault("long_name", str(array.attrs["description"]).partition(";")[0].partition(",")[0])
    return scores
