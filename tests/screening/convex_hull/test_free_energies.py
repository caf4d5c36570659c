"""Hulls of free energies: harmonic crystals whose order changes at a temperature that can be computed."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase.build import bulk
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError
from equiscreen.screening import hull, select
from equiscreen.screening.convex_hull.energies import interpolated
from equiscreen.screening.convex_hull.hull import summary
from equiscreen.screening.properties.lattice_dynamics.phonons import Phonons
from equiscreen.screening.properties.output import base_arrays, property_arrays
from equiscreen.screening.properties.protocol import IMAGINARY_MODES, OK
from equiscreen.screening.relaxation.batched import NOT_CONVERGED, RelaxSettings
from numpy.typing import NDArray
from scipy.optimize import brentq

from .hull_data import write_scores

BOLTZMANN, PLANCK = 8.617333262e-5, 4.135667696e-3  # eV/K, eV/THz
J_PER_MOL = 96485.33212  # one eV/K
PHONONS = Phonons()
TEMPERATURES = np.array(PHONONS.temperatures)
# Energies (eV/atom) and frequencies (THz) of crystals whose modes all have one frequency.
CRYSTALS = {"Al": (0.0, 5.0), "Cu": (0.0, 4.0), "stiff": (-0.10, 8.0), "soft": (-0.05, 5.0)}


def free_energy(frequency: float, temperature: Any) -> Any:
    """Free energy of an Einstein crystal, eV/atom."""
    with np.errstate(divide="ignore"):
        x = PLANCK * frequency / (BOLTZMANN * np.asarray(temperature, dtype=float))
    return 3 * (PLANCK * frequency / 2 + BOLTZMANN * np.asarray(temperature) * np.log1p(-np.exp(-x)))


def entropy(frequency: float, temperature: NDArray[np.float64]) -> NDArray[np.float64]:
    """Entropy of an Einstein crystal, eV/K per atom."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        x = PLANCK * frequency / (BOLTZMANN * temperature)
        return np.where(temperature > 0, 3 * BOLTZMANN * (x / np.expm1(x) - np.log1p(-np.exp(-x))), 0.0)


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    folder = tmp_path_factory.mktemp("free")
    cells = [
        bulk("Al"),
        bulk("Cu"),
        *(bulk("CuAl", kind, a=a) for kind, a in (("cesiumchloride", 3.0), ("rocksalt", 5))),
    ]
    for name, atoms in zip(CRYSTALS, cells, strict=True):
        atoms.info["name"] = name
    ase.io.write(folder / "c.extxyz", cells, format="extxyz")
    featurize(folder / "c.extxyz", folder / "g.zarr", cutoff=5.0, id_field="name", scheduler="threads")
    return GraphStore(folder / "g.zarr")


def properties(
    path: Path,
    graphs: GraphStore,
    *,
    phonons: Sequence[int] = (OK,) * 4,
    relaxations: Sequence[int] = (0,) * 4,
) -> Path:
    """A dataset like those of `compute_properties`, of Einstein crystals."""
    n_atoms = graphs.n_atoms[:].astype(float)
    energy = np.array([energy for energy, _ in CRYSTALS.values()]) * n_atoms
    frequencies = [frequency for _, frequency in CRYSTALS.values()]
    values: Mapping[str, Any] = {
        "vibrational_free_energies": np.array([free_energy(one, TEMPERATURES) for one in frequencies]),
        "vibrational_entropies": np.array([entropy(one, TEMPERATURES) for one in frequencies]) * J_PER_MOL,
        "phonons_status": np.array(phonons, dtype=np.uint8),
        "relaxation_status": np.array(relaxations, dtype=np.uint8),
    }
    specs = {spec.name: spec for spec in (*base_arrays(RelaxSettings()), *property_arrays([PHONONS]))}
    extra = [(specs[name], array) for name, array in values.items()]
    meanings = tuple(specs["status"].attrs["flag_meanings"].split())
    return write_scores(
        path, graphs, energy, scheme="own", status=phonons, meanings=meanings, kind="properties", extra=extra
    )


