"""Properties of a store on workers: every structure has a row, even after interruptions, whatever its company."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ase
import ase.build
import ase.io
import numpy as np
import pytest
import xarray as xr
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphStore, Structure, featurize
from equiscreen.pipeline.errors import ConfigError, ModelFileError, OutputExistsError, SourceError, StoreError
from equiscreen.pipeline.store.schema import ArraySpec, structure_array
from equiscreen.screening import compute_properties, open_scores, relax, select
from equiscreen.screening.properties import compute, finishing, worker
from equiscreen.screening.properties.estimates import estimate
from equiscreen.screening.properties.materials import Computed, Protocol, compute_materials
from equiscreen.screening.properties.mechanics.elastic import Elastic
from equiscreen.screening.properties.presets import PRESETS, Preset
from equiscreen.screening.properties.protocol import (
    FAILED,
    OK,
    PROPERTY_STATUSES,
    Cells,
    Material,
    Outcome,
    OutcomeError,
    Property,
    Stages,
    Workload,
)

from ...emt_potential import EmtPotential
from ...export.runtime.altered_models import altered

NAMES = ("Cu", "NaCl", "Si", "graphene", "water")


@pytest.fixture(scope="module")
def relaxed(sevennet_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small crystals, a slab and a molecule, relaxed with 7net-0."""
    folder = tmp_path_factory.mktemp("relaxed")
    crystals = [
        ase.build.bulk("Cu"),
        ase.build.bulk("NaCl", "rocksalt", a=5.6),
        ase.build.bulk("Si"),
        ase.build.graphene(vacuum=6.0),
        ase.build.molecule("H2O"),
    ]
    for name, atoms in zip(NAMES, crystals, strict=True):
        atoms.info["name"] = name
    ase.io.write(folder / "c.extxyz", crystals, format="extxyz")
    featurize(folder / "c.extxyz", folder / "g.zarr", cutoff=5.0, id_field="name", scheduler="threads")
    relax(folder / "g.zarr", sevennet_model, folder / "r.zarr", scheduler="threads")
    return folder / "r.zarr"


@pytest.fixture(scope="module")
def computed(relaxed: Path, sevennet_model: Path) -> Path:
    out = relaxed.with_name("p.zarr")
    compute_properties(relaxed, sevennet_model, out, ["elastic", "eos"], scheduler="threads")
    return out


def values(scores: xr.Dataset) -> xr.Dataset:
    """The scores without attributes, which differ between two runs."""
    return scores.load().drop_attrs()


def words(scores: xr.Dataset, name: str = "status") -> list[str]:
    return [PROPERTY_STATUSES[value] for value in scores[name].to_numpy()]


def test_every_structure_has_a_row(relaxed: Path, computed: Path) -> None:
    found, given = open_scores(computed), open_scores(relaxed)
    assert found["structure_id"].to_numpy().tolist() == list(NAMES)
    assert words(found) == ["ok"] * 3 + ["not_applicable"] * 2
    assert words(found, "elastic_status") == words(found)
    assert found["status_note"].to_numpy().tolist()[3:] == [
        f"{kind} has no such property; it is defined for crystals only" for kind in ("a slab", "a molecule")
    ]
    crystals = slice(0, 3)
    # DFT (PBE, Materials Project): 145, 24 and 89 GPa.
    np.testing.assert_allclose(found["bulk_modulus_vrh"][crystals], [145, 24, 89], rtol=0.2)
    np.testing.assert_allclose(found["bulk_modulus_eos"][crystals], found["bulk_modulus_vrh"][crystals], rtol=0.05)
    assert found["is_mechanically_stable"].to_numpy().tolist() == [True] * 3 + [False] * 2
    assert np.isnan(found["elastic_tensor"][3:]).all()
    assert found["n_elastic_constants"].to_numpy().tolist() == [3, 3, 3, 0, 0]
    assert found["elastic_tensor"].attrs["units"] == "GPa"
    assert "volume_change" in given
    store = GraphStore(computed.with_name("p.graphs.zarr"))
    assert store.verify() == []
    assert found.attrs["graph_store"] == {"path": "p.graphs.zarr", "store_hash": store.store_hash}
    assert (found["max_force"][crystals] <= 1e-3).all()
    assert found.attrs["status_counts"]["ok"] == 3


