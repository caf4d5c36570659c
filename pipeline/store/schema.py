"""Schema of a graph store: its arrays with their dims, types and units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ..errors import LabelError
from ..labels.mapping import LabelMapping
from ..labels.quantities import KNOWN_QUANTITIES, Quantity

GRAPH_SCHEMA = "equiscreen-graphs/1"
STRUCTURE, ATOM, EDGE = "structure", "atom", "edge"
# Rows per inner chunk, the unit of reading; `compaction` sets how many chunks make a shard, which is one file.
CHUNK_ROWS = {STRUCTURE: 8_192, ATOM: 65_536, EDGE: 65_536}
OTHER_CHUNK_ROWS = 65_536  # along dims that only some datasets have

CARTESIAN, CARTESIAN_2, LATTICE_VECTOR, HASH_BYTE = "cartesian", "cartesian_2", "lattice_vector", "hash_byte"
FIXED_DIMS = {CARTESIAN: 3, CARTESIAN_2: 3, LATTICE_VECTOR: 3, HASH_BYTE: 16}
VOIGT_NOTE = "; Voigt order xx, yy, zz, yz, xz, xy"
_TENSOR_DIMS = {3: CARTESIAN, 6: "voigt"}
TEXT = "text"
# Arrays of scores, which also hold the columns of their graph store.
SCORE_NAMES = ("energy_per_atom", "max_force", "energy_std", "max_force_std", "energy_members", "formula", "volume")

# Flags of a stored structure; several may be set, so each is one bit.
STATUS_MASKS = {
    "duplicate_with_other_labels": 1,
    "isolated_atoms": 2,
    "label_breaks_symmetry": 4,
    "repeated_id": 8,
    "named_isolated_atom": 16,
}
(
    STATUS_OTHER_LABELS,
    STATUS_ISOLATED_ATOMS,
    STATUS_FORBIDDEN_TENSOR,
    STATUS_REPEATED_ID,
    STATUS_NAMED_ISOLATED,
) = STATUS_MASKS.values()


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store.

    Attributes:
        name: Name of the array.
        dims: Names of its dims; the array is sharded along the first.
        dtype: Name of a numpy type, or `TEXT`.
        attrs: Attributes: units, description, CF flags.
        sizes: Sizes of the dims after the first; None takes them from `FIXED_DIMS`.
    """

    name: str
    dims: tuple[str, ...]
    dtype: str
    attrs: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[int, ...] | None = None

    @property
    def inner(self) -> tuple[int, ...]:
        """Sizes of the dims after the first."""
        return tuple(FIXED_DIMS[dim] for dim in self.dims[1:]) if self.sizes is None else self.sizes

    def shape(self, length: int) -> tuple[int, ...]:
        """Return the shape of an array with `length` rows."""
        return (length, *self.inner)


def masks(meanings: Mapping[str, int]) -> dict[str, Any]:
    """Return the CF attributes of a status array whose values are bit masks."""
    return {"flag_masks": list(meanings.values()), "flag_meanings": " ".join(meanings)}


def flags(meanings: tuple[str, ...]) -> dict[str, Any]:
    """Return the CF attributes of a status array that holds one of several values."""
    return {"flag_values": list(range(len(meanings))), "flag_meanings": " ".join(meanings)}


def structure_array(
    name: str,
    dtype: str,
    description: str,
    *,
    dims: tuple[str, ...] = (),
    inner: tuple[int, ...] | None = None,
    **attrs: Any,
) -> ArraySpec:
    """Return the spec of an array with one row per structure.

    Args:
        name: Name of the array.
        dtype: A numpy type name, or `TEXT`.
        description: Description of the array.
        dims: Names of the dims of one row.
        inner: Sizes of these dims; may be omitted if all of them are in `FIXED_DIMS`.
        attrs: Further attributes, such as units and CF flags, in the order in which they are written.
    """
    return ArraySpec(name, (STRUCTURE, *dims), dtype, {"description": description, **attrs}, inner)


def _spec(name: str, dims: tuple[str, ...], dtype: str, description: str, units: str = "") -> ArraySpec:
    return ArraySpec(name, dims, dtype, {"description": description, **({"units": units} if units else {})})


