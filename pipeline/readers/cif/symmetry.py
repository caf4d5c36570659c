"""Symmetry of a data block: the possible readings of what it states, and the atoms that each reading generates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import gemmi
import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidStructureError
from .groups import LARGEST_NUMBER, groups_by_name, groups_by_number, other_settings
from .tags import (
    GROUP_NUMBERS,
    HALL_SYMBOLS,
    MAGNETIC_OPERATIONS,
    OPERATIONS,
    SETTING_CODE,
    SYMBOLS,
    UNKNOWN,
    Tags,
)

# Largest difference between the metric of a cell and its image under the group, as a fraction of the edges: 0.5 % of an
# edge, or 0.6 degrees. Printed cells are exact; relaxed cells deviate by a tenth of this.
_METRIC_TOLERANCE = 0.01
# Distance (angstrom) below which two atoms of one element are the same atom. Atoms of different elements this close
# overlap and have no graph.
_SAME_PLACE = 0.1
_MOST_COMPARED = 5000
_IDENTITY = "x,y,z"


@dataclass(frozen=True)
class Reading:
    """One reading of the symmetry of a block.

    Attributes:
        name: Name of the group, for messages.
        triplets: All operations, including lattice centrings.
        rotations: Distinct rotation matrices of the operations: int64[n, 3, 3].
        group: The tabulated group; None for a setting that is not tabulated.
    """

    name: str
    triplets: tuple[str, ...]
    rotations: NDArray[np.int64]
    group: gemmi.SpaceGroup | None

    @property
    def number(self) -> int:
        """Number of the space group; 0 if it is unknown."""
        return 0 if self.group is None else int(self.group.number)

    @property
    def trivial(self) -> bool:
        """Whether the only operation is the identity."""
        return len(self.triplets) == 1

    def fits(self, cell: gemmi.UnitCell) -> bool:
        """Whether the group maps the lattice of a cell onto itself."""
        vectors = np.array(cell.orth.mat.tolist()).T
        metric = vectors @ vectors.T
        edges = np.sqrt(np.diag(metric))
        images = np.swapaxes(self.rotations, 1, 2) @ metric @ self.rotations
        return bool((np.abs(images - metric) <= _METRIC_TOLERANCE * np.outer(edges, edges)).all())


@dataclass(frozen=True)
class Statements:
    """What a data block states about its symmetry.

    Attributes:
        readings: Possible readings; more than one if the statements are ambiguous or contradict each other.
        conflict: Why there are several readings.
        stated: Whether the block gives any symmetry; if not, it lists all atoms.
    """

    readings: Sequence[Reading]
    conflict: str = ""
    stated: bool = True


def read_symmetry(block: gemmi.cif.Block, tags: Tags, cell: gemmi.UnitCell) -> Statements:
    """Read the symmetry of a block.

    Raises:
        InvalidStructureError: The symmetry is not understood, or contradicts the cell.
    """
    listed = next((tags.column(block, name) for name in OPERATIONS if name in tags.names), None) or ()
    values = tuple(block.find_value(tags.names[name]) or "?" for name in tags.symmetry)
    magnetic = _magnetic_operations(block, tags) if tags.magnetic else ()
    if not magnetic and _says_nothing(tuple(listed), values):
        return _ALL_LISTED if listed or values else _NO_SYMMETRY
    plain = (gemmi.cif.as_string(text).strip() for text in listed)
    operations = tuple(text for text in plain if text not in UNKNOWN)
    texts = (gemmi.cif.as_string(value).strip() for value in values)
    stated = {name: text for name, text in zip(tags.symmetry, texts, strict=True) if text not in UNKNOWN}
    return _statements(operations, magnetic, stated, cell)


@lru_cache(maxsize=4096)
def _says_nothing(operations: tuple[str, ...], values: tuple[str, ...]) -> bool:
    """Whether a block gives no symmetry beyond P 1, which means that it lists all atoms."""
    plain = {gemmi.cif.as_string(text).replace(" ", "").upper() for text in values}
    listed = [gemmi.cif.as_string(text).replace(" ", "").lower() for text in operations]
    return plain <= {*UNKNOWN, "1", "P1"} and listed in ([], [_IDENTITY])


def _magnetic_operations(block: gemmi.cif.Block, tags: Tags) -> tuple[str, ...]:
    """Return the operations of a magnetic group, combined with its centring translations, without time reversal."""
    lists = []
    for name in MAGNETIC_OPERATIONS:
        values = [gemmi.cif.as_string(value).strip() for value in tags.column(block, name) or [_IDENTITY]]
        lists.append([_operation(value) for value in values if value not in UNKNOWN])
    return tuple((first * second).wrap().triplet() for second in lists[1] for first in lists[0])


def _operation(text: str) -> gemmi.Op:
    """Parse an operation, without the time reversal of a magnetic one (x,y,z,-1)."""
    parts = text.split(",")
    if len(parts) == 4 and parts[3].strip() in ("1", "+1", "-1"):
        text = ",".join(parts[:3])
    try:
        operation = gemmi.Op(text).wrap()
    except (RuntimeError, ValueError) as error:
        raise InvalidStructureError(f"symmetry not understood (operation {text!r})") from error
    if abs(operation.det_rot()) != operation.DEN**3:
        raise InvalidStructureError(f"symmetry not understood (operation {text!r} is not a lattice symmetry)")
    return operation


def _statements(
    operations: tuple[str, ...], magnetic: tuple[str, ...], stated: dict[str, str], cell: gemmi.UnitCell
) -> Statements:
    """Return the readings that fit the cell.

    Raises:
        InvalidStructureError: No reading fits the cell.
    """
    by_operations = [_by_operations(texts) for texts in (magnetic, operations) if texts]
    try:
        by_names = [] if magnetic else _by_names(stated, cell)  # ordinary names give the parent group
    except InvalidStructureError:
        if not by_operations:  # the operations hold all that an unknown name could add
            raise
        by_names = []
    if not by_operations and not by_names:
        return _NO_SYMMETRY
    alternatives = [*([one] for one in by_operations), *by_names]
    fitting = [[reading for reading in group if reading.fits(cell)] for group in alternatives]
    for group, kept in zip(alternatives, fitting, strict=True):
        if not kept:
            shape = ", ".join(f"{value:g}" for value in cell.parameters)
            raise InvalidStructureError(f"the cell ({shape}) contradicts the space group {group[0].name}")
    numbers = {reading.number for group in fitting for reading in group if reading.number}
    orders = {len(reading.rotations) for group in fitting for reading in group}
    if len(numbers) > 1 or len(orders) > 1:
        words = " and ".join(dict.fromkeys(group[0].name for group in fitting))
        return Statements([reading for group in fitting for reading in group], f"contradictory symmetry: {words}")
    if by_operations:
        return Statements(
            [group[0] for group in fitting[: len(by_operations)]],
            "contradictory symmetry: there are two lists of operations",
        )
    first = fitting[0]
    return Statements(
        first,
        f"ambiguous space group ({' or '.join(reading.name for reading in first)}); write one, or list the operations",
    )


@lru_cache(maxsize=1024)
def _by_operations(texts: tuple[str, ...]) -> Reading:
    """Return the reading of a list of operations.

    Raises:
        InvalidStructureError: An operation does not parse, or the operations do not form a group.
    """
    operations = list({op.triplet(): op for op in map(_operation, texts)}.values())
    triplets = tuple(op.triplet() for op in operations)
    rotations = np.array([op.rot for op in operations], dtype=np.int64) // gemmi.Op.DEN
    shifts = np.array([op.tran for op in operations], dtype=np.int64)
    products = rotations[:, None] @ rotations[None]
    moved = (np.einsum("aij,bj->abi", rotations, shifts) + shifts[:, None]) % gemmi.Op.DEN
    known = set(_codes(rotations, shifts % gemmi.Op.DEN).tolist())
    if not known.issuperset(_codes(products.reshape(-1, 3, 3), moved.reshape(-1, 3)).tolist()):
        raise InvalidStructureError("the symmetry operations do not form a group (some are missing or wrong)")
    if len(triplets) == 1:
        return Reading("P 1 (operations)", triplets, rotations, gemmi.SpaceGroup("P 1"))
    group = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operations))
    name = "of the operations" if group is None else f"{group.xhm()} (operations)"
    return Reading(name, triplets, np.unique(rotations, axis=0), group)


def _codes(rotations: NDArray[np.int64], shifts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Encode each operation as one number, for comparison: int64[n]."""
    digits = np.concatenate([rotations.reshape(-1, 9) + 2, shifts], axis=1)
    code = np.zeros(len(digits), dtype=np.int64)
    for column in digits.T:
        code = code * gemmi.Op.DEN + column
    return code


