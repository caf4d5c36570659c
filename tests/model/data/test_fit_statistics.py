"""Statistics of the training set agree with NumPy's least squares on all rows at once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.data.batches import element_counts
from equiscreen.model.data.fit_statistics import fit_statistics
from equiscreen.model.data.targets import head_labels
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import GraphBlock, GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError
from equiscreen.pipeline.structures.elements import pair_name
from equiscreen.pipeline.structures.random_crystals import probe_structures
from numpy.typing import NDArray

from ...conftest import ELEMENTS, write_emt_labelled
from .test_batches import HEADS, labelled_images, store_of

RIDGE = 1e-2


@pytest.fixture(scope="module")
def alloys(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Graph store of alloys with EMT energies and forces."""
    folder = tmp_path_factory.mktemp("fitting")
    write_emt_labelled(folder / "s.extxyz", probe_structures(ELEMENTS, 40, seed=30))
    featurize(folder / "s.extxyz", folder / "g.zarr", cutoff=4.5, scheduler="threads")
    return GraphStore(folder / "g.zarr")


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> GraphStore:
    """Graph store with labels for heads, and energies for some structures."""
    return store_of(tmp_path_factory.mktemp("fitting") / "h.zarr", labelled_images(60, 4))


def fit(
    stores: Sequence[GraphStore],
    cutoff: float = 4.0,
    *,
    chosen: Sequence[NDArray[np.bool_]] | None = None,
    energy: bool = True,
    heads: dict[str, HeadConfig] | None = None,
    by_element: bool = False,
) -> tuple[tuple[int, ...], DataStatistics]:
    return fit_statistics(
        stores,
        [np.ones(len(store), dtype=bool) for store in stores] if chosen is None else chosen,
        cutoff,
        energy=energy,
        heads=head_labels(stores, heads or {}),
        energy_scale="element" if by_element else "global",
    )


def counts_of(block: GraphBlock) -> NDArray[np.float64]:
    counts = element_counts(block.atom_structure, block.atomic_number, len(block))
    return counts[:, ELEMENTS].astype(np.float64)