_GRAPH_ARRAYS = (
    _spec("n_atoms", (STRUCTURE,), "int32", "number of atoms", "1"),
    _spec("n_edges", (STRUCTURE,), "int32", "number of directed edges", "1"),
    _spec("atom_start", (STRUCTURE,), "int64", "first row of the structure along dim atom", "1"),
    _spec("edge_start", (STRUCTURE,), "int64", "first row of the structure along dim edge", "1"),
    _spec("cell", (STRUCTURE, LATTICE_VECTOR, CARTESIAN), "float64", "lattice vectors as rows", "angstrom"),
    _spec("pbc", (STRUCTURE, LATTICE_VECTOR), "bool", "whether the lattice vector is periodic"),
    _spec("structure_id", (STRUCTURE,), TEXT, "name of the structure in its source"),
    _spec("structure_hash", (STRUCTURE, HASH_BYTE), "uint8", "content hash of elements, cell and coordinates"),
    ArraySpec(
        "status",
        (STRUCTURE,),
        "uint8",
        {"description": "issues found in the structure, as a bit mask; 0 = no issues", **masks(STATUS_MASKS)},
    ),
    _spec("source", (STRUCTURE,), TEXT, "file that the structure was read from"),
    _spec("source_index", (STRUCTURE,), "int64", "index of the record in its source file, from 0", "1"),
    _spec("atomic_number", (ATOM,), "uint8", "atomic number", "1"),
    _spec(
        "frac_coord",
        (ATOM, CARTESIAN),
        "float64",
        "fractional coordinates (Cartesian if the cell is the identity)",
        "1",
    ),
    _spec("n_neighbors", (ATOM,), "uint16", "number of edges that the atom receives", "1"),
    _spec("neighbor", (EDGE,), "uint16", "sender: index of the atom within the structure, from 0", "1"),
    _spec(
        "image",
        (EDGE, CARTESIAN),
        "int16",
        "lattice image of the sender: displacement = (frac_coord[sender] - frac_coord[receiver] + image) @ cell",
        "1",
    ),
)


def tensor_dims(first: str, name: str, shape: tuple[int, ...], *, tensor: bool = True) -> tuple[str, ...]:
    """Return the dims of an array of numbers, vectors or tensors, with a different name for each.

    Args:
        first: Dim of the rows.
        name: Name of the array; axes that are not tensor axes are named after it.
        shape: Shape of one row.
        tensor: Whether axes of size 3 and 6 are tensor axes.
    """
    dims = [first]
    for size in shape:
        dim = _TENSOR_DIMS.get(size, f"{name}_component") if tensor else f"{name}_component"
        place = sum(known == dim or known.startswith(f"{dim}_") for known in dims) + 1
        dims.append(dim if place == 1 else f"{dim}_{place}")  # duplicated dims break xarray's to_dataframe
    return tuple(dims)


def label_spec(name: str, quantity: Quantity) -> ArraySpec:
    """Return the spec of the array of a label."""
    dims = tensor_dims(ATOM if quantity.per == "atom" else STRUCTURE, name, quantity.shape, tensor=quantity.tensor)
    description = f"{quantity.description or name.replace('_', ' ')}; NaN = absent"
    if "voigt" in dims:
        description += VOIGT_NOTE
    spec = _spec(name, dims, "float64", description, (quantity.unit or "").replace("**", "^"))
    return replace(spec, attrs={**spec.attrs, "role": "label"}, sizes=quantity.shape)


def graph_schema(mapping: LabelMapping) -> tuple[ArraySpec, ...]:
    """Return the specs of all arrays of a graph store with the labels and columns of `mapping`.

    Raises:
        LabelError: A label or column has the name of an array or dim of the store or the scores, or of another label
            or column, or a name that no array can have.
    """
    dims = {dim for spec in _GRAPH_ARRAYS for dim in spec.dims}
    taken = {spec.name for spec in _GRAPH_ARRAYS} | dims | set(SCORE_NAMES)
    for name in mapping.labels:
        _reserve(name, taken)
    taken |= KNOWN_QUANTITIES.keys()  # scores may have arrays of these names
    for name in mapping.columns:
        _reserve(name, taken)
    labels = tuple(label_spec(name, mapping.quantity(name)) for name in mapping.labels)
    columns = tuple(
        ArraySpec(name, (STRUCTURE,), TEXT, {"description": f"input column {name}", "role": "column"})
        for name in mapping.columns
    )
    return (*_GRAPH_ARRAYS, *labels, *columns)


def _reserve(name: str, taken: set[str]) -> None:
    """Reserve a name, so that no other label or column can have it.

    Raises:
        LabelError: The name is already in use or not allowed.
    """
    if name in taken:
        raise LabelError(
            f"{name!r} cannot be the name of a label or column: it is already in use or given twice; rename the label, "
            "or leave the column out"
        )
    if not name or "/" in name or name.startswith((".", "__")):
        raise LabelError(
            f"{name!r} cannot be the name of a label or column: it is empty, contains '/', or begins with '.' or '__'; "
            "rename the label, or leave the column out"
        )
    taken.add(name)


def empty_rows(spec: ArraySpec, length: int) -> Any:
    """Return rows without data: a list of empty strings, or an array of NaN or zeros."""
    if spec.dtype == TEXT:
        return [""] * length
    fill = np.nan if spec.dtype.startswith("float") else 0
    return np.full(spec.shape(length), fill, dtype=spec.dtype)