def _by_names(values: dict[str, str], cell: gemmi.UnitCell) -> list[list[Reading]]:
    """Return the readings of each name, number or Hall symbol of a group.

    Raises:
        InvalidStructureError: A name or number is not understood.
    """
    out = []
    choice = values.get(SETTING_CODE, "").lower()
    for name in (*SYMBOLS, *GROUP_NUMBERS):
        text = values.get(name, "")
        if not text:
            continue
        numbered = name in GROUP_NUMBERS or text.isdigit()
        groups = _of_number(text, cell) if numbered else groups_by_name(text)
        if not groups:
            raise InvalidStructureError(f"symmetry not understood ({text})")
        chosen = [group for group in groups if choice in (group.ext.lower(), group.qualifier)]
        out.append([_tabulated(group) for group in chosen or _of_the_cell(groups, cell)])
    halls = [text for name in HALL_SYMBOLS if (text := values.get(name, ""))]
    for text in halls:
        try:
            operations = gemmi.symops_from_hall(text)
        except (RuntimeError, ValueError) as error:
            if out:
                continue
            raise InvalidStructureError(f"symmetry not understood (Hall symbol {text})") from error
        found = gemmi.find_spacegroup_by_ops(operations)
        reading = _by_operations(tuple(op.triplet() for op in operations)) if found is None else _tabulated(found)
        out = [_agreeing(group, reading) for group in out]  # a Hall symbol fixes origin and axes
        out.insert(0, [reading])
    return _narrowed(out)


