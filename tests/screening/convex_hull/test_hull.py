"""Energies above hull of a dataset: equal to pymatgen's, complete, without mixed or doubly corrected energies."""

from __future__ import annotations

import csv
import gzip
import json
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import xarray as xr
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, SourceError, StoreError
from equiscreen.screening import hull, open_scores
from equiscreen.screening.convex_hull import energies, energy_above_hull
from equiscreen.screening.convex_hull import hull as hull_module
from equiscreen.screening.convex_hull.energy_above_hull import find_hull
from equiscreen.screening.convex_hull.hull import summary
from equiscreen.screening.convex_hull.references import Gathered, References
from equiscreen.screening.dataset import reader
from equiscreen.screening.dataset.paths import hull_path
from equiscreen.screening.dataset.reader import ScoresReader
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Composition
from pymatgen.io.ase import AseAtomsAdaptor
from scipy.stats import norm

from .hull_data import ELEMENTS, elements_of_mp, graphs_of, rows_of_mp, write_scores

TOLERANCE = 1e-9


@dataclass
class Crystals:
    """Real crystals with their energies in the Materials Project."""

    rows: list[dict[str, str]]
    graphs: GraphStore
    n_atoms: np.ndarray[Any, Any]
    corrected: np.ndarray[Any, Any]  # total energies (eV)
    uncorrected: np.ndarray[Any, Any]
    elements: Path
    others: Path  # formation energies of crystals of the same chemical systems
    folder: Path

    def entries(self) -> list[PDEntry]:
        return [
            PDEntry(Composition(row["pretty_formula"]), energy / n * Composition(row["pretty_formula"]).num_atoms)
            for row, energy, n in zip(self.rows, self.corrected, self.n_atoms, strict=True)
        ]