def ridge_fit(rows: NDArray[np.float64], values: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return the shifts, fitted around their common value, and the root mean square residual per atom."""
    size = rows.sum(axis=1)
    together = size @ values / (size @ size)
    left = np.linalg.solve(rows.T @ rows + RIDGE * np.eye(rows.shape[1]), rows.T @ (values - size * together))
    shifts = together + left
    return shifts, float(np.sqrt(np.mean(((values - rows @ shifts) / size) ** 2)))


def test_reference_energies_solve_the_least_squares_problem(alloys: GraphStore) -> None:
    block = alloys.block(0, len(alloys))
    elements, statistics = fit([alloys], 4.5)
    expected = np.linalg.lstsq(counts_of(block), block.structure_labels["energy"], rcond=None)[0]
    assert elements == ELEMENTS
    assert np.allclose(statistics.reference_energies, expected, atol=1e-10)
    assert statistics.mean_neighbors == pytest.approx(block.n_edges.sum() / block.n_atoms.sum())
    near = (block.displacements() ** 2).sum(axis=1) < 3.0**2
    assert fit([alloys], 3.0)[1].mean_neighbors == pytest.approx(near.sum() / block.n_atoms.sum())


def test_energy_scales_are_those_of_forces(alloys: GraphStore) -> None:
    block = alloys.block(0, len(alloys))
    forces = block.atom_labels["forces"]
    assert fit([alloys])[1].energy_scales == pytest.approx([float(np.sqrt(np.mean(forces**2)))] * 3)
    own = [float(np.sqrt(np.mean(forces[block.atomic_number == z] ** 2))) for z in ELEMENTS]
    assert fit([alloys], by_element=True)[1].energy_scales == pytest.approx(own)
    few = np.arange(len(alloys)) < 3  # fewer than a hundred components of every element
    scales = fit([alloys], by_element=True, chosen=[few])[1].energy_scales
    assert len(set(scales)) == 1


def test_without_forces_energy_scales_are_what_references_leave(labelled: GraphStore) -> None:
    block = labelled.block(0, len(labelled))
    known = np.isfinite(block.structure_labels["energy"])
    rows, values = counts_of(block)[known], block.structure_labels["energy"][known]
    references = np.linalg.lstsq(rows, values, rcond=None)[0]
    _, statistics = fit([labelled])
    assert np.allclose(statistics.reference_energies, references, atol=1e-10)
    left = (values - rows @ references) / rows.sum(axis=1)
    assert statistics.energy_scales == pytest.approx([float(np.std(left))] * 3)
    assert fit([labelled], energy=False, heads={"elastic": HEADS["elastic"]})[1].reference_energies == (0.0,) * 3


def test_large_energies_leave_small_residuals(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [structure.to_ase() for structure in probe_structures(ELEMENTS, 60, seed=3)]
    noise = rng.normal(0, 0.01, len(images))
    for atoms, error in zip(images, noise, strict=True):  # like all-electron energies: 500 keV per gold atom
        atoms.info["e"] = float(-6.6e3 * sum((atoms.numbers / 13) ** 2.4) + error * len(atoms))
    _, statistics = fit([store_of(tmp_path / "g.zarr", images, ["energy=e[eV]"], ())])
    assert np.allclose(statistics.reference_energies, [-6.6e3 * (z / 13) ** 2.4 for z in ELEMENTS], atol=0.1)
    assert statistics.energy_scales[0] == pytest.approx(0.01, rel=0.2)


def test_what_compositions_leave_open_is_small_and_adds_up(tmp_path: Path) -> None:
    images = [structure.to_ase() for structure in probe_structures([13], 6, seed=5)]
    for place, atoms in enumerate(images):
        half = len(atoms) // 2 * 2
        del atoms[half:]
        atoms.numbers[: half // 2] = 29
        atoms.info.update(e=-8.0 * half / 2, gap=2.0 + 0.1 * (-1) ** place, extent=3.0 * half)
    alone = images[0].copy()
    alone.numbers[:] = 79
    alone.info = {"gap": 2.0}
    store = store_of(tmp_path / "g.zarr", [*images, alone], ["energy=e[eV]", "gap=gap[eV]", "extent=extent"], ())
    heads = {"gap": HeadConfig(), "extent": HeadConfig(extensive=True)}
    elements, statistics = fit([store], heads=heads)
    assert elements == ELEMENTS
    assert np.allclose(statistics.reference_energies, [-4.0, -4.0, 0.0])  # no structure with gold has an energy
    assert statistics.energy_scales == (1.0,) * 3  # the residual is zero
    assert np.allclose(statistics.heads["gap"].shifts, 2.0, atol=0.02)
    assert statistics.heads["gap"].scales[0] == pytest.approx(0.1, rel=0.1)
    assert np.allclose(statistics.heads["extent"].shifts, 3.0)
    assert statistics.heads["extent"].scales == (1.0,)


@pytest.mark.parametrize("extensive", [False, True])
def test_shifts_of_structures_solve_the_least_squares_problem(labelled: GraphStore, extensive: bool) -> None:
    heads = {"gap": HeadConfig(extensive=extensive), "elastic": HeadConfig(tensor="elastic", extensive=extensive)}
    _, statistics = fit([labelled], energy=False, heads=heads)
    block = labelled.block(0, len(labelled))
    for name, head in head_labels([labelled], heads).items():
        components = head.of(block)
        known = np.isfinite(components).all(axis=1)
        size = block.n_atoms[known, None]
        rows = counts_of(block)[known] / (1 if extensive else size)
        found = statistics.heads[name]
        assert (found.shape, found.unit) == (head.shape, head.unit)
        copies = [ir.dim for mul, ir in head.basis.irreps for _ in range(mul)]
        assert len(found.scales) == len(copies)
        assert np.shape(found.shifts) == (3, len(head.invariant))
        for place, component in enumerate(head.invariant):
            shifts, left = ridge_fit(rows, components[known, component])
            assert np.allclose(np.array(found.shifts)[:, place], shifts, atol=1e-9)
            assert found.scales[np.cumsum([0, *copies]).tolist().index(component)] == pytest.approx(left)
        per_atom = components[known] / (size if extensive else 1)
        for scale, begin, dim in zip(found.scales, np.cumsum([0, *copies]), copies, strict=False):
            if dim == 9:
                assert scale == pytest.approx(np.sqrt(np.mean(per_atom[:, begin : begin + 9] ** 2)))
            if dim == 5:  # zero in cubic crystals
                assert scale == max(found.scales)


def test_shifts_of_atoms_are_means_of_elements(labelled: GraphStore) -> None:
    _, statistics = fit([labelled], heads={"charge": HEADS["charge"]})
    block = labelled.block(0, len(labelled))
    charge = block.atom_labels["charge"]
    known = np.isfinite(charge)
    means = {z: charge[known & (block.atomic_number == z)].mean() for z in ELEMENTS}
    assert np.allclose(np.array(statistics.heads["charge"].shifts)[:, 0], list(means.values()))
    left = charge - np.vectorize(means.get)(block.atomic_number)
    assert statistics.heads["charge"].scales == pytest.approx([float(np.sqrt(np.mean(left[known] ** 2)))])


def test_an_element_whose_atoms_have_no_label_has_the_mean_of_all(labelled: GraphStore) -> None:
    block = labelled.block(0, len(labelled))
    labels = np.isfinite(block.atom_labels["charge"])
    gold = np.zeros(len(block), dtype=bool)
    gold[block.atom_structure[labels & (block.atomic_number == 79)]] = True
    assert (block.atomic_number[~gold[block.atom_structure]] == 79).any()
    _, statistics = fit([labelled], chosen=[~gold], heads={"charge": HEADS["charge"]})
    mean = block.atom_labels["charge"][labels & ~gold[block.atom_structure]].mean()
    assert statistics.heads["charge"].shifts[2][0] == pytest.approx(mean)


def test_logarithms_are_fitted_and_pseudoscalars_have_no_shift(labelled: GraphStore) -> None:
    heads = {"log_gap": HEADS["log_gap"], "chirality": HeadConfig(tensor="pseudoscalar", label="gap")}
    _, statistics = fit([labelled], energy=False, heads=heads)
    gap = labelled.column("gap")
    assert np.abs(np.array(statistics.heads["log_gap"].shifts)[:, 0] - np.log(gap[gap > 0]).mean()).max() < 3.0
    assert statistics.heads["chirality"].shifts == ((), (), ())
    assert statistics.heads["chirality"].scales == pytest.approx([float(np.sqrt(np.nanmean(gap**2)))])


def test_stores_are_fitted_together(labelled: GraphStore) -> None:
    half = np.arange(len(labelled)) < 30
    heads = {name: HEADS[name] for name in ("gap", "charge", "dielectric")}
    elements, together = fit([labelled], heads=heads)
    again, apart = fit([labelled, labelled], chosen=[half, ~half], heads=heads)
    assert elements == again
    assert np.allclose(together.reference_energies, apart.reference_energies)
    for name in heads:
        assert np.allclose(together.heads[name].shifts, apart.heads[name].shifts)
        assert np.allclose(together.heads[name].scales, apart.heads[name].scales)


def test_a_head_without_labels_in_the_training_set_is_refused(labelled: GraphStore) -> None:
    without = ~np.isfinite(labelled.column("gap"))
    with pytest.raises(ConfigError, match=r"heads\.gap: no training structure has a usable label 'gap'"):
        fit([labelled], chosen=[without], heads={"gap": HEADS["gap"]})


def test_smallest_distances_are_those_of_the_chosen_structures(alloys: GraphStore) -> None:
    cutoff, chosen = 3.5, np.arange(len(alloys)) % 3 > 0
    block = alloys.block(0, len(alloys)).take(np.flatnonzero(chosen))
    lengths = np.linalg.norm(block.displacements(), axis=1)
    expected: dict[str, float] = {}
    for receiver, sender, length in zip(block.receiver, block.sender, lengths, strict=True):
        pair = pair_name(int(block.atomic_number[receiver]), int(block.atomic_number[sender]))
        if length < cutoff:
            expected[pair] = min(length, expected.get(pair, np.inf))
    geometry = fit([alloys], cutoff, chosen=[chosen])[1].geometry
    assert geometry is not None
    assert geometry.minimum_distances == pytest.approx(expected, abs=1e-12)
    assert geometry.atom_volume == pytest.approx(block.volume.sum() / block.n_atoms.sum())
    assert (geometry.crystals, geometry.atoms) == (1.0, np.median(block.n_atoms))


def test_molecules_have_distances_but_no_density(tmp_path: Path) -> None:
    water = ase.build.molecule("H2O")
    ase.io.write(tmp_path / "w.extxyz", [water] * 2, format="extxyz")
    featurize(tmp_path / "w.extxyz", tmp_path / "g.zarr", cutoff=4.0, scheduler="threads")
    geometry = fit([GraphStore(tmp_path / "g.zarr")], energy=False)[1].geometry
    assert geometry is not None
    distances = {"H-H": water.get_distance(1, 2), "H-O": water.get_distance(0, 1)}
    assert geometry.minimum_distances == pytest.approx(distances, abs=1e-9)
    assert (geometry.atom_volume, geometry.crystals, geometry.atoms) == (None, 0.0, 3.0)
