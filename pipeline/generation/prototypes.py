"""Prototype crystals, from graph stores or from the AFLOW library shipped with pymatgen."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from ..errors import SourceError
from ..store.graph_store import GraphStore
from ..structures.structure import Structure
from .substitution import BLOCK


def load_prototypes(sources: Sequence[str | Path] = ()) -> list[tuple[str, Structure]]:
    """Read prototypes from graph stores, or load the default ones.

    Args:
        sources: Paths of finished graph stores. If empty, the prototypes of the AFLOW library (Mehl et al., Comput.
            Mater. Sci. 136, S1 (2017)) shipped with pymatgen are used.

    Returns:
        Name and structure of each prototype.

    Raises:
        SourceError: A source is a file instead of a store.
        StoreError: A store is missing, unfinished or damaged, or changes while it is read.
    """
    if not sources:
        return _aflow_prototypes()
    found: list[tuple[str, Structure]] = []
    for path in sources:
        if Path(path).is_file():
            raise SourceError(
                f"{path}: prototypes are read from graph stores; make one with "
                f"`equiscreen featurize {path} --out PROTOTYPES.zarr`"
            )
        store = GraphStore(path)
        names = map(str, store.column("structure_id"))
        for block in store.blocks(BLOCK, labels=False):
            found += zip(islice(names, len(block)), map(block.structure, range(len(block))), strict=True)
        store.check_unchanged()
    return found


def _aflow_prototypes() -> list[tuple[str, Structure]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns about the accuracy of some coordinates
        from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # noqa: PLC0415 - takes seconds to import

        seen: Counter[str] = Counter()
        found = []
        for entry in AFLOW_PROTOTYPE_LIBRARY:
            label, crystal = str(entry["tags"]["aflow"]), entry["snl"].structure
            seen[label] += 1
            name = label if seen[label] == 1 else f"{label}-{seen[label]}"  # different minerals may share a label
            numbers = [site.specie.Z for site in crystal]
            found.append((name, Structure.from_fractional(numbers, crystal.lattice.matrix, crystal.frac_coords)))
    return found
