"""Dispersion on workers: it is added to every evaluation, recorded, and never compared with energies without it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from equiscreen.campaigns import rank
from equiscreen.export import OnnxPotential
from equiscreen.export.runtime.dispersion import Dispersion, installed_version, with_dispersion
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, StoreError
from equiscreen.screening import (
    CascadeSettings,
    RelaxSettings,
    cascade,
    compute_properties,
    hull,
    open_scores,
    relax,
    screen,
    select,
)
from equiscreen.screening.comparison import join_energies
from equiscreen.screening.relaxation import relax as relaxation
from equiscreen.screening.scoring import screen as scoring

from ..conftest import CUTOFF, write_extxyz
from ..export.runtime.altered_models import altered
from .convex_hull.hull_data import graphs_of, rows_of_mp, write_scores

CRYSTALS = 7
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def model(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model of three metals whose metadata state PBE."""
    return altered(exported("float32"), tmp_path_factory.mktemp("m") / "pbe.onnx", energy_scheme="mp-uncorrected")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graph store of crystals, a slab and a molecule."""
    folder = tmp_path_factory.mktemp("store")
    crystals = ase.io.read(write_extxyz(folder / "c.extxyz", CRYSTALS, seed=7), ":")
    others = [ase.build.fcc111("Cu", (1, 1, 2), vacuum=5.0), ase.Atoms("Au2", [[0, 0, 0], [2.6, 0, 0]])]
    images = [ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc) for atoms in crystals + others]
    ase.io.write(folder / "all.extxyz", images, format="extxyz")
    featurize(folder / "all.extxyz", folder / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    return folder / "g.zarr"


def correction(model: Path, name: str = "d3") -> Dispersion:
    found = Dispersion.of(name, {"m": OnnxPotential.load(model, threads=1).metadata})
    assert found is not None
    return found


def test_scores_are_those_of_the_sum_whatever_the_parts(
    model: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = screen(store, model, tmp_path / "s.zarr", dispersion="d3", allow_extrapolation=True, scheduler="threads")
    plain = screen(store, model, tmp_path / "p.zarr", allow_extrapolation=True, scheduler="threads")
    block = GraphStore(store).block(0, len(GraphStore(store)))
    potential = with_dispersion(OnnxPotential.load(model, threads=1), correction(model))
    expected = potential.evaluate(block)
    np.testing.assert_array_equal(scores["energy"], expected.energy)
    added = scores["energy"].to_numpy() - plain["energy"].to_numpy()
    np.testing.assert_allclose(added, correction(model).evaluate(block).energy, atol=1e-12)
    assert (added < -0.005).all()
    np.testing.assert_array_equal(scores["stress"][:CRYSTALS], expected.stress[:CRYSTALS])
    assert np.isfinite(scores["in_plane_virial"][CRYSTALS, :2, :2]).all()
    monkeypatch.setattr(scoring, "PART_STRUCTURES", 2)
    again = screen(
        store, model, tmp_path / "t.zarr", dispersion="d3", allow_extrapolation=True, scheduler="threads", slots=64
    )
    assert again.load().drop_attrs().identical(scores.load().drop_attrs())
    model_attrs = scores.attrs["model"]
    assert model_attrs["energy_scheme"] == "mp-uncorrected+d3"
    assert model_attrs["sha256"] == plain.attrs["model"]["sha256"]
    assert model_attrs["dispersion"] == json.loads(json.dumps(correction(model).record()))
    assert model_attrs["dispersion"]["library"] == f"dftd3 {installed_version()}"
    assert "dispersion" not in plain.attrs["model"]


def test_a_run_is_resumed_and_extended_only_with_the_same_correction(model: Path, store: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    first = screen(store, model, out, dispersion="d3", limit=3, scheduler="threads").load()
    with pytest.raises(StoreError, match=r"cannot be appended to \(different dispersion\)"):
        screen(store, model, out, append=True, scheduler="threads")
    with pytest.raises(StoreError, match=r"cannot be appended to \(different dispersion\)"):
        screen(store, model, out, dispersion="d3-atm", append=True, scheduler="threads")
    longer = screen(store, model, out, dispersion="d3", append=True, scheduler="threads").load()
    np.testing.assert_array_equal(longer["energy"][:3], first["energy"])
    whole = screen(store, model, tmp_path / "w.zarr", dispersion="d3", scheduler="threads").load()
    assert longer.drop_attrs().identical(whole.drop_attrs())


def test_relaxations_end_where_the_sum_has_no_forces(model: Path, store: Path, tmp_path: Path) -> None:
    settings = RelaxSettings(max_steps=30, fmax=0.05, smax=1.0, allow_extrapolation=True)
    found = relax(store, model, tmp_path / "r.zarr", settings, dispersion="d3", scheduler="threads")
    relaxed = GraphStore(tmp_path / "r.graphs.zarr")
    block = relaxed.block(0, len(relaxed))
    potential = with_dispersion(OnnxPotential.load(model, threads=1), correction(model))
    expected = potential.evaluate(block)
    done = np.flatnonzero(found["status"] == 0)
    assert len(done) > 1
    np.testing.assert_allclose(found["energy"][done], expected.energy[done], atol=1e-4)
    forces = np.maximum.reduceat(np.linalg.norm(expected.forces, axis=1), block.atom_start)
    assert (forces[done] <= 0.05 + 1e-3).all()
    assert found.attrs["model"]["energy_scheme"] == "mp-uncorrected+d3"
    assert relaxation.estimate(store, model, settings, limit=2, dispersion="d3").structures == 2


@pytest.mark.slow
def test_graphite_holds_together_on_the_command_line(
    sevennet_model: Path, tmp_path: Path, command_line: Command
) -> None:
    graphite = ase.build.graphene(vacuum=3.0)
    graphite += ase.Atoms("C2", graphite.positions + np.array([0, graphite.cell[0, 0] / np.sqrt(3), 3.5]))
    graphite.cell[2], graphite.pbc = [0, 0, 7.0], True
    ase.io.write(tmp_path / "graphite.extxyz", graphite)
    spacing = {}
    for name in ("none", "d3"):
        out = tmp_path / f"{name}.zarr"
        words = ("relax", tmp_path / "graphite.extxyz", "--model", sevennet_model, "--out", out, "--smax", 0.01)
        done = command_line(*words, "--dispersion", name, "--scheduler", "threads")
        assert done.returncode == 0, done.stderr
        graphs = GraphStore(tmp_path / f"{name}.graphs.zarr")
        spacing[name] = graphs.block(0, 1).structure(0).cell[2, 2] / 2
    # 3.35 angstrom measured; PBE alone hardly binds the layers.
    assert abs(spacing["d3"] - 3.35) < 0.15
    assert spacing["none"] > spacing["d3"] + 0.1
    found = compute_properties(
        tmp_path / "d3.zarr", sevennet_model, tmp_path / "p.zarr", ["eos"], dispersion="d3", scheduler="threads"
    )
    assert found["bulk_modulus_eos"].to_numpy()[0] > 0
    assert found.attrs["model"]["dispersion"]["functional"] == "pbe"
    done = command_line("hull", tmp_path / "d3.zarr", "--references", tmp_path / "none.zarr")
    assert done.returncode == 1
    assert "'mp-uncorrected', which cannot be compared with the candidates' scheme 'mp-uncorrected+d3'" in done.stderr
    done = command_line("info", tmp_path / "d3.zarr")
    assert "mp-uncorrected+d3" in done.stdout


def test_the_command_line_adds_it_or_says_why_not(
    exported: Callable[[str], Path], model: Path, store: Path, tmp_path: Path, command_line: Command
) -> None:
    out = tmp_path / "s.zarr"
    common = ("--dispersion", "d3", "--scheduler", "threads", "--out")
    done = command_line("screen", store, "--model", model, *common, out)
    assert done.returncode == 0, done.stderr
    assert open_scores(out).attrs["model"]["dispersion"]["name"] == "d3"
    for verb in ("screen", "relax", "properties"):
        done = command_line(verb, store, "--model", exported("float32"), *common, tmp_path / "n.zarr")
        assert done.returncode == 1
        assert f"{exported('float32')}: the energy scheme own names no functional" in done.stderr.replace("\n", "")
        assert not (tmp_path / "n.zarr").exists()


def test_properties_of_crystals_include_it(model: Path, tmp_path: Path) -> None:
    ase.io.write(tmp_path / "c.extxyz", [ase.build.bulk("Cu", a=3.4), ase.build.molecule("H2")], format="extxyz")
    featurize(tmp_path / "c.extxyz", tmp_path / "g.zarr", cutoff=CUTOFF, scheduler="threads")
    energies = {}
    for name in ("none", "d3"):
        out = tmp_path / f"{name}.zarr"
        options = {"dispersion": name, "relax": False, "scheduler": "threads"}
        found = compute_properties(tmp_path / "g.zarr", model, out, ["eos"], **options)
        assert len(found["structure"]) == 2
        energies[name] = found["energy"].to_numpy()[0]
    block = GraphStore(tmp_path / "g.zarr").block(0, 1)
    assert energies["d3"] - energies["none"] == pytest.approx(correction(model).evaluate(block).energy[0], abs=1e-9)


def test_hulls_never_mix_energies_with_and_without_it(data: Path, tmp_path: Path) -> None:
    graphs = graphs_of([row for row in rows_of_mp(data) if row["cif"].count("\n") < 32][:6], tmp_path)
    energy = np.linspace(-9.0, -30.0, len(graphs)) * graphs.n_atoms
    for name, scheme in (("plain", ""), ("d3", "+d3"), ("atm", "+d3-atm"), ("same", "+d3")):
        write_scores(tmp_path / f"{name}.zarr", graphs, energy, scheme=f"mp-uncorrected{scheme}")
    (tmp_path / "t.csv").write_text("formula,energy_per_atom,scheme\nNaCl,-3.4,mp-uncorrected\n")
    (tmp_path / "e.json").write_text("[]")
    for name in ("t.csv", "e.json"):
        with pytest.raises(
            ConfigError, match=rf"{name}: these references include no dispersion.*\(mp-uncorrected\+d3\)"
        ):
            hull(tmp_path / "d3.zarr", [tmp_path / name], tmp_path / "h.zarr")
    for candidates, others in (("d3", "plain"), ("plain", "d3"), ("d3", "atm")):
        with pytest.raises(ConfigError, match=rf"{others}.zarr: the energies follow the scheme .*cannot be compared"):
            hull(tmp_path / f"{candidates}.zarr", [tmp_path / f"{others}.zarr"], tmp_path / "h.zarr")
    found = hull(tmp_path / "d3.zarr", [tmp_path / "same.zarr"], tmp_path / "h.zarr")
    assert found.attrs["hull"]["corrections"] == "none"
    assert not found.attrs["hull"]["elemental_references"].get("elements")
    np.testing.assert_allclose(found["corrected_energy_per_atom"], energy / graphs.n_atoms, rtol=1e-12)


def test_calculations_have_dispersion_and_are_compared_with_it(data: Path, tmp_path: Path) -> None:
    graphs = graphs_of(rows_of_mp(data)[:4], tmp_path)
    write_scores(tmp_path / "s.zarr", graphs, -3.0 * graphs.n_atoms, scheme="mp-uncorrected+d3")
    write_scores(tmp_path / "p.zarr", graphs, -3.0 * graphs.n_atoms, scheme="mp-uncorrected")
    ids = open_scores(tmp_path / "s.zarr")["structure_id"].to_numpy().tolist()
    lines = [f"{name},-3.1,{kind}" for name, kind in zip(ids, ("PBE", "PBE+D3", "r2SCAN", "PBE"), strict=True)]
    (tmp_path / "dft.csv").write_text("\n".join(["id,energy_per_atom,functional", *lines]))
    joined = {name: join_energies(tmp_path / f"{name}.zarr", tmp_path / "dft.csv").attrs["dft"] for name in "sp"}
    assert joined["s"]["left_out_by_reason"] == {"functional r2SCAN": 1}
    assert joined["p"]["left_out_by_reason"] == {"functional GGA+vdW": 1, "functional r2SCAN": 1}
    for name in "sp":
        select(tmp_path / f"{name}.zarr", tmp_path / name, top=1, by="energy_per_atom", formats=["vasp-static"])
        (incar,) = (tmp_path / name / "vasp-static").glob("*/INCAR")
        assert ("IVDW = 12" in incar.read_text()) == (name == "s")


def test_campaigns_refuse_references_without_it_at_once(model: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("formula,energy_per_atom,scheme\nAlCu,-3.4,mp-uncorrected\n")
    options = {"model": str(model), "references": [str(tmp_path / "t.csv")], "scheduler": "threads"}
    with pytest.raises(ConfigError, match=r"t\.csv: these references include no dispersion.*--relax-references"):
        rank(store, tmp_path / "out", dispersion="d3", **options)
    assert not list((tmp_path / "out").glob("*.zarr"))
    with pytest.raises(ConfigError, match=r"t\.csv: these references include no dispersion"):
        cascade(store, model, model, tmp_path / "c", tmp_path / "t.csv", CascadeSettings(), dispersion="d3")
    with pytest.raises(ConfigError, match="dispersion: unknown dispersion 'd2'; did you mean 'd3'"):
        rank(store, tmp_path / "out", dispersion="d2", **options)


@pytest.mark.slow
def test_a_campaign_measures_against_relaxed_references(
    model: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    rows = [{"id": "known", "formula": "AlCu", "energy_per_atom": -3.4, "scheme": "mp-uncorrected"}]
    known = ase.build.bulk("AlCu", "cesiumchloride", a=2.9)
    structure = {
        "lattice_vectors": known.cell.tolist(),
        "cartesian_site_positions": known.positions.tolist(),
        "species_at_sites": ["Al", "Cu"],
    }
    (tmp_path / "t.json").write_text(json.dumps([{**row, **structure} for row in rows]))
    import pyarrow as pa  # noqa: PLC0415
    import pyarrow.parquet as pq  # noqa: PLC0415

    pq.write_table(pa.Table.from_pylist([{**row, **structure} for row in rows]), tmp_path / "t.parquet")
    # An untrained network has no minimum nearby: everything counts as relaxed.
    settings = RelaxSettings(max_steps=5, fmax=1e3, smax=1e6, allow_extrapolation=True)
    options = {
        "model": str(model),
        "references": [str(tmp_path / "t.parquet")],
        "relax_references": True,
        "relaxation": settings,
        "scheduler": "threads",
    }
    rank(store, tmp_path / "out", dispersion="d3", **options)
    found = open_scores(tmp_path / "out/hull.zarr")
    account = found.attrs["hull"]["references"]
    assert {entry["scheme"] for entry in account} == {"mp-uncorrected+d3"}
    assert len(account) == 2
    assert "+d3-" in str(next((tmp_path / "cache/elements").iterdir()))
    assert np.isfinite(found["formation_energy_per_atom"].to_numpy()).any()
    with pytest.raises(OutputExistsError, match="out holds a campaign with another dispersion correction"):
        rank(store, tmp_path / "out", dispersion="d3-atm", **options)
