"""Check whether two structures are the same phase, by structure alone; names and energies are ignored."""

from __future__ import annotations

import warnings
from typing import Any

from ...pipeline.errors import ConfigError
from ...pipeline.structures.matching import same_crystal
from ...pipeline.structures.structure import Structure


class PhaseMatcher:
    """Compares structures with `same_crystal`, then with pymatgen's StructureMatcher at its default tolerances.

    The StructureMatcher scales volumes to be equal, so that a relaxed structure matches its initial structure. It
    treats mirror images, whose energies are equal, as one phase.

    Args:
        needed_by: The option that needs the comparison, named in the error if pymatgen is not installed.
        extra: The extra of equiscreen that installs pymatgen.

    Raises:
        ConfigError: pymatgen is not installed.
    """

    def __init__(self, needed_by: str, extra: str) -> None:
        try:
            from pymatgen.analysis.structure_matcher import StructureMatcher  # noqa: PLC0415 - slow to import
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"{needed_by} needs {error.name}, which is not installed: pip install 'equiscreen[{extra}]'"
            ) from error
        self._matcher = StructureMatcher()

    def same(self, a: Structure, b: Structure) -> bool:
        """Return whether two structures are the same phase; slabs, chains and molecules must be identical."""
        if same_crystal(a, b):
            return True
        if not (a.pbc.all() and b.pbc.all()):
            return False
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return bool(self._matcher.fit(to_pymatgen(a), to_pymatgen(b)))


def to_pymatgen(structure: Structure) -> Any:
    """Return a structure that is periodic in three directions as a `pymatgen.core.Structure`."""
    from pymatgen.core import Lattice  # noqa: PLC0415 - slow to import
    from pymatgen.core import Structure as Crystal  # noqa: PLC0415

    return Crystal(Lattice(structure.cell), structure.atomic_number.tolist(), structure.frac_coord)
