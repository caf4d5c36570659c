"""Conversion of task documents of atomate and emmet, whose results are under ``output``, to entries."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any, TypeGuard

# The total energy and the energy per atom of a calculation may differ by up to this (eV/atom).
_SAME_ENERGY = 1e-4


def is_task_document(record: object) -> TypeGuard[Mapping[str, Any]]:
    """Return whether a record has its energy under ``output``, not at the top level as in an entry."""
    if not isinstance(record, Mapping) or "energy" in record:
        return False
    output = record.get("output")
    return isinstance(output, Mapping) and "energy" in output


def entry_of_task(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task document with the fields of an entry: id, composition, total energy, Hubbard U and structure.

    The composition is taken from the structure or, without one, from the composition that the document states; if there
    is neither, the entry has no composition.

    Raises:
        ValueError: The total energy and the energy per atom contradict each other for this composition.
    """
    output = document["output"]
    structure = document.get("structure") or output.get("structure")
    composition = _atoms(structure) or document.get("composition_unit_cell") or document.get("composition")
    parameters = document.get("parameters") or _parameters(document)
    per_atom, total = output.get("energy_per_atom"), output["energy"]
    if _is_number(per_atom) and _is_number(total) and isinstance(composition, Mapping):
        n_atoms = sum(count for count in composition.values() if _is_number(count))
        if abs(total - per_atom * n_atoms) > _SAME_ENERGY * max(n_atoms, 1):
            raise ValueError(f"{total:g} eV and {per_atom:g} eV/atom contradict each other for {n_atoms:g} atoms")
    made = {
        "entry_id": document.get("entry_id", document.get("task_id")),
        "composition": composition,
        "energy": total,
        "parameters": parameters,
        "structure": structure,
    }
    return {**document, **made}


def _atoms(structure: object) -> dict[str, float]:
    """Return the number of atoms of each species of a pymatgen structure; empty for anything else."""
    found: Counter[str] = Counter()
    sites = structure.get("sites") if isinstance(structure, Mapping) else None
    for site in sites if isinstance(sites, list) else []:
        species = site.get("species") if isinstance(site, Mapping) else None
        for one in species if isinstance(species, list) else [None]:
            if not isinstance(one, Mapping) or not _is_number(one.get("occu")):
                return {}
            found[str(one.get("element"))] += one["occu"]
    return dict(found)


def _parameters(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the Hubbard U of a task, from its input or the input of the calculation that was run last."""
    last = document.get("calcs_reversed")
    calculation = last[0] if isinstance(last, list) and last else None
    for one in (document, calculation):
        settings = one.get("input") if isinstance(one, Mapping) else None
        if isinstance(settings, Mapping) and settings.get("hubbards") is not None:
            return {"hubbards": settings["hubbards"]}
    return {}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