def test_results_do_not_depend_on_company(computed: Path, relaxed: Path, sevennet_model: Path) -> None:
    """One material alone has the same bits as in a part with others, in any order."""
    store, found = GraphStore(relaxed.with_name("r.graphs.zarr")), open_scores(computed)
    potential = OnnxPotential.load(sevennet_model, threads=1)
    protocol = Protocol.of(PRESETS["default"], ["elastic", "eos"], potential)
    block = store.block(0, 3)
    for row in (2, 0):
        (one,) = compute_materials([block.structure(row)], potential, protocol)
        for name in ("elastic_tensor", "bulk_modulus_vrh"):
            assert np.array_equal(one.outcomes["elastic"].values[name], found[name][row])
        assert np.array_equal(one.outcomes["eos"].values["eos_energies"], found["eos_energies"][row])


def test_a_run_that_is_interrupted_resumes(
    relaxed: Path, computed: Path, sevennet_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compute, "PART_STRUCTURES", 1)
    out = relaxed.with_name("q.zarr")
    done: list[int] = []
    compute_some, interrupted = worker.compute_materials, [True]

    def counted(structures: Sequence[Structure], *arguments: Any) -> list[Computed]:
        if interrupted[0] and len(done) == 2:
            raise RuntimeError("interrupted")
        done.append(len(structures))
        return compute_some(structures, *arguments)

    def run() -> xr.Dataset:
        return compute_properties(relaxed, sevennet_model, out, ["elastic", "eos"], scheduler="threads")

    monkeypatch.setattr(worker, "compute_materials", counted)
    with pytest.raises(RuntimeError, match="interrupted"):
        run()
    assert not out.exists()
    interrupted[0] = False
    found = run()
    assert len(done) == len(NAMES)  # nothing twice
    xr.testing.assert_identical(values(found), values(open_scores(computed)))
    hashes = [GraphStore(relaxed.with_name(f"{name}.graphs.zarr")).store_hash for name in "pq"]
    assert hashes[0] == hashes[1]