def test_two_polymorphs_change_places_at_the_temperature_that_the_frequencies_imply(
    graphs: GraphStore, tmp_path: Path
) -> None:
    out = properties(tmp_path / "p.zarr", graphs)

    def difference(temperature: float) -> float:
        """Free energy of the soft crystal minus that of the stiff one."""
        (e1, stiff), (e2, soft) = CRYSTALS["stiff"], CRYSTALS["soft"]
        return float(e2 - e1 + free_energy(soft, temperature) - free_energy(stiff, temperature))

    transition = brentq(difference, 50, 999)
    # The classical limit, 3 k T ln(8/5), is reached but for the zero-point motion.
    assert transition == pytest.approx(0.05 / (3 * BOLTZMANN * np.log(8 / 5)), rel=0.1)
    for temperature in (transition - 30, transition + 30):
        found = hull(
            out, (), tmp_path / "h.zarr", model_references=out, temperature=temperature, overwrite=True, progress=False
        )
        apart = difference(temperature)
        above = dict(zip(found["structure_id"].values.tolist(), found["free_energy_above_hull"].values, strict=True))
        expected = {"Al": 0.0, "Cu": 0.0, "stiff": max(0.0, -apart), "soft": max(0.0, apart)}
        assert above == pytest.approx(expected, abs=1e-6)
        assert abs(apart) > 1e-3
        formation = found["formation_free_energy_per_atom"].values
        energy, frequency = CRYSTALS["stiff"]
        elements = (free_energy(5.0, temperature) + free_energy(4.0, temperature)) / 2
        assert formation[2] == pytest.approx(energy + free_energy(frequency, temperature) - elements, abs=1e-6)
        # Without vibrations, the order is that of the energies at all temperatures.
        assert found["energy_above_model_hull"].values == pytest.approx([0.0, 0.0, 0.0, 0.05])
        decomposition = found["free_energy_decomposition"].values[2]
        assert decomposition == f"1 AlCu ({'stiff' if temperature < transition else 'soft'})"
        assert found["free_energy_above_hull"].attrs["temperature"] == temperature
        assert f"free energies at {temperature:g} K" in summary(found, tmp_path / "h.zarr")


def test_a_compound_leaves_the_hull_where_its_vibrations_cost_more_than_its_bonds_gain(
    graphs: GraphStore, tmp_path: Path
) -> None:
    """Of the references, only the elements compete with the compounds."""
    out = properties(tmp_path / "p.zarr", graphs)
    elements = select(out, tmp_path / "elements", "n_atoms == 1", by="energy_per_atom", formats=("zarr",))
    assert elements.sizes["structure"] == 2

    def formation(temperature: float) -> float:
        energy, frequency = CRYSTALS["stiff"]
        both = free_energy(5.0, temperature) + free_energy(4.0, temperature)
        return float(energy + free_energy(frequency, temperature) - both / 2)

    limit = brentq(formation, 100, 999)
    for temperature, stable in ((limit - 20, True), (limit + 20, False)):
        found = hull(
            out,
            (),
            tmp_path / "h.zarr",
            model_references=tmp_path / "elements" / "scores.zarr",
            temperature=temperature,
            overwrite=True,
        )
        above = found["free_energy_above_hull"].values[2]
        assert above == pytest.approx(formation(temperature), abs=1e-6)
        assert (above < 0) == stable


@pytest.mark.parametrize("frequency", [1.0, 5.0, 20.0])
def test_interpolated_free_energies_are_those_of_the_temperature(frequency: float) -> None:
    energies, slopes = free_energy(frequency, TEMPERATURES)[None], -entropy(frequency, TEMPERATURES)[None]
    for temperature in (0.0, 37.0, 100.0, 273.15, 650.0, 1000.0):
        found = interpolated(TEMPERATURES, energies, slopes, temperature)
        near = 1e-3 if temperature < 100 else 5e-5
        assert found == pytest.approx(free_energy(frequency, temperature), abs=near)
    order = np.array([3, 0, 2, 1, *range(4, len(TEMPERATURES))])
    shuffled = interpolated(TEMPERATURES[order], energies[:, order], slopes[:, order], 273.15)
    assert shuffled == pytest.approx(interpolated(TEMPERATURES, energies, slopes, 273.15))