def _narrowed(statements: list[list[Reading]]) -> list[list[Reading]]:
    """Remove settings that another statement about the same group rules out."""
    names = [{reading.name for reading in group} for group in statements]
    out = []
    for group in statements:
        common = [
            reading
            for reading in group
            if all(reading.name in other for other in names if any(one.name in other for one in group))
        ]
        out.append(common or group)
    return sorted(out, key=len)


def _agreeing(group: list[Reading], reading: Reading) -> list[Reading]:
    return [one for one in group if one.name == reading.name] or group


def _of_number(text: str, cell: gemmi.UnitCell) -> tuple[gemmi.SpaceGroup, ...]:
    """Return the settings of a group given by its number; a non-standard setting only if the cell requires it."""
    if not text.isdigit() or not 1 <= int(text) <= LARGEST_NUMBER:
        raise InvalidStructureError(f"symmetry not understood (space group number {text})")
    standard = groups_by_number(int(text))
    if any(_tabulated(group).fits(cell) for group in standard):
        return standard
    return tuple(group for group in other_settings(int(text)) if _tabulated(group).fits(cell)) or standard


def _of_the_cell(groups: Sequence[gemmi.SpaceGroup], cell: gemmi.UnitCell) -> Sequence[gemmi.SpaceGroup]:
    """Return the settings whose axes fit the cell; for a short monoclinic symbol, only the most common setting."""
    fitting = [group for group in groups if _tabulated(group).fits(cell)]
    if not fitting:
        return groups
    if fitting[0].ext in ("H", "R"):
        return fitting[:1]
    axis = fitting[0].qualifier.strip("-")[:1]
    return [group for group in fitting if group.qualifier.strip("-")[:1] == axis]


