"""Born effective charges and dielectric tensors from files in phonopy's format BORN."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ....pipeline.errors import ConfigError
from ....pipeline.structures.structure import Structure
from ...relaxation.symmetry import SymmetricSteps, symmetrized
from ..protocol import BornCharges

FILE_NAME = "BORN"
_TENSOR = 9  # components
# Charges whose symmetric part differs by more than this (e) belong to another crystal, setting or order of the atoms;
# noise of density-functional perturbation theory is some 0.01 e. The second number is the same for the dielectric
# tensor, relative to its largest component.
_ASYMMETRY, _RELATIVE_ASYMMETRY = 0.1, 0.05
_NAMED = 5


@dataclass(frozen=True, slots=True)
class BornFiles:
    """Files with Born charges, by structure.

    Attributes:
        path: The file or folder, as given.
        files: Path of the file of each structure, by structure id; the id is None for a file that was given by itself.
    """

    path: Path
    files: Mapping[str | None, Path]

    @classmethod
    def at(cls, path: str | Path) -> Self:
        """Find the files.

        Args:
            path: A file in phonopy's format BORN, for a single structure; or a folder with a file ``ID/BORN`` or
                ``ID.BORN`` for each structure.

        Raises:
            ConfigError: The path does not exist, or the folder holds no such file or two for the same structure.
        """
        place = Path(path)
        if place.is_file():
            return cls(place, {None: place})
        if not place.is_dir():
            raise ConfigError(
                f"{place}: no such file or folder; give a file in phonopy's format BORN, or a folder of such files"
            )
        found: dict[str | None, Path] = {}
        for file in sorted(place.rglob(f"*{FILE_NAME}")):
            name = file.relative_to(place)
            if name.name != FILE_NAME and file.suffix != f".{FILE_NAME}":
                continue
            key = (name.parent if name.name == FILE_NAME else name.with_suffix("")).as_posix()
            if key in found:
                raise ConfigError(f"{file} and {found[key]} are for the same structure, {key}; keep one of them")
            found[key] = file
        if not found:
            raise ConfigError(f"{place} holds no Born charges; name the file of each structure ID/BORN or ID.BORN")
        return cls(place, found)

    def charges(self, ids: Sequence[str], structures: Sequence[Structure], symprec: float) -> list[BornCharges | None]:
        """Read the charges of some structures.

        Args:
            ids: Ids of the structures.
            structures: The structures; those that are not periodic in three directions need no charges.
            symprec: Tolerance of the search for symmetry: largest distance of a site from its symmetric position,
                angstrom.

        Returns:
            The charges of all atoms of each structure, in the order of its atoms; None for a structure that needs none.

        Raises:
            ConfigError: A structure has no file, several structures share the file that was given by itself, or a file
                cannot be read or does not fit its structure.
        """
        crystals = [place for place, one in enumerate(structures) if one.pbc.all()]
        alone = self.files.get(None)
        if alone is not None and len(crystals) > 1:
            raise ConfigError(
                f"{self.path} holds the charges of one crystal, but {len(crystals)} are chosen; give a folder with a "
                "file ID/BORN for each, or choose one crystal with --where"
            )
        absent = [ids[place] for place in crystals if alone is None and ids[place] not in self.files]
        if absent:
            more = f" and {len(absent) - _NAMED:,} more" if len(absent) > _NAMED else ""
            raise ConfigError(
                f"{self.path} has no Born charges for {', '.join(absent[:_NAMED])}{more}; add a file ID/BORN for each, "
                "or leave these structures out with --where"
            )
        found: list[BornCharges | None] = [None] * len(structures)
        for place in crystals:
            file = self.files[ids[place]] if alone is None else alone
            found[place] = _charges(file, ids[place], structures[place], symprec)
        return found


def content_hash(charges: Sequence[BornCharges | None]) -> str:
    """Return the SHA-256 of the numbers of some charges."""
    digest = hashlib.sha256()
    for one in charges:
        digest.update(b"-" if one is None else one.charges.tobytes() + one.dielectric.tobytes())
    return digest.hexdigest()


def _charges(file: Path, name: str, structure: Structure, symprec: float) -> BornCharges:
    """Return the charges of all atoms of a crystal, with its symmetry.

    Raises:
        ConfigError: The file cannot be read, or does not fit the crystal.
    """
    dielectric, given = read_born(file)
    crystal = symmetrized(structure, symprec)
    symmetry = SymmetricSteps(crystal, symprec)
    independent = np.flatnonzero(symmetry.images.min(axis=0) == np.arange(len(crystal)))
    if len(given) == len(crystal):
        atoms = np.arange(len(crystal))
    elif len(given) == len(independent):
        atoms = independent
    else:
        raise ConfigError(
            f"{file}: charges of {len(given)} atoms, but {name} has {len(crystal)} atoms, {len(independent)} of which "
            "are not equivalent by symmetry; give one line for each atom, or for each of these, in the order of the "
            "structure"
        )
    # For column vectors; `SymmetricSteps` has the operations in fractional coordinates.
    turns = crystal.cell.T @ symmetry.rotations @ np.linalg.inv(crystal.cell.T)
    charges, counts = np.zeros((len(crystal), 3, 3)), np.zeros(len(crystal))
    for turn, image in zip(turns, symmetry.images, strict=True):
        charges[image[atoms]] += turn @ given @ turn.T
        counts[image[atoms]] += 1
    charges /= counts[:, None, None]
    mean = np.mean(turns @ dielectric @ turns.transpose(0, 2, 1), axis=0)
    wrong = np.abs(charges[atoms] - given).max()
    if wrong > _ASYMMETRY or np.abs(mean - dielectric).max() > _RELATIVE_ASYMMETRY * np.abs(dielectric).max():
        raise ConfigError(
            f"{file}: the tensors do not have the symmetry of {name} (charges differ by up to {wrong:.2g} e from their "
            "symmetric part); give them in the Cartesian axes and the order of atoms of the structure"
        )
    return BornCharges(charges - charges.mean(axis=0), mean)


def read_born(file: Path) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Read a file in phonopy's format BORN.

    Its first line (a unit factor or a comment) is ignored, since charges in units of e need no factor. The second line
    holds the dielectric tensor, and each further one the charge tensor of an atom: nine numbers, row by row.

    Args:
        file: The file.

    Returns:
        The dielectric tensor, float64[3, 3], and the charges, float64[n, 3, 3], e.

    Raises:
        ConfigError: The file cannot be read, or a line does not hold nine finite numbers; or the dielectric tensor is
            not positive.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} cannot be read ({error}); give a text file in phonopy's format BORN") from error
    tensors = []
    for number, line in enumerate(lines[1:], start=2):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            values = np.array([float(word) for word in words])
        except ValueError:
            values = np.zeros(0)
        if len(values) != _TENSOR or not np.isfinite(values).all():
            raise ConfigError(
                f"{file}: line {number} does not hold nine numbers; phonopy's format BORN has the dielectric tensor in "
                "line 2 and the charges of one atom in each further line"
            )
        tensors.append(values.reshape(3, 3))
    if len(tensors) < 2:
        raise ConfigError(
            f"{file} needs a dielectric tensor in line 2 and the charges of one atom in each further line"
        )
    dielectric = tensors[0]
    if np.linalg.eigvalsh((dielectric + dielectric.T) / 2).min() <= 0:
        raise ConfigError(f"{file}: the dielectric tensor in line 2 is not positive definite; give the electronic part")
    return dielectric, np.array(tensors[1:])