def test_references_without_free_energies_are_refused_by_name(graphs: GraphStore, tmp_path: Path) -> None:
    out = properties(tmp_path / "p.zarr", graphs)
    static = write_scores(tmp_path / "r.zarr", graphs, np.zeros(4), scheme="own")
    with pytest.raises(ConfigError, match=r"r\.zarr has no vibrational free energies; compute them with"):
        hull(out, model_references=static, temperature=300.0)
    with pytest.raises(ConfigError, match=r"r\.zarr has no vibrational free energies; compute them with"):
        hull(static, model_references=out, temperature=300.0)
    unstable = properties(tmp_path / "u.zarr", graphs, phonons=(OK, OK, IMAGINARY_MODES, OK))
    with pytest.raises(
        ConfigError, match=r"u\.zarr: these references have no .*: stiff \(imaginary modes\); leave them"
    ):
        hull(out, model_references=unstable, temperature=300.0)
    # The cure that the message names.
    select(unstable, tmp_path / "stable", by="n_atoms", where="phonons_status == 'ok'", formats="zarr")
    stable = hull(out, model_references=tmp_path / "stable" / "scores.zarr", temperature=300.0)
    assert not stable.attrs["hull"]["free_energies"]["missing_references"]
    shutil.rmtree(tmp_path / "p.hull.zarr")
    with pytest.raises(ConfigError, match="free energies from 0 to 1000 K, not at 1200 K"):
        hull(out, model_references=out, temperature=1200.0)
    with pytest.raises(ConfigError, match="--temperature needs --model-references"):
        hull(out, temperature=300.0)
    assert not (tmp_path / "p.hull.zarr").exists()


def test_a_candidate_without_free_energy_is_not_on_that_hull(graphs: GraphStore, tmp_path: Path) -> None:
    """It keeps its energies, which do not depend on its phonons."""
    known = properties(tmp_path / "k.zarr", graphs)
    out = properties(tmp_path / "p.zarr", graphs, phonons=(OK, OK, IMAGINARY_MODES, OK))
    found = hull(out, model_references=known, temperature=300.0)
    assert np.isnan(found["free_energy_above_hull"].values).tolist() == [False, False, True, False]
    assert np.isfinite(found["energy_above_model_hull"].values).all()
    assert found.attrs["hull"]["free_energies"]["with_free_energy"] == 3
    # A hull of this hull replaces the columns.
    again = hull(tmp_path / "p.hull.zarr", out=tmp_path / "again.zarr")
    assert not {name for name in again.variables if "free_energy" in str(name)} - {
        "vibrational_free_energies",
        "vibrational_free_energy",
    }


def test_properties_count_as_relaxed_if_their_relaxation_ended(graphs: GraphStore, tmp_path: Path) -> None:
    """Imaginary modes do not concern the energy; a relaxation that did not end does."""
    out = properties(
        tmp_path / "p.zarr", graphs, phonons=(OK, OK, IMAGINARY_MODES, OK), relaxations=(OK, OK, OK, NOT_CONVERGED)
    )
    found = hull(out)
    assert "energy_above_hull" in found
    assert found["energy_above_hull"].values == pytest.approx([0.0, 0.0, 0.0, 0.05])
    assert found.attrs["hull"]["not_competing"] == {"not_converged": 1}
    assert "energy_above_hull" in hull(out, model_references=out, out=tmp_path / "second.zarr")


def test_references_that_lack_elements_are_named_with_a_cure(graphs: GraphStore, tmp_path: Path) -> None:
    """Nothing is written if no structure can be compared."""
    out = properties(tmp_path / "p.zarr", graphs)
    select(out, tmp_path / "al", "formula == 'Al'", by="energy_per_atom", formats="zarr")
    only_al = tmp_path / "al" / "scores.zarr"
    found = hull(out, model_references=only_al, temperature=300.0)
    assert np.isnan(found["energy_above_model_hull"].values).tolist() == [False, True, True, True]
    assert np.isfinite(found["energy_above_hull"].values).all()
    for column in ("energy_above_model_hull", "free_energy_above_hull"):
        warning = f"warning: 3 of 4 structures have no {column}: no reference for Cu in --model-references; "
        (line,) = (line for line in summary(found, "h").splitlines() if line.startswith(warning))
        assert line.endswith("with the model of the candidates, and add the result to --model-references") == (
            column == "energy_above_model_hull"
        )
    select(out, tmp_path / "compounds", "n_atoms == 2", by="energy_per_atom", formats="zarr")
    compounds = tmp_path / "compounds" / "scores.zarr"
    lacking = r"scores\.zarr: no structure can be compared with --model-references, which lack Cu; relax crystals of"
    with pytest.raises(ConfigError, match=lacking):
        hull(compounds, model_references=only_al, out=tmp_path / "h.zarr")
    assert not [*tmp_path.glob("h.zarr*")]


@pytest.mark.slow
def test_the_command_line_takes_a_temperature(
    graphs: GraphStore, tmp_path: Path, command_line: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = properties(tmp_path / "p.zarr", graphs)
    done = command_line("hull", out, "--model-references", out, "--temperature", "800")
    assert done.returncode == 0, done.stderr
    assert "free energies at 800 K" in done.stdout
