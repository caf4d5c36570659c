"""Symmetry of a CIF: the space group in the setting of the file, checked against everything else that the file says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import gemmi
import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidStructureError
from ..structures.elements import atomic_number
from .cif_sites import CifSites, CifValues

_OPERATOR_TAGS = (
    "_space_group_symop_operation_xyz",
    "_space_group_symop.operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_symmetry_equiv.pos_as_xyz",
)
# Operations of a magnetic group end in +1 or -1, for time reversal, which moves no atom.
_MAGNETIC_TAGS = (
    "_space_group_symop_magn_operation.xyz",
    "_space_group_symop_magn_operation_xyz",
    "_space_group_symop.magn_operation_xyz",
    "_space_group_symop_magn.operation_xyz",
    "_magnetic_space_group_symop_operation_xyz",
)
_CENTERING_TAGS = (
    "_space_group_symop_magn_centering.xyz",
    "_space_group_symop_magn_centering_xyz",
    "_space_group_symop.magn_centering_xyz",
    "_space_group_symop_magn.centering_xyz",
    "_magnetic_space_group_symop_centering_xyz",
)
_MAGNETIC_GROUP_TAGS = tuple(
    f"_{prefix}{dot}{name}"
    for prefix in ("space_group_magn", "space_group.magn", "magnetic_space_group")
    for dot in (".", "_")
    for name in ("number_bns", "name_bns", "number_og", "name_og")
)
_MODULATED_TAGS = ("_cell_modulation_dimension", "_space_group_ssg_name", "_space_group_ssg_name_it")
_HALL_TAGS = ("_space_group_name_hall", "_symmetry_space_group_name_hall", "_space_group.name_hall")
_NAME_TAGS = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group.name_h-m_alt",
    "_space_group_name_h-m_full",
    "_symmetry.space_group_name_h-m",
)
_NUMBER_TAGS = (
    "_space_group_it_number",
    "_symmetry_int_tables_number",
    "_space_group.it_number",
    "_symmetry.int_tables_number",
)
# The setting after a name: origin 1 or 2 (S and Z in files of the ICSD), hexagonal or rhombohedral axes.
_SETTING = re.compile(r"^(.*?)(?:\s*:\s*|\s+)([12SZHRszhr])$")
_ORIGINS = {"S": "1", "Z": "2"}
_FULL = re.compile(r"[2346][1-5]?/([a-z])")
_TERM = re.compile(r"([A-Z][a-z]?)\s*([\d.]*)")
# How far an operation may change the metric tensor, relative to the squared lengths.
_METRIC = 0.01
# Sites that coincide with their own images within this (angstrom) are on a symmetry element.
_SAME_SITE = 0.4
# Relative difference between numbers of atoms that formulas and files state.
_FRACTION = 0.02
_MAX_OPERATORS = 1024


def expanded(values: CifValues, cell: gemmi.UnitCell, sites: CifSites) -> tuple[list[int], list[list[float]]]:
    """All atoms of the cell: atomic numbers and fractional coordinates.

    Raises:
        InvalidStructureError: The symmetry is unknown, contradicts the cell, or yields other atoms than the file says.
    """
    for tag in _MODULATED_TAGS:
        if tag in values:
            raise InvalidStructureError(f"modulated structure ({tag})")
    operators = _operators(values)
    settings = _settings(values)
    names = "; ".join(values.texts((*_NAME_TAGS, *_HALL_TAGS, *_NUMBER_TAGS)))
    if len(operators) > 1:
        group: gemmi.SpaceGroup | None = gemmi.find_spacegroup_by_ops(gemmi.GroupOps(operators))
        if group is None:
            atoms = _images(cell, sites, operators, names)
        else:
            _check_metric([group], cell)
            atoms = _atoms(cell, sites, group)
    elif settings is None:
        if names and not operators:
            raise InvalidStructureError(f"symmetry not understood ({names})")
        atoms = _atoms(cell, sites, None)
    else:
        fitting = _check_metric(settings, cell) if not operators else settings
        atoms = _listed_or_generated(values, cell, sites, fitting, listed=bool(operators))
    _check_content(values, Counter(atoms[0]))
    return atoms


def _operators(values: CifValues) -> list[gemmi.Op]:
    """Symmetry operations of a file; those of a magnetic group without time reversal.

    Raises:
        InvalidStructureError: An operation does not parse, or a magnetic group is named without its operations.
    """
    magnetic = _loop(values, _MAGNETIC_TAGS)
    if magnetic:
        centerings = _loop(values, _CENTERING_TAGS) or ["x,y,z"]
        pairs = [(_operator(c), _operator(o)) for c in centerings for o in magnetic]
        return list({(c * o).wrap().triplet(): (c * o).wrap() for c, o in pairs}.values())
    operators = [_operator(text) for text in _loop(values, _OPERATOR_TAGS)]
    if not operators and any(values.texts(_MAGNETIC_GROUP_TAGS)):
        raise InvalidStructureError("magnetic space group without its operations")
    return operators


def _loop(values: CifValues, tags: Sequence[str]) -> list[str]:
    return next((values.column(tag) for tag in tags if tag in values), [])


def _operator(text: str) -> gemmi.Op:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 4 and parts[3].lstrip("+-") in {"1", "m"}:
        parts = parts[:3]
    try:
        operation: gemmi.Op = gemmi.Op(",".join(parts))
    except (ValueError, RuntimeError) as error:
        raise InvalidStructureError(f"symmetry not understood (operation {text[:40]!r})") from error
    return operation


def _settings(values: CifValues) -> list[gemmi.SpaceGroup] | None:
    """The settings of the space group that a file may mean; None if it names no known one."""
    for text in values.texts(_HALL_TAGS):
        try:
            group: gemmi.SpaceGroup | None = gemmi.find_spacegroup_by_ops(gemmi.symops_from_hall(text))
        except (ValueError, RuntimeError):
            continue
        if group is not None:
            return [group]
    for text in values.texts(_NAME_TAGS):
        if found := _named(text):
            return found
    for text in values.texts(_NUMBER_TAGS):
        if text.isdecimal() and 1 <= int(text) <= 230:
            reference = gemmi.get_spacegroup_reference_setting(int(text))
            return [group for group in _of_number(int(text)) if group.hm == reference.hm]
    return None


@lru_cache(maxsize=1024)
def _named(text: str) -> list[gemmi.SpaceGroup]:
    """Settings that a Hermann-Mauguin symbol may mean, the usual one first."""
    base, setting = text.replace("_", ""), ""
    group: gemmi.SpaceGroup | None = gemmi.find_spacegroup_by_name(_short(base))
    if (found := _SETTING.match(base)) and (group is None or found[2].upper() in "SZHR"):
        base, setting = found[1], _ORIGINS.get(found[2].upper(), found[2].upper())
        group = gemmi.find_spacegroup_by_name(_short(base))
    if group is None:
        return []
    if ":" in text and not setting:
        setting = group.ext
    same = [other for other in _of_number(group.number) if _words(other.hm) == _words(group.hm)]
    if group.hm.replace(" ", "") != base.replace(" ", "") and "1" not in _words(base):
        # A short monoclinic symbol, such as P 2/m, leaves the unique axis open.
        bare = [word for word in _words(group.hm) if word != "1"]
        same += [
            other
            for other in _of_number(group.number)
            if other not in same and [word for word in _words(other.hm) if word != "1"] == bare
        ]
    if setting in {"1", "2"}:
        return [other for other in same if other.ext == setting] or same
    return same  # of hexagonal and rhombohedral axes, the cell decides


def _short(symbol: str) -> str:
    """The short form of a full symbol: P 63/m 2/m 2/c is P 63/m m c."""
    words = symbol.split()
    if len(words) < 3:
        return symbol
    if "-3" in words[1:3] or (len(words) == 4 and "1" not in words):
        keep = 2 if len(words) == 4 and words[1][0] in "46" and words[2] != "-3" else 1
        words[keep:] = [_FULL.sub(r"\1", word) for word in words[keep:]]
    return " ".join(words)


def _words(symbol: str) -> list[str]:
    return symbol.split()


@lru_cache(maxsize=256)
def _of_number(number: int) -> list[gemmi.SpaceGroup]:
    return [group for group in gemmi.spacegroup_table() if group.number == number]


def _check_metric(settings: Sequence[gemmi.SpaceGroup], cell: gemmi.UnitCell) -> list[gemmi.SpaceGroup]:
    """The settings whose operations keep the lengths and angles of the cell.

    Raises:
        InvalidStructureError: There is none.
    """
    fitting = [group for group in settings if _keeps_metric(cell, _rotations(group.xhm()))]
    if not fitting:
        raise _contradiction(cell, settings[0].xhm())
    return fitting


def _contradiction(cell: gemmi.UnitCell, group: str) -> InvalidStructureError:
    shape = " ".join(f"{value:g}" for value in cell.parameters)
    return InvalidStructureError(f"the cell ({shape}) contradicts the space group {group}")


def _keeps_metric(cell: gemmi.UnitCell, rotations: NDArray[np.float64]) -> bool:
    """Whether rotations, float64[n, 3, 3] in fractional coordinates, keep the lengths and angles of a cell."""
    vectors = np.array(cell.orth.mat.tolist())
    metric = vectors.T @ vectors
    lengths = np.sqrt(np.diag(metric))
    moved = np.swapaxes(rotations, 1, 2) @ metric @ rotations
    return bool((np.abs(moved - metric) <= _METRIC * np.outer(lengths, lengths)).all())


@lru_cache(maxsize=1024)
def _rotations(name: str) -> NDArray[np.float64]:
    """float64[n, 3, 3], rotations of a space group, in fractional coordinates."""
    operations = gemmi.find_spacegroup_by_name(name).operations()
    return np.array([operation.rot for operation in operations.sym_ops], dtype=np.float64) / gemmi.Op.DEN


def _atoms(
    cell: gemmi.UnitCell, sites: CifSites, group: gemmi.SpaceGroup | None
) -> tuple[list[int], list[list[float]]]:
    """All atoms of the cell.

    Raises:
        InvalidStructureError: A site has another multiplicity than the file says.
    """
    if group is None or group.number == 1:
        _check_multiplicities(sites, [1] * len(sites.numbers), group)
        return list(sites.numbers), [list(frac) for frac in sites.frac]
    small = gemmi.SmallStructure()
    small.cell = cell
    for place, frac in enumerate(sites.frac):
        site = gemmi.SmallStructure.Site()
        site.label, site.element = str(place), gemmi.Element(sites.numbers[place])
        site.fract = gemmi.Fractional(*frac)
        small.add_site(site)
    small.spacegroup = group
    small.setup_cell_images()
    atoms = small.get_all_unit_cell_sites()
    made = Counter(int(atom.label) for atom in atoms)
    _check_multiplicities(sites, [made[place] for place in range(len(sites.numbers))], group)
    return [atom.element.atomic_number for atom in atoms], [atom.fract.tolist() for atom in atoms]


def _images(
    cell: gemmi.UnitCell, sites: CifSites, operators: Sequence[gemmi.Op], names: str
) -> tuple[list[int], list[list[float]]]:
    """All atoms of the cell by operations that are no tabulated setting of a space group.

    Raises:
        InvalidStructureError: The operations are no group, or contradict the cell, or a site has another multiplicity
            than the file says.
    """
    known = {operation.wrap().triplet() for operation in operators}
    if len(operators) > _MAX_OPERATORS or any(
        (a * b).wrap().triplet() not in known for a in operators for b in operators
    ):
        raise InvalidStructureError(f"symmetry not understood ({names or f'{len(operators)} operators'})")
    rotations = np.array([operation.rot for operation in operators], dtype=np.float64) / gemmi.Op.DEN
    if not _keeps_metric(cell, rotations):
        raise _contradiction(cell, names or f"of the {len(operators)} operators")
    moves = np.array([operation.tran for operation in operators], dtype=np.float64) / gemmi.Op.DEN
    vectors = np.array(cell.orth.mat.tolist()).T
    numbers: list[int] = []
    atoms: list[list[float]] = []
    made = []
    for number, frac in zip(sites.numbers, sites.frac, strict=True):
        images = rotations @ np.array(frac) + moves
        kept: list[int] = []
        for place, image in enumerate(images):
            step = images[kept] - image
            if (np.linalg.norm((step - np.round(step)) @ vectors, axis=1) > _SAME_SITE).all():
                kept.append(place)
        made.append(len(kept))
        numbers += [number] * len(kept)
        atoms += images[kept].tolist()
    _check_multiplicities(sites, made, None)
    return numbers, atoms


def _check_multiplicities(sites: CifSites, made: Sequence[int], group: gemmi.SpaceGroup | None) -> None:
    for label, stated, count in zip(sites.labels, sites.multiplicities, made, strict=True):
        if stated is not None and stated != count:
            by = "the operations that it lists" if group is None else group.xhm()
            raise InvalidStructureError(
                f"atoms are missing: site {label} has multiplicity {stated} in the file, and {count} by {by}"
            )


def _listed_or_generated(
    values: CifValues,
    cell: gemmi.UnitCell,
    sites: CifSites,
    settings: Sequence[gemmi.SpaceGroup],
    *,
    listed: bool,
) -> tuple[list[int], list[list[float]]]:
    """Atoms of a file that names a space group, but does not list its operations.

    Args:
        values: Values of the data block.
        cell: Unit cell.
        sites: Sites of the file.
        settings: Settings that the name may mean.
        listed: Whether the file lists the identity as its only operation, which means that it lists all atoms.

    Raises:
        InvalidStructureError: Atoms are missing, or the setting is not certain.
    """
    if listed:
        atoms = _atoms(cell, sites, None)
        if any(group.number == 1 or _complete(cell, sites, group) for group in settings):
            return atoms
        raise InvalidStructureError(
            f"atoms are missing: the only operation is the identity, but {settings[0].xhm()} makes more of these sites"
        )
    origins = {group.ext for group in settings} & {"1", "2"}
    if len(origins) < 2:
        return _atoms(cell, sites, settings[0])
    fitting, problems = [], []
    for group in settings:
        try:
            atoms = _atoms(cell, sites, group)
            _check_content(values, Counter(atoms[0]), needed=True)
        except InvalidStructureError as error:
            problems.append(error)
        else:
            fitting.append(atoms)
    if len(fitting) != 1:
        raise (
            problems[0]
            if len(problems) == len(settings) and _states_content(values)
            else InvalidStructureError(
                f"origin not stated: {settings[0].hm} has two origin choices; add the symmetry operators, or :1 or :2"
            )
        )
    return fitting[0]


def _complete(cell: gemmi.UnitCell, sites: CifSites, group: gemmi.SpaceGroup) -> bool:
    """Whether a space group maps the listed sites onto each other."""
    frac, numbers = np.array(sites.frac), np.array(sites.numbers)
    vectors = np.array(cell.orth.mat.tolist()).T
    for operation in group.operations():
        moved = frac @ np.array(operation.rot).T / gemmi.Op.DEN + np.array(operation.tran) / gemmi.Op.DEN
        step = moved[:, None] - frac[None]
        distance = np.linalg.norm((step - np.round(step)) @ vectors, axis=2)
        distance[numbers[:, None] != numbers[None]] = np.inf
        if (distance.min(axis=1) > _SAME_SITE).any():
            return False
    return True


def _states_content(values: CifValues) -> bool:
    return bool(_formula(values)) and any(True for _ in values.texts(("_cell_formula_units_z",)))


def _formula(values: CifValues) -> dict[int, float]:
    """Number of atoms of each element in the formula of a file; empty if it has none that is understood."""
    return next(map(_parsed, values.texts(("_chemical_formula_sum", "_chemical_formula.sum"))), {})


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[int, float]:
    counts: dict[int, float] = {}
    try:
        if _TERM.sub("", text).strip():
            return {}
        for symbol, count in _TERM.findall(text):
            number = 1 if symbol == "D" else atomic_number(symbol, "formula")
            counts[number] = counts.get(number, 0.0) + float(count or 1)
    except (InvalidStructureError, ValueError):
        return {}
    return {number: count for number, count in counts.items() if count > 0}


def _check_content(values: CifValues, found: Counter[int], *, needed: bool = False) -> None:
    """Check the atoms of the cell against the formula and the number of formula units of a file.

    Args:
        values: Values of the data block.
        found: Number of atoms by atomic number.
        needed: Whether a file that states neither is a failure.

    Raises:
        InvalidStructureError: They disagree.
    """
    formula = _formula(values)
    if not formula:
        if needed:
            raise InvalidStructureError("the file states no formula")
        return
    units = {number: found.get(number, 0) / formula.get(number, np.inf) for number in {*found, *formula}}
    least, most = min(units.values()), max(units.values())
    stated = [text for text in values.texts(("_cell_formula_units_z",)) if text.isdecimal() and int(text)]
    if most - least > _FRACTION * most:
        lacking = min(units, key=lambda number: units[number])
        raise InvalidStructureError(
            f"the sites do not have the composition that the file states ({gemmi.Element(lacking).name}: "
            f"{found.get(lacking, 0)} atoms in the cell)"
        )
    if stated and min(abs(most - int(stated[0])), abs(most - 1)) > _FRACTION * most:  # the formula may be of the cell
        raise InvalidStructureError(
            f"the file states {stated[0]} formula units in the cell, but its sites and symmetry yield {most:g}"
        )
    if needed and not stated:
        raise InvalidStructureError("the file states no number of formula units")
