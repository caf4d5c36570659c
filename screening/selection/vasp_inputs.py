"""VASP input with Materials Project settings: INCAR, KPOINTS, POSCAR and the names of the POTCARs."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from ...pipeline.errors import ConfigError, detail
from ...pipeline.structures.structure import Structure
from ..chemistry.same_phase import to_pymatgen
from .structure_files import Batch


class VaspFolders:
    """A folder with one folder of VASP input per structure.

    POTCARs are covered by VASP's licence and cannot be written; POTCAR.spec names them, one per line, in the order of
    POSCAR.

    Args:
        folder: Folder to create.
        static: Use the settings of a single-point calculation (MPStaticSet) instead of the settings of a
            relaxation (MPRelaxSet).
        dispersion: Add D3 with Becke-Johnson damping (IVDW=12), because the energies that the structures were chosen by
            include it.

    Attributes:
        left_out: Names of structures without input, each with the reason.

    Raises:
        ConfigError: pymatgen is not installed.
    """

    def __init__(self, folder: Path, *, static: bool = False, dispersion: bool = False) -> None:
        self._set, self._dispersion = input_set(static=static), dispersion
        self.folder = folder
        self.left_out: list[tuple[str, str]] = []
        folder.mkdir()

    def write(self, batch: Batch) -> None:
        """Write the structures of a batch."""
        for name, structure in zip(batch.names, batch.structures, strict=True):
            if not structure.pbc.all():
                self.left_out.append((name, "not periodic in three directions"))
                continue
            try:
                files = vasp_files(structure, name, self._set, dispersion=self._dispersion)
            except Exception as error:  # noqa: BLE001 - elements without settings raise various errors
                self.left_out.append((name, detail(error)))
                continue
            folder = self.folder / name
            folder.mkdir()
            for file, text in files.items():
                (folder / file).write_text(text, encoding="utf-8")

    def close(self) -> None:
        """Do nothing: no file is open."""


def input_set(*, static: bool) -> Any:
    """Return pymatgen's class of Materials Project settings.

    Raises:
        ConfigError: pymatgen is not installed.
    """
    try:
        from pymatgen.io.vasp.sets import MPRelaxSet, MPStaticSet  # noqa: PLC0415 - takes a second
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"VASP input needs {error.name}, which is not installed: pip install 'equiscreen[select]'"
        ) from error
    return MPStaticSet if static else MPRelaxSet


def vasp_files(structure: Structure, name: str, settings: Any, *, dispersion: bool = False) -> dict[str, str]:
    """Return the text of each input file, by name.

    Sites are grouped by element, since there is one POTCAR per element.

    Args:
        structure: Structure that is periodic in three directions.
        name: First line of POSCAR.
        settings: Class from `input_set`.
        dispersion: Add D3 with Becke-Johnson damping.
    """
    from pymatgen.io.vasp import Poscar  # noqa: PLC0415 - slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about missing POTCARs and default magnetic moments
        # For a left-handed cell, pymatgen would negate the lattice vectors in POSCAR, but not the coordinates.
        crystal = to_pymatgen(structure.right_handed())
        made = settings(crystal, sort_structure=True, vdw="dftd3-bj" if dispersion else None)
        poscar = Poscar(made.structure, comment=name)
        potcars = [str(symbol) for symbol in made.potcar_symbols]
        return {
            "INCAR": str(made.incar),
            "KPOINTS": str(made.kpoints),
            "POSCAR": poscar.get_str(significant_figures=12),
            "POTCAR.spec": "\n".join(potcars) + "\n",
        }
