"""Energies above hull of calculated energies, which are the labels of a graph store."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from equiscreen.pipeline import LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening import hull
from equiscreen.screening.convex_hull.hull import summary
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition, Structure
from pymatgen.entries.compatibility import MaterialsProject2020Compatibility
from pymatgen.entries.computed_entries import ComputedStructureEntry

from .hull_data import elements_of_mp, rows_of_mp


def test_labels_of_a_graph_store_get_the_distances_of_pymatgen(data: Path, tmp_path: Path) -> None:
    """Entries as references and as candidates, some of them with a run type that has no corrections."""
    elements = elements_of_mp(data)
    symbols = {"Li", "Fe", "O", "P", "S"}
    rows = [row for row in rows_of_mp(data) if set(re.findall(r"[A-Z][a-z]?", row["elements"])) <= symbols]
    entries = []
    unstated = 0
    for place, row in enumerate(rows):
        structure = Structure.from_str(row["cif"], fmt="cif")
        amounts = structure.composition.get_el_amt_dict()
        energy = float(row["formation_energy_per_atom"]) * len(structure)
        energy += sum(elements[symbol] * count for symbol, count in amounts.items())
        has_u = {"Fe", "O"} <= set(amounts)
        wrong = has_u and place % 3 == 0
        hubbards = {"Fe": 5.3} if has_u and not wrong else {}
        run_type = "GGA+U" if hubbards else "" if not has_u and place % 5 == 1 else "GGA"
        unstated += not run_type
        parameters = {"run_type": run_type, "is_hubbard": bool(hubbards), "hubbards": hubbards}
        entries.append(ComputedStructureEntry(structure, energy, parameters=parameters, entry_id=row["material_id"]))
    stated = [entry for entry in entries if entry.parameters["run_type"]]  # others would be taken for references
    for name, some in (("entries.json", entries), ("references.json", stated)):
        (tmp_path / name).write_text(json.dumps([entry.as_dict() for entry in some], default=str))
    labels = LabelMapping.load("pymatgen-entries")
    featurize(tmp_path / "entries.json", tmp_path / "g.zarr", labels=labels, scheduler="threads")
    with pytest.raises(ConfigError, match=r"g\.zarr: a graph store states no energy scheme.*--scheme"):
        hull(tmp_path / "g.zarr", tmp_path / "entries.json")
    found = hull(tmp_path / "g.zarr", tmp_path / "references.json", scheme="mp-uncorrected")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        corrected = MaterialsProject2020Compatibility(check_potcar=False).process_entries(entries)
    ends = [PDEntry(Composition(symbol), elements[symbol]) for symbol in symbols]
    diagram = PhaseDiagram([*corrected, *ends])
    by_id = {entry.entry_id: entry for entry in corrected}
    assert 0 < len(by_id) < len(entries) == found.sizes["structure"]
    for name, above in zip(found["structure_id"].values, found["energy_above_hull"].values, strict=True):
        if name in by_id:
            assert above == pytest.approx(diagram.get_e_above_hull(by_id[name]), abs=1e-9)
        else:
            assert np.isnan(above)
    assert "model" not in summary(found, "h")
    reasons = {"no run type": unstated, "run type GGA instead of GGA+U": len(entries) - len(by_id) - unstated}
    assert min(reasons.values()) > 0
    assert found.attrs["hull"]["uncorrectable"] == reasons
    for reason, count in reasons.items():
        assert f"{count} {reason}" in summary(found, "h")