def test_a_filter_chooses_and_a_selection_reads_the_result(
    relaxed: Path,
    sevennet_model: Path,
    tmp_path: Path,
    command_line: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    words_ = ["properties", relaxed, "--model", sevennet_model, "--where", "n_atoms <= 2 and volume < 100"]
    done = command_line(*words_, "--out", tmp_path / "p.zarr", "--scheduler", "threads")
    assert done.returncode == 0, done.stderr
    assert "elastic of 3 structures (3 ok); 2 left out by --where or --limit" in done.stdout
    best = select(tmp_path / "p.zarr", tmp_path / "best", "bulk_modulus_vrh > 50", by="-bulk_modulus_vrh", top=3)
    assert best["structure_id"].to_numpy().tolist() == ["Cu", "Si"]
    # A selection is a source, too; its columns stay.
    again = compute_properties(tmp_path / "best", sevennet_model, tmp_path / "e.zarr", ["eos"], scheduler="threads")
    np.testing.assert_allclose(again["bulk_modulus_vrh"], best["bulk_modulus_vrh"])
    np.testing.assert_allclose(again["bulk_modulus_eos"], best["bulk_modulus_vrh"], rtol=0.05)


def test_what_does_not_fit_is_refused(relaxed: Path, sevennet_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "p.zarr"
    with pytest.raises(SourceError, match="relax its structures first"):
        compute_properties(relaxed.with_name("c.extxyz"), sevennet_model, out)
    with pytest.raises(ConfigError, match="unknown property 'elastik'; did you mean 'elastic'"):
        compute_properties(relaxed, sevennet_model, out, ["elastik"])
    with pytest.raises(ConfigError, match="unknown preset 'matcalk'; did you mean 'matcalc'"):
        compute_properties(relaxed, sevennet_model, out, preset="matcalk")
    with pytest.raises(ConfigError, match="which --where cannot filter"):
        compute_properties(relaxed.with_name("g.zarr"), sevennet_model, out, where="n_atoms < 3")
    with pytest.raises(StoreError, match="no structure meets --where"):
        compute_properties(relaxed, sevennet_model, out, where="n_atoms > 300")
    with pytest.raises(ConfigError, match="the limit is 0"):
        compute_properties(relaxed, sevennet_model, out, limit=0)
    with pytest.raises(OutputExistsError):
        compute_properties(relaxed, sevennet_model, relaxed, scheduler="threads")
    assert not out.exists()


def test_a_model_without_stress_is_refused(relaxed: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    energy_alone = [{"name": "energy", "per": "structure", "shape": []}]
    altered(exported("float32"), tmp_path / "energy.onnx", outputs=energy_alone)
    with pytest.raises(ModelFileError, match=r"forces, stress.*--outputs energy,forces,stress"):
        compute_properties(relaxed, tmp_path / "energy.onnx", tmp_path / "p.zarr")


def test_elements_that_the_model_lacks_are_rows(relaxed: Path, exported: Callable[[str], Path], tmp_path: Path) -> None:
    found = compute_properties(
        relaxed, exported("float32"), tmp_path / "p.zarr", scheduler="threads", where="n_atoms>1"
    )
    assert words(found)[:2] == ["failed", "failed"]
    assert found["status_note"].to_numpy()[0] == "an element that the model does not support"
    assert "warning: no structure is ok" in compute.summary(found, "p.zarr")


def test_the_estimate_counts_cells(relaxed: Path, sevennet_model: Path) -> None:
    found = estimate(relaxed, sevennet_model, ["elastic", "eos"], where="n_atoms <= 2 and volume < 100")
    assert (found.structures, found.cells, found.sample) == (3, 3 * (24 + 9), 3)
    assert 0 < found.seconds < 600
    assert "3 structures, at most 99 cells" in str(found)


def test_an_estimate_takes_the_options_of_the_run(relaxed: Path, sevennet_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--follow-modes needs phonons"):
        estimate(relaxed, sevennet_model, ["eos"], follow_modes=True)
    with pytest.raises(ConfigError, match="--born needs phonons"):
        estimate(relaxed, sevennet_model, ["eos"], born=tmp_path)


@pytest.mark.parametrize(
    ("status", "what", "relax", "is_result"),
    [
        ("imaginary_modes", "phonons", True, True),
        ("imaginary_modes", "kappa", True, False),
        ("failed", "phonons", True, False),
        ("not_relaxed", "phonons", True, False),
        ("not_relaxed", "phonons", False, True),
    ],
)
def test_a_run_without_results_is_told(status: str, what: str, *, relax: bool, is_result: bool) -> None:
    """Phonons with imaginary modes are a result, and so are properties of crystals that are used as they are."""
    attrs = {
        "timing": {"seconds": 1.0, "evaluations": 2, "core_hours": 0.0},
        "status_counts": dict.fromkeys(PROPERTY_STATUSES, 0) | {status: 1},
        "properties_of": {"left_out": 0},
        "settings": {"properties": {what: {}}, "relax": relax},
    }
    told = compute.summary(xr.Dataset({"status": ("structure", [0])}, attrs=attrs), "p.zarr")
    assert ("no structure is ok" not in told) == is_result


# A property that tests what the protocol offers: several stages, tables, and a last step of its own.


@dataclass(frozen=True, slots=True)
class Springs(Property):
    """Energies of displacements of each atom, and their curvature as a long last step."""

    name = "springs"
    has_finish = True
    step: float = 0.02

    @property
    def arrays(self) -> tuple[ArraySpec, ...]:
        return (
            structure_array("stiffest", "float64", "largest curvature", units="eV/angstrom^2"),
            structure_array("n_stages", "int16", "stages", units="1"),
        )

    @property
    def tables(self) -> tuple[ArraySpec, ...]:
        return (ArraySpec("spring_energy", ("spring",), "float64", {"units": "eV"}),)

    def workload(self, n_atoms: int) -> Workload:
        return Workload(n_atoms + 1, (n_atoms + 1) * n_atoms)

    def stages(self, material: Material) -> Stages:
        structure = material.structure
        (rest,) = yield Cells([structure])
        if structure.atomic_number[0] == 79:
            raise OutcomeError(FAILED, "gold is not measured")
        moved = []
        for atom in range(len(structure)):
            frac = structure.frac_coord.copy()
            frac[atom] += np.linalg.solve(structure.cell.T, [self.step, 0.0, 0.0])
            moved.append(replace(structure, frac_coord=frac))
        results = yield Cells(moved)
        energies = np.array([one.energy - rest.energy for one in results])
        return Outcome(values={"n_stages": 2}, tables={"spring_energy": energies})

    def finish(self, material: Material, found: Mapping[str, Any]) -> Outcome:
        assert found["n_stages"] == 2
        assert len(found["spring_energy"]) == len(material.structure)
        if material.structure.atomic_number[0] == 47:
            raise ValueError("silver breaks the last step")
        return Outcome(values={"stiffest": 2 * found["spring_energy"].max() / self.step**2})


def test_a_last_step_resumes_by_material(
    exported: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The network is untrained, so its crystals are taken as they are."""
    crystals = [ase.build.bulk("Cu"), ase.build.bulk("Au"), ase.build.bulk("Al", cubic=True)]
    ase.io.write(tmp_path / "c.extxyz", crystals, format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=4.5, scheduler="threads")
    protocol = Preset("springs", replace(PRESETS["default"].relaxation, fmax=1e6, smax=1e9), (Springs(),))
    done: list[int] = []
    step, interrupted = finishing._finished, [True]

    def counted(one: Property, material: Material, found: Mapping[str, Any]) -> Outcome:
        if interrupted[0] and done:
            raise RuntimeError("interrupted")
        done.append(int(material.structure.atomic_number[0]))
        return step(one, material, found)

    def run(name: str) -> xr.Dataset:
        out, model = tmp_path / name, exported("float64")
        return compute_properties(
            tmp_path / "g.zarr", model, out, ["springs"], preset=protocol, relax=False, scheduler="threads"
        )

    monkeypatch.setattr(finishing, "_finished", counted)
    with pytest.raises(RuntimeError, match="interrupted"):
        run("p.zarr")
    interrupted[0] = False
    with monkeypatch.context() as patch:
        patch.setattr(worker, "compute_materials", None)  # all cells were evaluated before the interruption
        found = run("p.zarr")
    assert sorted(done) == [13, 29]  # nothing twice
    assert words(found, "springs_status") == ["ok", "failed", "ok"]
    assert found["status_note"].to_numpy().tolist() == ["", "gold is not measured", ""]
    assert found["n_spring"].to_numpy().tolist() == [1, 0, 4]
    assert found["spring_energy"].dims == ("spring",)
    energies = np.split(found["spring_energy"].to_numpy(), np.cumsum(found["n_spring"].to_numpy())[:-1])
    for row in (0, 2):
        assert found["stiffest"].to_numpy()[row] == 2 * energies[row].max() / 0.02**2
    xr.testing.assert_identical(values(run("q.zarr")), values(found))


def test_a_fault_of_one_material_is_its_status() -> None:
    """An error in a property's own code, a cell without a graph, and NaN end one property of one material."""

    @dataclass(frozen=True, slots=True)
    class Faulty(Springs):
        def stages(self, material: Material) -> Stages:
            number = int(material.structure.atomic_number[0])
            if number == 47:
                raise ValueError("silver breaks the first step")
            close = replace(material.structure, cell=material.structure.cell * 1e-3)
            yield Cells([material.structure, close if number == 79 else material.structure])
            return Outcome()

    potential = EmtPotential()
    protocol = Protocol.of(PRESETS["default"], ["eos"], potential, relax=False)
    protocol = replace(protocol, properties=(*protocol.properties, Faulty()))
    crystals = [Structure.from_ase(ase.build.bulk(symbol)) for symbol in ("Ag", "Au", "Cu")]
    found = compute_materials(crystals, potential, protocol)
    assert [PROPERTY_STATUSES[one.outcomes["springs"].status] for one in found] == ["failed", "too_large", "ok"]
    assert found[0].outcomes["springs"].note == "ValueError: silver breaks the first step"
    assert {PROPERTY_STATUSES[one.outcomes["eos"].status] for one in found} == {"ok"}


def test_unrelaxed_crystals_are_told() -> None:
    potential = EmtPotential()
    stretched = Structure.from_ase(ase.build.bulk("Cu", a=3.75))
    taken = Protocol.of(PRESETS["default"], ["elastic"], potential, relax=False)
    short = replace(taken, relax=True, relaxation=replace(taken.relaxation, max_steps=2))
    results: dict[str, Computed] = {}
    for name, protocol in (("taken", taken), ("short", short)):
        (results[name],) = compute_materials([stretched], potential, protocol)
        assert PROPERTY_STATUSES[results[name].prepared.status] == "not_relaxed"
    assert results["taken"].outcomes["elastic"].status == OK
    assert results["short"].outcomes["elastic"].values == {}
    assert "within 2 evaluations" in results["short"].prepared.note


def test_ions_that_do_not_relax_are_told() -> None:
    potential = EmtPotential()
    protocol = Protocol.of(PRESETS["default"], ["elastic"], potential)
    settings = Elastic().relax_ions
    assert settings is not None
    impatient = Elastic(relax_ions=replace(settings, fmax=1e-9, max_steps=2))
    protocol = replace(protocol, properties=(impatient,))
    (found,) = compute_materials([Structure.from_ase(ase.build.bulk("Cu", "hcp", a=2.54, c=4.2))], potential, protocol)
    outcome = found.outcomes["elastic"]
    assert PROPERTY_STATUSES[outcome.status] == "not_relaxed"
    assert "within 2 evaluations at the strain xx -0.01" in outcome.note