@lru_cache(maxsize=1024)
def _setting(name: str) -> Reading:
    group = gemmi.SpaceGroup(name)
    operations = list(group.operations())
    rotations = np.unique(np.array([op.rot for op in operations], dtype=np.int64) // gemmi.Op.DEN, axis=0)
    return Reading(name, tuple(op.triplet() for op in operations), rotations, group)


def _tabulated(group: gemmi.SpaceGroup) -> Reading:
    return _setting(group.xhm())


_ALL_LISTED = Statements([_by_operations((_IDENTITY,))])
_NO_SYMMETRY = replace(_ALL_LISTED, stated=False)


def generated(
    reading: Reading, cell: gemmi.UnitCell, numbers: Sequence[int], frac_coord: Sequence[Sequence[float]]
) -> tuple[list[int], list[list[float]], list[int]]:
    """Return the atoms of the cell: atomic numbers, fractional coordinates, and the index of each atom's listed site.

    gemmi treats images of one site within 0.4 angstrom as one atom on a special position.
    """
    if reading.trivial:
        return list(numbers), [list(xyz) for xyz in frac_coord], list(range(len(numbers)))
    small = gemmi.SmallStructure()
    small.cell = gemmi.UnitCell(*cell.parameters)
    for place, (number, xyz) in enumerate(zip(numbers, frac_coord, strict=True)):
        site = gemmi.SmallStructure.Site()
        site.label, site.element, site.fract = str(place), gemmi.Element(number), gemmi.Fractional(*xyz)
        small.add_site(site)
    if reading.group is not None:
        small.spacegroup = reading.group
        small.setup_cell_images()
    else:
        small.symops = list(reading.triplets)
        small.determine_and_set_spacegroup("S.")
    sites = small.get_all_unit_cell_sites()
    return (
        [site.element.atomic_number for site in sites],
        [site.fract.tolist() for site in sites],
        [int(site.label) for site in sites],
    )


def without_repeats(
    numbers: Sequence[int], frac_coord: Sequence[Sequence[float]], origins: Sequence[int], cell: gemmi.UnitCell
) -> list[int]:
    """Return the indices of the atoms that no earlier site has generated: some files also list equivalent sites."""
    if len(numbers) > _MOST_COMPARED:
        return list(range(len(numbers)))
    frac, kinds, sites = np.array(frac_coord), np.array(numbers), np.array(origins)
    vectors = np.array(cell.orth.mat.tolist()).T
    kept = np.ones(len(frac), dtype=bool)
    for site in range(1, int(sites.max()) + 1):
        own, before = np.flatnonzero(sites == site), np.flatnonzero((sites < site) & kept)
        before = before[kinds[before] == kinds[own[0]]]
        if len(before):
            kept[own] = _distances(frac[own], frac[before], vectors).min(axis=1) > _SAME_PLACE
    return np.flatnonzero(kept).tolist()


def same_atoms(
    first: tuple[Sequence[int], Sequence[Sequence[float]]],
    second: tuple[Sequence[int], Sequence[Sequence[float]]],
    cell: gemmi.UnitCell,
) -> bool:
    """Whether two lists of atoms of one cell are the same, in any order."""
    if sorted(first[0]) != sorted(second[0]) or len(first[0]) > _MOST_COMPARED:
        return False
    vectors = np.array(cell.orth.mat.tolist()).T
    distances = _distances(np.array(first[1]), np.array(second[1]), vectors)
    distances[np.array(first[0])[:, None] != np.array(second[0])] = np.inf
    return bool((distances.min(axis=1) <= _SAME_PLACE).all() and (distances.min(axis=0) <= _SAME_PLACE).all())


def _distances(
    first: NDArray[np.float64], second: NDArray[np.float64], vectors: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the distances between atoms, exact if they are short: float64[n, m], angstrom."""
    difference = first[:, None] - second
    distances: NDArray[np.float64] = np.linalg.norm((difference - np.rint(difference)) @ vectors, axis=-1)
    return distances