@pytest.fixture(scope="module")
def crystals(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Crystals:
    folder = tmp_path_factory.mktemp("hull")
    rows = rows_of_mp(data)
    wanted = {"'O'", "'S'", "'Cl'", "'Fe'", "'Al'", "'Ni'", "'Li'", "'Mn'", "'Cu'", "'Na'", "'Si'", "'P'"}
    inside = [row for row in rows if set(row["elements"].strip("[]").split(", ")) <= wanted]
    mine, others = inside[::2], inside[1::2]
    graphs = graphs_of(mine, folder)
    elements = elements_of_mp(data)
    block = graphs.block(0, len(mine), labels=False)
    corrected = np.array(
        [
            (float(row["formation_energy_per_atom"]) + _elemental(row["pretty_formula"], elements)) * n
            for row, n in zip(mine, block.n_atoms, strict=True)
        ]
    )
    zeros = write_scores(folder / "zero.zarr", graphs, np.zeros(len(mine)))
    first = hull(zeros, data / ELEMENTS, folder / "zero.hull.zarr")
    correction = first["correction_per_atom"].values * block.n_atoms
    with (folder / "others.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["material_id", "formula", "formation_energy_per_atom"])
        table.writerows((r["material_id"], r["pretty_formula"], r["formation_energy_per_atom"]) for r in others)
    return Crystals(
        mine, graphs, block.n_atoms, corrected, corrected - correction, data / ELEMENTS, folder / "others.csv", folder
    )


def _elemental(formula: str, elements: dict[str, float]) -> float:
    fractions = Composition(formula).fractional_composition.as_dict()
    return sum(elements[symbol] * fraction for symbol, fraction in fractions.items())


def diagram_entries(crystals: Crystals) -> list[PDEntry]:
    elements = elements_of_mp(crystals.elements.parents[1])
    with crystals.others.open(newline="") as file:
        rows = list(csv.DictReader(file))
    entries = [PDEntry(Composition(symbol), energy) for symbol, energy in elements.items()]
    for row in rows:
        composition = Composition(row["formula"])
        per_atom = float(row["formation_energy_per_atom"]) + _elemental(row["formula"], elements)
        entries.append(PDEntry(composition, per_atom * composition.num_atoms, name=row["material_id"]))
    return entries


def within(entries: list[PDEntry], composition: Composition) -> list[PDEntry]:
    return [entry for entry in entries if set(entry.composition.elements) <= set(composition.elements)]


def test_distances_are_those_of_phase_diagrams(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    found = hull(scores, [crystals.elements, crystals.others], scheme="mp2020-corrected")
    assert Path(hull_path(scores)) == tmp_path / "s.hull.zarr"
    assert (found["hull_status"] == 0).all()
    assert np.allclose(found["corrected_energy_per_atom"].values * crystals.n_atoms, crystals.corrected, atol=1e-9)
    formation = [float(row["formation_energy_per_atom"]) for row in crystals.rows]
    assert np.allclose(found["formation_energy_per_atom"].values, formation, rtol=0, atol=TOLERANCE)
    references, mine = diagram_entries(crystals), crystals.entries()
    for place in range(0, len(mine), 5):
        entry = mine[place]
        if len(entry.composition) < 2:
            continue
        near = within(references, entry.composition)
        expected = PhaseDiagram(near).get_e_above_hull(entry, allow_negative=True)
        assert found["energy_above_hull"].values[place] == pytest.approx(expected, abs=TOLERANCE), entry
        joint = PhaseDiagram([*within(references, entry.composition), *within(mine, entry.composition)])
        expected = joint.get_e_above_hull(entry)
        assert found["energy_above_joint_hull"].values[place] == pytest.approx(expected, abs=TOLERANCE), entry
    assert (found["energy_above_joint_hull"] >= 0).all()
    line = summary(found, "s.hull.zarr")
    assert f"{len(mine):,} structures ({len(mine):,} ok)" in line
    assert "structures/s" in line


def test_all_of_the_input_is_carried_and_units_and_provenance_stand(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    found = hull(scores, [crystals.elements, crystals.others], tmp_path / "h.zarr", scheme="mp2020-corrected")
    given = open_scores(scores)
    for name in given.variables:
        xr.testing.assert_equal(given[name].reset_coords(drop=True), found[name].reset_coords(drop=True))
    assert found["energy_above_hull"].attrs["units"] == "eV/atom"
    attrs = found.attrs["hull"]
    assert attrs["corrections"] == "MP2020"
    assert attrs["pymatgen"]
    assert attrs["references"][0]["entries"] == 89
    assert attrs["input"]["store_hash"] == given.attrs["store_hash"]
    assert found.attrs["graph_store"]["store_hash"] == given.attrs["graph_store"]["store_hash"]
    assert (tmp_path / found.attrs["graph_store"]["path"]).samefile(given.attrs["graph_store"]["path"])
    assert attrs["lower_bound"] is False
    # A hull of a hull is the same: it corrects the energies of the scores, not those of the first hull.
    both = [crystals.elements, crystals.others]
    again = hull(tmp_path / "h.zarr", both, tmp_path / "hh.zarr", scheme="mp2020-corrected")
    assert set(again.variables) == set(found.variables)
    for name in ("energy_above_hull", "correction_per_atom", "energy_above_joint_hull"):
        assert np.array_equal(again[name].values, found[name].values)


def test_what_was_not_relaxed_is_called_so(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected, relaxed=False)
    found = hull(scores, crystals.elements)
    added = set(found.variables) - set(open_scores(scores).variables)
    energies = {name for name in added if found[name].attrs.get("units") == "eV/atom"} - {"correction_per_atom"}
    assert len(energies) == 4
    assert all(name.endswith("_unrelaxed") for name in energies)


def test_known_phases_are_on_the_hull_that_they_belong_to(crystals: Crystals, tmp_path: Path) -> None:
    """The references include the candidates, at other energies and under other names; nothing is left out."""
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    shift = np.where(np.arange(len(crystals.rows)) % 2, 0.01, 0.0)
    table = own_references(crystals, tmp_path / "own.csv", shift)
    found = hull(scores, [crystals.elements, table], tmp_path / "h.zarr")
    mine = crystals.entries()
    elements = [PDEntry(Composition(s), e) for s, e in elements_of_mp(crystals.elements.parents[1]).items()]
    references = [
        PDEntry(entry.composition, entry.energy + more * entry.composition.num_atoms)
        for entry, more in zip(mine, shift.tolist(), strict=True)
    ]
    for place in range(0, len(mine), 4):
        entry = mine[place]
        near = within([*elements, *references], entry.composition)
        expected = PhaseDiagram(near).get_e_above_hull(entry, allow_negative=True)
        assert found["energy_above_hull"].values[place] == pytest.approx(expected, abs=TOLERANCE)
    above = found["energy_above_hull"].values
    assert (above[shift == 0] == 0).sum() > 10  # stable phases, with the energies of their references
    assert ((above < 0) & (shift == 0)).sum() == 0
    assert "may include known phases, owing to model error" in summary(found, "h")


def own_references(crystals: Crystals, path: Path, shift: np.ndarray[Any, Any]) -> Path:
    """A table of the candidates themselves, with shifted energies (eV/atom)."""
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["id", "formula", "energy_per_atom", "scheme"])
        for row, energy, n, more in zip(crystals.rows, crystals.corrected, crystals.n_atoms, shift, strict=True):
            out.writerow(
                [row["material_id"], row["pretty_formula"], repr(float(energy / n + more)), "mp2020-corrected"]
            )
    return path


def test_the_own_phase_is_left_out_by_structure_alone(crystals: Crystals, tmp_path: Path) -> None:
    """The references are the same crystals at other energies; their names are those of others."""
    size = len(crystals.rows)
    shift = np.random.default_rng(2).normal(0, 0.02, size)
    energy = crystals.corrected + shift * crystals.n_atoms
    swapped = np.roll(crystals.graphs.column("structure_id"), 1).tolist()
    scheme = "mp2020-corrected"
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.corrected, scheme=scheme)
    known = write_scores(tmp_path / "k.zarr", crystals.graphs, energy, scheme=scheme, ids=swapped)
    elements = element_scores(crystals, tmp_path)
    found = hull(scores, [known, elements], tmp_path / "h.zarr", exclude_self=True)
    ends = [PDEntry(Composition(s), e) for s, e in elements_of_mp(crystals.elements.parents[1]).items()]
    mine = crystals.entries()
    matcher = StructureMatcher()
    atoms = [AseAtomsAdaptor.get_structure(s.to_ase()) for s in ScoresReader(scores).structures(np.arange(size))]
    checked = 0
    for place in range(1, size, 5):
        entry = mine[place]
        if len(entry.composition) < 2:
            continue
        others = []
        for i, other in enumerate(mine):
            alike = other.composition.reduced_formula == entry.composition.reduced_formula
            if not (alike and matcher.fit(atoms[place], atoms[i])):
                others.append(PDEntry(other.composition, other.energy + shift[i] * other.composition.num_atoms))
        near = within([*ends, *others], entry.composition)
        expected = PhaseDiagram(near).get_e_above_hull(entry, allow_negative=True)
        assert found["energy_above_hull"].values[place] == pytest.approx(expected, abs=TOLERANCE)
        checked += 1
    assert checked > 5
    assert found.attrs["hull"]["own_phases_left_out"] > 10
    assert "without their own phases" in summary(found, "h")
    assert "recognised by structure" in found["energy_above_hull"].attrs["description"]
    table = own_references(crystals, tmp_path / "own.csv", shift)
    with pytest.raises(SourceError, match=r"own\.csv: the table has no structures"):
        hull(scores, [elements, table], tmp_path / "t.zarr", exclude_self=True)
    with pytest.raises(SourceError, match=r"entries.*: entry .* has no structure"):
        hull(scores, [known, crystals.elements], tmp_path / "t.zarr", exclude_self=True)
    with pytest.raises(ConfigError, match=r"needs --references.*use --references .*s\.zarr"):
        hull(scores, out=tmp_path / "t.zarr", exclude_self=True)


def element_scores(crystals: Crystals, folder: Path) -> Path:
    """Scores of the elements, one atom each, at their energies in the Materials Project."""
    energies = elements_of_mp(crystals.elements.parents[1])
    atoms = [ase.Atoms(symbol, cell=[3.0] * 3, pbc=True) for symbol in energies]
    ase.io.write(folder / "elements.extxyz", atoms)
    featurize(folder / "elements.extxyz", folder / "elements.zarr", cutoff=3.5, scheduler="threads")
    values = np.array(list(energies.values()))
    return write_scores(folder / "e.zarr", GraphStore(folder / "elements.zarr"), values, scheme="mp2020-corrected")


def test_names_and_their_order_change_no_bit(crystals: Crystals, tmp_path: Path) -> None:
    size = len(crystals.rows)
    shift = np.random.default_rng(3).normal(0, 0.05, size)
    entries = [
        {"entry_id": row["material_id"], "composition": Composition(row["pretty_formula"]).as_dict(), "energy": energy}
        for row, energy in zip(crystals.rows, (crystals.corrected / crystals.n_atoms + shift).tolist(), strict=True)
    ]
    for entry in entries:
        entry["energy"] *= sum(entry["composition"].values())
    found = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        names = rng.permutation([row["material_id"] for row in crystals.rows]).tolist()
        order = rng.permutation(size).tolist() if seed else range(size)
        path = tmp_path / f"{seed}.json"
        path.write_text(json.dumps([{**entries[i], "entry_id": names[i]} for i in order]))
        ids = rng.permutation(names).tolist()
        scores = write_scores(tmp_path / f"s{seed}.zarr", crystals.graphs, crystals.uncorrected, ids=ids)
        found.append(hull(scores, [crystals.elements, path], tmp_path / f"h{seed}.zarr", scheme="mp2020-corrected"))
    for name in set(found[0].variables) - {"structure_id", "decomposition"}:
        for other in found[1:]:
            np.testing.assert_array_equal(found[0][name].values, other[name].values)


@pytest.mark.parametrize("scheme", ["mp2020-corrected", "omat24"])
def test_candidates_alone_give_a_lower_bound(crystals: Crystals, tmp_path: Path, scheme: str) -> None:
    """The first rows are elements, all except one, which is missing unless the package has energies of the scheme."""
    elements = elements_of_mp(crystals.elements.parents[1])
    needed = sorted({e.symbol for entry in crystals.entries() for e in entry.composition.elements} - {"Cl"})
    first = [PDEntry(Composition(symbol), elements[symbol]) for symbol in needed]
    mine = [*first, *crystals.entries()[len(first) :]]
    # A compound at two energies: the higher one competes with the lower.
    mine[-1] = PDEntry(mine[-2].composition, mine[-2].energy + 0.1 * mine[-2].composition.num_atoms)
    energy = np.array([entry.energy_per_atom for entry in mine]) * crystals.n_atoms
    names = [entry.composition.reduced_formula for entry in mine]
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, energy, scheme=scheme, names=names)
    found = hull(scores)
    attrs = found.attrs["hull"]
    is_missing = scheme == "omat24"
    assert set(attrs["elemental_references"].get("elements", ())) == (set() if is_missing else {"Cl", *needed})
    competing = mine if is_missing else [*mine, PDEntry(Composition("Cl"), elements["Cl"])]
    assert attrs["lower_bound"] is True
    assert "lower bound" in found["energy_above_hull"].attrs["description"]
    assert "lower bound" in summary(found, "h")
    above, joint = found["energy_above_hull"].values, found["energy_above_joint_hull"].values
    checked = 0
    for place, entry in enumerate(mine):
        symbols = {element.symbol for element in entry.composition.elements}
        assert int(found["hull_status"].values[place]) == (2 if is_missing and "Cl" in symbols else 0)
        if is_missing and "Cl" in symbols:
            assert np.isnan(above[place])
            continue
        near = within(competing, entry.composition)
        expected = PhaseDiagram(near).get_e_above_hull(entry)
        assert joint[place] == pytest.approx(expected, abs=TOLERANCE)
        assert above[place] == joint[place]
        checked += expected > 0
    assert checked > 5
    assert set(attrs["missing_references"]) == ({"Cl"} if is_missing else set())


def test_rows_without_energy_and_missing_elements_are_told(crystals: Crystals, tmp_path: Path) -> None:
    meanings = ("exploded", "ok", "not_converged")  # statuses are recognised by name, whatever their numbers
    energy = crystals.uncorrected.copy()
    energy[3] = np.nan
    status = np.ones(len(energy), dtype=int)
    status[0], status[1] = 0, 2
    scores = write_scores(
        tmp_path / "s.zarr",
        crystals.graphs,
        energy,
        status=status.tolist(),
        meanings=meanings,
        scheme="omat24",  # the package has no energies of elements in this scheme
    )
    table = tmp_path / "few.csv"
    table.write_text("formula,energy_per_atom\nFe,-8.4\nO2,-4.9\nFe2O3,-7.5\n")
    found = hull(scores, table, scheme="omat24")
    codes = found["hull_status"].values
    assert codes[0] == codes[3] == 1
    assert codes[1] != 1
    lacking = [
        not set(row["elements"].strip("[]").replace("'", "").split(", ")) <= {"Fe", "O"} for row in crystals.rows
    ]
    assert codes[4:].tolist() == [2 if one else 0 for one in lacking[4:]]
    assert np.isnan(found["energy_above_hull"].values[codes != 0]).all()
    assert np.isfinite(found["energy_above_hull"].values[codes == 0]).all()
    missing = found.attrs["hull"]["missing_references"]
    assert {"Li", "Ni", "Cl"} <= set(missing)
    warning = f"warning: {(codes == 2).sum()} of {len(codes)} structures have no energy_above_hull: no reference for "
    assert warning in summary(found, "h")
    assert summary(found, "h").endswith("in the references; add these elements to --references")
    assert sum(found.attrs["hull"]["status_counts"].values()) == len(codes)


@pytest.mark.parametrize("outcome", ["extrapolating", "not_converged"])
def test_an_energy_without_meaning_is_measured_but_pulls_no_hull_down(
    crystals: Crystals, tmp_path: Path, outcome: str
) -> None:
    energy = crystals.uncorrected.copy()
    energy[2] -= 100.0
    meanings, status = ("ok", outcome), [0] * len(energy)
    status[2] = 1
    wild = write_scores(tmp_path / "w.zarr", crystals.graphs, energy, status=status, meanings=meanings)
    tame = write_scores(tmp_path / "t.zarr", crystals.graphs, crystals.uncorrected, status=status, meanings=meanings)
    found, expected = (hull(scores, crystals.elements) for scores in (wild, tame))
    below = (found["energy_above_hull"].values < 0) & (found["status"].values == 0)
    assert found.attrs["hull"]["below_hull"] == below.sum()
    assert found.attrs["hull"]["not_competing"] == {outcome: 1}
    assert f"; not part of any hull: 1 {outcome.replace('_', ' ')}" in summary(found, "h")
    for name in ("energy_above_hull", "energy_above_joint_hull"):
        shift = expected[name].values - found[name].values
        assert shift[2] == pytest.approx(100.0 / crystals.n_atoms[2])
        assert (np.delete(shift, 2) == 0).all()


def test_decompositions_balance(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    found = hull(scores, [crystals.elements, crystals.others], tmp_path / "h.zarr", scheme="mp2020-corrected")
    for row, text in zip(crystals.rows, found["decomposition"].values.tolist(), strict=True):
        total: Counter[str] = Counter()
        for phase in text.split(" + "):
            amount, formula, name = phase.split()
            assert name.startswith("(mp-")
            for symbol, fraction in Composition(formula).fractional_composition.as_dict().items():
                total[symbol] += float(amount) * fraction
        wanted = Composition(row["pretty_formula"]).fractional_composition.as_dict()
        assert dict(total) == pytest.approx(wanted, abs=3e-4)


def test_each_member_has_its_own_hull(crystals: Crystals, tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    size = len(crystals.uncorrected)
    members = crystals.uncorrected[:, None] + rng.normal(0, 0.05, (size, 3)) * crystals.n_atoms[:, None]
    ids = [f"new-{place}" for place in range(size)]
    candidates = write_scores(tmp_path / "s.zarr", crystals.graphs, members.mean(axis=1), members=members, ids=ids)
    shift = rng.normal(0, 0.05, (size, 3)) * crystals.n_atoms[:, None]
    known = write_scores(tmp_path / "k.zarr", crystals.graphs, (members + shift).mean(axis=1), members=members + shift)
    found = hull(candidates, [crystals.elements, known], tmp_path / "h.zarr")
    assert found.attrs["hull"]["members"] == "own hull of each"
    one = [
        hull(
            write_scores(tmp_path / f"s{m}.zarr", crystals.graphs, members[:, m], ids=ids),
            [crystals.elements, write_scores(tmp_path / f"k{m}.zarr", crystals.graphs, (members + shift)[:, m])],
            tmp_path / f"h{m}.zarr",
        )["energy_above_hull"].values
        for m in range(3)
    ]
    assert np.allclose(found["energy_above_hull_std"].values, np.std(one, axis=0, ddof=1), atol=TOLERANCE)
    probability = found["probability_below_hull"].values
    assert (found["probability_near_hull"].values >= probability).all()
    mean = np.mean(one, axis=0)
    assert ((probability > 0.5) == (mean < 0)).all()
    # Energies of entries are the same for all members; only those of the candidates differ.
    fixed = hull(candidates, crystals.elements, tmp_path / "f.zarr")
    assert fixed.attrs["hull"]["members"] == "one hull for all"
    spread = (members / crystals.n_atoms[:, None]).std(axis=1, ddof=1)
    assert np.allclose(fixed["energy_above_hull_std"].values, spread, atol=TOLERANCE)


@pytest.mark.slow
def test_a_known_error_gives_the_probability_of_being_near_the_hull(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    references = [crystals.elements, crystals.others]
    found = hull(scores, references, tmp_path / "h.zarr", scheme="mp2020-corrected", within=0.03, error=0.05)
    above = found["energy_above_hull"].values
    for name, level in (("probability_below_hull", 0.0), ("probability_near_hull", 0.03)):
        np.testing.assert_allclose(found[name].values, norm.cdf(level, above, 0.05), atol=1e-12)
    assert "at most 0.03 eV/atom" in str(found["probability_near_hull"].attrs)
    assert (found.attrs["hull"]["within"], found.attrs["hull"]["error"]) == (0.03, 0.05)
    again = hull(tmp_path / "h.zarr", references, tmp_path / "again.zarr", scheme="mp2020-corrected")
    assert not [name for name in again.variables if str(name).startswith("probability")]
    with pytest.raises(ConfigError, match="error must be positive"):
        hull(scores, references, tmp_path / "no.zarr", error=0.0)


@pytest.mark.slow
def test_the_own_phase_is_left_out_of_the_hulls_of_all_members(crystals: Crystals, tmp_path: Path) -> None:
    """Also where another phase of the composition is lower for some members, or for all."""
    size, rng = 9, np.random.default_rng(7)
    n_atoms = crystals.n_atoms[:size]
    names = [("Li2O", "Fe2O3", "LiFeO2")[place % 3] for place in range(size)]
    energy = np.array([-6.0, -7.5, -7.0] * 3)[:, None] + rng.normal(0, 0.05, (2, size, 3))
    elements = element_scores(crystals, tmp_path)

    def excluded(name: str, members: Any) -> xr.Dataset:
        candidates, known = (
            write_scores(
                tmp_path / f"{name}{part}.zarr",
                crystals.graphs,
                values.mean(axis=1) * n_atoms,
                scheme="mp2020-corrected",
                names=names,
                members=values * n_atoms[:, None] if values.shape[1] > 1 else None,
            )
            for part, values in zip(("s", "k"), members, strict=True)
        )
        return hull(candidates, [elements, known], exclude_self=True)

    found = excluded("all", energy)
    assert found.attrs["hull"]["own_phases_left_out"] == size
    each = [excluded(str(member), energy[:, :, member : member + 1]) for member in range(3)]
    expected = np.std([one["energy_above_hull"].values for one in each], axis=0, ddof=1)
    assert np.allclose(found["energy_above_hull_std"].values, expected, rtol=0, atol=TOLERANCE)


def tied_candidates(crystals: Crystals, path: Path, order: list[int], energy: Any, members: Any) -> Path:
    """Scores of formulas with equal energies per atom, in an order; their ids go with them."""
    size = len(order)
    n_atoms = crystals.n_atoms[:size]
    return write_scores(
        path,
        crystals.graphs,
        energy[order] * n_atoms,
        scheme="omat24",
        members=members[order] * n_atoms[:, None],
        names=[FORMULAS[place % len(FORMULAS)] for place in order],
        ids=[f"id-{(7 * place) % size}" for place in order],
    )


FORMULAS = ("Li", "O2", "Fe", "Li2O", "LiO", "Fe2O3", "LiFeO2", "LiFe2O4")


def test_the_order_of_equal_candidates_changes_no_bit(crystals: Crystals, tmp_path: Path) -> None:
    """Candidates alone span each member's hull; those of equal energy have other members."""
    size, rng = 24, np.random.default_rng(6)
    # Multiples of a power of two, which totals per cell keep to the last bit.
    energy = np.array([-1.0, -4.5, -8.25, -4.0, -4.0, -7.0, -6.5, -6.75] * 3)
    energy[2 * len(FORMULAS) :] += rng.integers(0, 2, len(FORMULAS)) / 64
    members = energy[:, None] + rng.integers(-32, 32, (size, 4)) / 256
    orders = [list(range(size)), rng.permutation(size).tolist()]
    found = [
        hull(tied_candidates(crystals, tmp_path / f"{number}.zarr", order, energy, members))
        for number, order in enumerate(orders)
    ]
    added = [name for name in found[0].variables if name not in open_scores(tmp_path / "0.zarr").variables]
    assert {"energy_above_hull_std", "probability_below_hull", "decomposition"} <= set(added)
    for other, order in zip(found[1:], orders[1:], strict=True):
        for name in added:
            np.testing.assert_array_equal(other[name].values, found[0][name].values[order], err_msg=str(name))
    # The candidates as their own references mean the same.
    scores = tmp_path / "0.zarr"
    same = hull(scores, scores, tmp_path / "same.zarr")
    for name in ("energy_above_hull", "energy_above_hull_std", "probability_below_hull", "decomposition"):
        np.testing.assert_array_equal(same[name].values, found[0][name].values)


@given(entries=st.lists(st.tuples(st.integers(0, 2), st.sampled_from([-1.0, -2.0]), st.text(max_size=2)), max_size=8))
def test_references_are_sorted_whatever_their_order_in_the_files(entries: list[tuple[int, float, str]]) -> None:
    def sorted_entries(order: list[tuple[int, float, str]]) -> list[tuple[int, float, str]]:
        gathered = Gathered()
        for entry in order:
            gathered.add(*entry)
        found = References.of(gathered, 0, (), {})
        return list(zip(found.composition.tolist(), found.energy.tolist(), found.names, strict=True))

    assert sorted_entries(entries) == sorted_entries(entries[::-1]) == sorted(entries)


def test_chunks_change_nothing(crystals: Crystals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    whole = hull(scores, crystals.elements, tmp_path / "a.zarr")
    monkeypatch.setattr(energy_above_hull, "PART_ROWS", 7)
    monkeypatch.setattr(reader, "ROWS_AT_ONCE", 7)
    monkeypatch.setattr(energies, "_BLOCK", 3)
    cut = hull(scores, crystals.elements, tmp_path / "b.zarr")
    for name in whole.variables:
        assert np.array_equal(whole[name].values, cut[name].values, equal_nan=whole[name].dtype.kind == "f"), name


ROWS = 8
# The command line with parts of this size, and a moment after each of them.
SMALL_PARTS = f"""
import time
from equiscreen.screening.convex_hull import energy_above_hull
from equiscreen.screening.dataset import reader
energy_above_hull.PART_ROWS = reader.ROWS_AT_ONCE = {ROWS}
write_part = energy_above_hull.write_part
energy_above_hull.write_part = lambda *arguments: (write_part(*arguments), time.sleep(0.1))[0]
from equiscreen.__main__ import main
main()
"""


def kill_after(words: list[str], out: Path, parts: int) -> bool:
    """Start a hull and kill it once it has some parts; return whether it was killed before it was done."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    made = out.with_name(f"{out.name}.partial")
    while process.poll() is None and len(list(made.glob("*/parts/[0-9]*.json"))) < parts:
        time.sleep(0.0005)
    process.kill()
    return process.wait() == -signal.SIGKILL and not out.exists()


def test_a_killed_hull_goes_on_and_ends_as_if_nothing_had_been(
    crystals: Crystals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    others = tmp_path / "others.csv"
    shutil.copy(crystals.others, others)
    references = [crystals.elements, others]
    out = tmp_path / "k.zarr"
    words = [sys.executable, "-c", SMALL_PARTS, "hull", str(scores), "--out", str(out)]
    words += ["--scheme", "mp2020-corrected"]
    words += [word for path in references for word in ("--references", str(path))]
    assert kill_after(words, out, 2)
    parts = {path: path.stat().st_mtime_ns for path in tmp_path.glob("k.zarr.partial/*/parts/*.json")}
    monkeypatch.setattr(energy_above_hull, "PART_ROWS", ROWS)
    monkeypatch.setattr(reader, "ROWS_AT_ONCE", ROWS)
    # If the references have changed under the same names, a killed run is not resumed.
    with others.open("a") as file:
        file.write(f"mp-new,{crystals.rows[0]['pretty_formula']},-9.0\n")
    with pytest.raises(OutputExistsError, match=r"an unfinished run with different settings \(references\)"):
        hull(scores, references, out, scheme="mp2020-corrected")
    assert not out.exists()
    shutil.copy(crystals.others, others)
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    found = hull(scores, references, out, scheme="mp2020-corrected")
    undisturbed = hull(scores, references, tmp_path / "u.zarr", scheme="mp2020-corrected")
    assert found.equals(undisturbed)


def test_other_schemes_are_refused_and_not_corrected(crystals: Crystals, tmp_path: Path) -> None:
    other = write_scores(tmp_path / "o.zarr", crystals.graphs, crystals.uncorrected, scheme="omat24")
    with pytest.raises(ConfigError, match=r"none of the entries.*mp-uncorrected: the candidates follow omat24"):
        hull(other, crystals.elements)
    assert not (tmp_path / "o.hull.zarr.partial").exists()
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    with pytest.raises(ConfigError, match="omat24"):
        hull(scores, [crystals.elements, other])
    with pytest.raises(ConfigError, match="use --scheme"):
        hull(scores, crystals.others)
    with pytest.raises(ConfigError, match="need references for the elements"):
        hull(other, crystals.others, scheme="omat24")
    corrected = write_scores(tmp_path / "c.zarr", crystals.graphs, crystals.corrected, scheme="mp2020-corrected")
    found = hull(corrected, crystals.elements)
    assert (found["correction_per_atom"] == 0).all()
    expected = hull(scores, crystals.elements)
    assert np.allclose(found["energy_above_hull"], expected["energy_above_hull"], atol=TOLERANCE)
    mine = write_scores(tmp_path / "own.zarr", crystals.graphs, crystals.uncorrected, scheme="own")
    alone = hull(mine, mine, tmp_path / "own.hull.zarr")
    assert alone.attrs["hull"]["corrections"] == "none"


def test_unrelaxed_references_are_refused_unless_told(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    raw = write_scores(tmp_path / "r.zarr", crystals.graphs, crystals.uncorrected, relaxed=False)
    with pytest.raises(ConfigError, match="--unrelaxed-references"):
        hull(scores, [crystals.elements, raw])
    hull(scores, [crystals.elements, raw], unrelaxed_references=True)


def test_references_that_change_during_the_run_are_noticed(
    crystals: Crystals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    known = write_scores(tmp_path / "k.zarr", crystals.graphs, crystals.uncorrected)
    other = write_scores(tmp_path / "other.zarr", crystals.graphs, crystals.uncorrected - 1.0)

    def replaced(*given: Any, **options: Any) -> Any:
        shutil.rmtree(known)
        other.rename(known)
        return find_hull(*given, **options)

    monkeypatch.setattr(hull_module, "find_hull", replaced)
    with pytest.raises(StoreError, match=r"k\.zarr has changed during this run"):
        hull(scores, [crystals.elements, known])
    assert not (tmp_path / "s.hull.zarr").exists()


def test_entries_of_pymatgen_are_corrected_once(data: Path, crystals: Crystals, tmp_path: Path) -> None:
    """Corrections that entries carry are ignored, whatever their version; unusable entries are skipped and named."""
    with gzip.open(data / ELEMENTS, "rt") as file:
        entries = list(json.load(file).values())

    def entry(name: str, composition: dict[str, float], energy: float, **more: Any) -> dict[str, Any]:
        given = {"run_type": "GGA", **more.pop("parameters", {})}
        return {"entry_id": name, "composition": composition, "energy": energy, "parameters": given, **more}

    with_u = {"parameters": {"run_type": "GGA+U", "hubbards": {"Fe": 5.3}}}
    entries += [
        entry("good", {"Fe": 4, "O": 6}, -67.0, correction=-9.9, energy_adjustments=[{"value": -9.9}], **with_u),
        entry("no U", {"Fe": 1, "O": 1}, -99.0),
        entry("part", {"Fe": 0.5, "O": 1}, -99.0),
        entry("peroxide", {"Na": 2, "O": 2}, -19.0, data={"oxide_type": "peroxide"}),
    ]
    path = tmp_path / "entries.json"
    path.write_text(json.dumps({"entries": entries}))
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    found = hull(scores, path)
    note = found.attrs["hull"]["references"][0]
    assert note["entries"] == 91
    assert set(note["left_out_because"]) == {"no U", "part"}
    table = tmp_path / "table.csv"
    good, peroxide = (-67.0 + 4 * -2.256 + 6 * -0.687) / 10, (-19.0 + 2 * -0.465) / 4
    table.write_text(f"id,formula,energy_per_atom\ngood,Fe2O3,{good!r}\nperoxide,Na2O2,{peroxide!r}\n")
    expected = hull(scores, [crystals.elements, table], tmp_path / "t.zarr", scheme="mp2020-corrected")
    assert np.allclose(found["energy_above_hull"], expected["energy_above_hull"], atol=TOLERANCE)


def test_bad_references_say_so(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)

    def file(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    for path, error, words in (
        (tmp_path / "none.json", SourceError, "none.json"),
        (file("bad.json", "{"), SourceError, "not valid JSON"),
        (tmp_path / "*.json", SourceError, r"\*\.json matches 2 files; give each"),
        (file("numbers.json", "[1, 2]"), SourceError, "not a file of pymatgen entries"),
        (file("a.csv", "formula,x\nFe,1\n"), ConfigError, "columns formula and energy_per_atom"),
        (file("b.csv", "formula,energy_per_atom\nFee,1\n"), ConfigError, "no composition .*'Fee'"),
        (file("c.csv", "formula,energy_per_atom\nFe,\n"), ConfigError, "none of the entries"),
        (file("e.csv", "formula,energy_per_atom\nFe,abc\n"), ConfigError, "no finite energy: 'abc'"),
        (
            file("d.csv", "formula,energy_per_atom,scheme\nFe,1,pbe\n"),
            ConfigError,
            "none of the entries.*energy scheme pbe",
        ),
    ):
        with pytest.raises(error, match=words):
            hull(scores, path, scheme="mp2020-corrected")
        assert not (tmp_path / "s.hull.zarr.partial").exists()
    with pytest.raises(ConfigError, match="unknown energy scheme 'PBE'"):
        hull(scores, crystals.elements, scheme="PBE")


def test_outputs_are_not_overwritten_and_stores_are_checked(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    hull(scores, crystals.elements)
    with pytest.raises(OutputExistsError, match="--overwrite"):
        hull(scores, crystals.elements)
    hull(scores, crystals.elements, overwrite=True)
    with pytest.raises(OutputExistsError, match="read by this run"):
        hull(scores, crystals.elements, scores, overwrite=True)
    away = tmp_path / "away"
    away.mkdir()
    shutil.move(scores, away / "s.zarr")
    hull(away / "s.zarr", crystals.elements, away / "h.zarr", store=crystals.graphs.path)
    few = graphs_of(crystals.rows[:5], away)
    with pytest.raises(StoreError, match="is not the graph store"):
        hull(away / "s.zarr", crystals.elements, away / "h2.zarr", store=few.path)
    with pytest.raises(StoreError, match="--store"):
        hull(away / "s.zarr", crystals.elements, away / "h2.zarr", store=away / "nowhere.zarr")


def test_a_limited_screen_has_the_first_rows(crystals: Crystals, tmp_path: Path) -> None:
    all_rows = hull(write_scores(tmp_path / "a.zarr", crystals.graphs, crystals.uncorrected), crystals.elements)
    first = hull(write_scores(tmp_path / "b.zarr", crystals.graphs, crystals.uncorrected[:9]), crystals.elements)
    assert np.allclose(first["energy_above_hull"], all_rows["energy_above_hull"][:9], atol=TOLERANCE)


@pytest.mark.slow  # tests/test_imports.py imports it without them, always
def test_a_hull_needs_no_framework(crystals: Crystals, tmp_path: Path) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    script = (
        "import sys\n"
        "class Forbidden:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'e3nn', 'onnx', 'onnxscript', 'lightning'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Forbidden())\n"
        "from equiscreen.screening import hull\n"
        f"print(hull({str(scores)!r}, {str(crystals.elements)!r}).sizes['structure'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(len(crystals.rows)), done.stderr


def test_the_verb_ends_with_one_line_and_errors_are_one_line(
    crystals: Crystals, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    scores = write_scores(tmp_path / "s.zarr", crystals.graphs, crystals.uncorrected)
    command = [sys.executable, "-m", "equiscreen", "hull", str(scores), "--references"]
    done = subprocess.run([*command, str(crystals.elements)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    assert f"{len(crystals.rows):,} ok" in done.stdout
    again = command_line(*command[3:], tmp_path / "no.json")
    assert again.returncode == 1
    assert again.stderr.startswith("equiscreen: ")
    assert again.stderr.count("\n") == 1
