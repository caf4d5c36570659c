"""Labels as irrep components, and batches: every structure once, for any number of processes and any read-ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import ase
import numpy as np
import pytest
import torch
from ase.io import write
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.data.batches import Batch, StructureBatches, element_counts, make_batch, of_elements
from equiscreen.model.data.targets import HeadLabels, head_labels, usable_structures
from equiscreen.model.equivariance.tensors import presentation
from equiscreen.pipeline import GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import ConfigError, EquiscreenError, StoreError
from equiscreen.pipeline.store import epoch_reader as reading
from equiscreen.pipeline.store.epoch_reader import EpochReader
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from ...conftest import ELEMENTS

CUTOFF = 4.0
LABELS = (
    "energy=e[eV]",
    "gap=gap[eV]",
    "mu:3=mu",
    "dielectric:3x3=eps",
    "flat:6=eps6",
    "elastic:6x6=c[GPa]",
    "charge:atom=q[e]",
)
COLUMNS = ("family", "date", "number")
HEADS = {
    "gap": HeadConfig(),
    "log_gap": HeadConfig(label="gap", transform="log"),
    "mu": HeadConfig(tensor="dipole"),
    "dielectric": HeadConfig(tensor="symmetric", transform="log"),
    "flat": HeadConfig(tensor="symmetric"),
    "elastic": HeadConfig(tensor="elastic"),
    "charge": HeadConfig(per="atom"),
}
# Silicon at room temperature, GPa: McSkimin & Andreatch, J. Appl. Phys. 35, 2161 (1964).
C11, C12, C44 = 165.8, 63.9, 79.6
SILICON = np.array(
    [[C11, C12, C12, 0, 0, 0], [C12, C11, C12, 0, 0, 0], [C12, C12, C11, 0, 0, 0]]
    + [[C44 if column == row else 0 for column in range(6)] for row in range(3, 6)]
)


def labelled_images(count: int, seed: int) -> list[ase.Atoms]:
    """Return crystals, with every third one a molecule, that have random labels, some of them missing."""
    rng = np.random.default_rng(seed)
    images = []
    for place, structure in enumerate(probe_structures(ELEMENTS, count, seed)):
        atoms = structure.to_ase()
        if place % 3 == 2:
            atoms.cell, atoms.pbc = None, False
        factor = rng.normal(size=(3, 3))
        epsilon = factor @ factor.T + 0.1 * np.eye(3)
        wanted = {
            "e": rng.normal() if place % 4 else None,
            "gap": rng.normal() if place % 5 else None,
            "mu": rng.normal(size=3),
            "eps": epsilon,
            "eps6": epsilon[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]],
            "c": (SILICON * rng.uniform(0.5, 2)).ravel(),
            "family": ["oxide", "metal", "glass", None][int(rng.integers(4))],
            "date": f"20{int(rng.integers(10, 25))}-0{int(rng.integers(1, 10))}-11",
            "number": str(int(rng.integers(0, 12))),
        }
        atoms.info.update({name: value for name, value in wanted.items() if value is not None})
        if place % 2:
            atoms.arrays["q"] = rng.normal(size=len(atoms))
        images.append(atoms)
    return images


def store_of(
    path: Path, images: Sequence[ase.Atoms], labels: Sequence[str] = LABELS, columns: Sequence[str] = COLUMNS
) -> GraphStore:
    write(path.with_suffix(".extxyz"), images)
    mapping = LabelMapping().with_inline(labels, columns)
    featurize(path.with_suffix(".extxyz"), path, cutoff=CUTOFF, labels=mapping, scheduler="threads")
    return GraphStore(path)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphStore, GraphStore]:
    folder = tmp_path_factory.mktemp("batches")
    second = [label for label in LABELS if not label.startswith("gap")]
    return (
        store_of(folder / "0.zarr", labelled_images(30, 0)),
        store_of(folder / "1.zarr", labelled_images(17, 1), second),
    )


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Force many runs and windows in a small store."""
    monkeypatch.setattr(reading, "RUN_STRUCTURES", 5)
    monkeypatch.setattr(reading, "WINDOW_RUNS", 3)
    monkeypatch.setattr(reading, "SORTED_BATCHES", 2)


def batches_of(stores: Sequence[GraphStore], size: int = 4, **settings: object) -> StructureBatches:
    chosen = settings.pop("chosen", [np.ones(len(store), dtype=bool) for store in stores])
    heads = head_labels(stores, settings.pop("heads", HEADS))  # type: ignore[arg-type]
    given = {"energy": True, "shuffle": (3, 1), **settings}
    return StructureBatches(stores, chosen, heads, size, CUTOFF, torch.float32, **given)  # type: ignore[arg-type]


def places(batch: Batch) -> list[tuple[int, int]]:
    return list(zip(batch.store.tolist(), batch.row.tolist(), strict=True))


def equal(first: Batch, second: Batch) -> bool:
    return (
        places(first) == places(second)
        and all(torch.equal(a, b) for a, b in zip(first.inputs, second.inputs, strict=True))
        and first.labels.keys() == second.labels.keys()
        and all(torch.allclose(first.labels[k], second.labels[k], 0, 0, equal_nan=True) for k in first.labels)
    )


def labels_of(config: HeadConfig, shape: tuple[int, ...]) -> HeadLabels:
    return HeadLabels(config, shape, "")


def test_every_structure_comes_once_in_an_epoch_and_in_another_order_in_the_next(
    stores: tuple[GraphStore, GraphStore],
) -> None:
    rng = np.random.default_rng(0)
    chosen = [rng.random(len(store)) < 0.7 for store in stores]
    orders = []
    for epoch in (0, 1, 1):
        batches = batches_of(stores, chosen=chosen, shuffle=(7, epoch))
        got = list(batches)
        assert len(got) == len(batches)
        assert batches.waited_s > 0
        orders.append([place for batch in got for place in places(batch)])
    expected = [(number, row) for number, some in enumerate(chosen) for row in np.flatnonzero(some).tolist()]
    assert orders[1] == orders[2] != orders[0]
    assert sorted(orders[0]) == sorted(orders[1]) == expected


@settings(deadline=None, max_examples=5)
@given(size=st.integers(1, 50), world=st.integers(1, 4), seed=st.integers(0, 99))
def test_processes_share_every_batch(stores: tuple[GraphStore, GraphStore], size: int, world: int, seed: int) -> None:
    heads = {"flat": HEADS["flat"]}  # all structures have it
    whole = list(batches_of(stores, size, heads=heads, shuffle=(seed, 0)))
    parts = [list(batches_of(stores, size, heads=heads, shuffle=(seed, 0), share=(r, world))) for r in range(world)]
    assert {len(part) for part in parts} == {len(whole)}
    for batch, *shares in zip(whole, *parts, strict=True):
        blank = [share for share in shares if all(torch.isnan(x).all() for x in share.labels.values())]
        assert len(blank) == max(0, world - len(batch.row))
        for share in blank:  # it takes part without contributing
            assert len(share.row) == 1
            assert places(share)[0] in places(batch)
        counting = [place for share in shares if not any(share is one for one in blank) for place in places(share)]
        assert sorted(counting) == sorted(places(batch))


def test_shares_are_of_about_the_same_size(stores: tuple[GraphStore, GraphStore]) -> None:
    for parts in zip(*(batches_of(stores, 16, share=(rank, 2)) for rank in range(2)), strict=True):
        atoms = [int(part.n_atoms.sum()) for part in parts]
        assert max(atoms) - min(atoms) <= 14  # the largest structure


@pytest.mark.parametrize("skip", [1, 5, 12, 40])
def test_what_is_skipped_is_as_if_it_had_been_used(stores: tuple[GraphStore, GraphStore], skip: int) -> None:
    whole, rest = list(batches_of(stores)), batches_of(stores, skip=skip)
    assert len(rest) == max(0, len(whole) - skip)
    got = list(rest)
    assert len(got) == len(rest)
    assert all(equal(a, b) for a, b in zip(whole[skip:], got, strict=True))


@pytest.mark.parametrize("ahead", [1, 3, 100])
def test_what_comes_does_not_depend_on_how_far_ahead_it_is_built(
    stores: tuple[GraphStore, GraphStore], ahead: int
) -> None:
    once = list(batches_of(stores, ahead=0))
    assert all(equal(a, b) for a, b in zip(once, batches_of(stores, ahead=ahead), strict=True))


@pytest.fixture
def reading_threads() -> Callable[[], list[threading.Thread]]:
    """Function that returns the living threads which read for batches and which this test has started."""
    earlier = set(threading.enumerate())  # an exception of an earlier test may still hold its batches
    return lambda: [
        thread
        for thread in threading.enumerate()
        if thread not in earlier and thread.name.startswith("equiscreen-reading")
    ]


def test_a_caller_that_stops_early_leaves_no_thread(
    stores: tuple[GraphStore, GraphStore], reading_threads: Callable[[], list[threading.Thread]]
) -> None:
    batches = iter(batches_of(stores, 2))
    next(batches)
    assert reading_threads()
    batches.close()  # type: ignore[attr-defined] - it is a generator
    assert not reading_threads()


@pytest.mark.parametrize("ahead", [0, 4])
def test_an_error_while_batches_are_built_is_raised_where_they_are_used(
    tmp_path: Path, ahead: int, reading_threads: Callable[[], list[threading.Thread]]
) -> None:
    store = store_of(tmp_path / "g.zarr", labelled_images(8, 5))
    batches = batches_of([store], 2, ahead=ahead)
    for shard in (tmp_path / "g.zarr" / "frac_coord" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"damaged" * (shard.stat().st_size // 7))
    with pytest.raises(StoreError, match="frac_coord"):
        list(batches)
    assert not reading_threads()


def test_a_batch_holds_what_stands_in_the_stores(stores: tuple[GraphStore, GraphStore]) -> None:
    for batch in batches_of(stores, 5):
        assert all(values.dtype == torch.float64 for values in batch.labels.values())
        first_atom = 0
        for place, (number, row) in enumerate(places(batch)):
            block = stores[number].block(row, row + 1)
            atoms = slice(first_atom, first_atom + len(block.atomic_number))
            first_atom = atoms.stop
            assert torch.equal(batch.inputs[0][atoms], torch.from_numpy(block.atomic_number.astype(np.int64)))
            assert batch.n_atoms[place] == len(block.atomic_number)
            for name, stored in (("energy", "energy"), ("gap", "gap")):
                expected = block.structure_labels.get(stored, np.array([np.nan]))
                assert np.array_equal(batch.labels[name][place].numpy().ravel(), expected, equal_nan=True)
            assert np.array_equal(batch.labels["charge"][atoms, 0], block.atom_labels["charge"], equal_nan=True)
            assert torch.isnan(batch.labels["forces"][atoms]).all()
            assert bool(torch.isnan(batch.labels["mu"][place]).all()) == bool(block.pbc.any())


@pytest.mark.parametrize("parts", [1, 2, 3, 100])
def test_a_batch_in_parts_is_the_same_batch(stores: tuple[GraphStore, GraphStore], parts: int) -> None:
    batch = next(iter(batches_of(stores, 8)))
    split = batch.split(parts)
    assert len(split) == min(parts, len(batch))
    assert [place for part in split for place in places(part)] == places(batch)
    first = np.cumsum([0, *(len(part.input("atomic_number")) for part in split)]).tolist()
    slots = batch.input("neighbors").shape[1]
    shifts = {"atomic_number": 0, "vectors": 0, "neighbors": 1, "reverse": slots, "volume": 0}
    for name, shift in shifts.items():
        pieces = [part.input(name) + shift * atom for part, atom in zip(split, first, strict=False)]
        assert torch.equal(torch.cat(pieces), batch.input(name)), name
    assert torch.equal(torch.cat([part.n_atoms for part in split]), batch.n_atoms)
    for part in split:
        assert torch.equal(torch.bincount(part.input("structure"), minlength=len(part)).double(), part.n_atoms)
        assert int(part.input("neighbors").min()) >= 0
        assert int(part.input("neighbors").max()) < len(part.input("atomic_number"))
        # Both slots of a pair point to the pair, and `pair_slot` is its first slot.
        pair, reverse = part.input("pair").reshape(-1), part.input("reverse").reshape(-1)
        assert torch.equal(pair[reverse], pair)
        assert torch.equal(pair[part.input("pair_slot")], torch.arange(len(part.input("pair_slot"))))
    for name, values in batch.labels.items():
        assert torch.allclose(torch.cat([part.labels[name] for part in split]), values, 0, 0, equal_nan=True)


def test_a_stress_is_only_of_what_is_periodic(tmp_path: Path) -> None:
    images = labelled_images(6, 2)
    for atoms in images:
        atoms.info["s"] = np.eye(3)
    store = store_of(tmp_path / "g.zarr", images, ["energy=e[eV]", "stress=s[eV/angstrom**3]"])
    rows = next(EpochReader([store]).blocks())
    batch = make_batch(rows, {}, CUTOFF, torch.float64, energy=True)
    there = torch.isfinite(batch.labels["stress"]).all(dim=(1, 2))
    assert there.tolist() == rows.block.pbc.all(axis=1).tolist()
    assert not make_batch(rows, {}, CUTOFF, torch.float64, energy=False).labels


matrices = st.tuples(
    st.integers(0, 2**32 - 1), st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=3), st.sampled_from([(3, 3), (6,)])
)


@given(matrices)
def test_the_logarithm_of_a_matrix_has_the_logarithms_of_its_eigenvalues(
    drawn: tuple[int, list[float], tuple[int, ...]],
) -> None:
    seed, eigenvalues, shape = drawn
    rotation = Rotation.random(random_state=seed).as_matrix()
    matrix, expected = ((rotation * np.array(x)) @ rotation.T for x in (eigenvalues, np.log(eigenvalues)))
    label = matrix if shape == (3, 3) else matrix[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
    head = labels_of(HeadConfig(tensor="symmetric", transform="log"), shape)
    found = head.basis.matrix.numpy() @ head.components(label[None])[0]
    # Rounding the matrix by 1e-16 of its largest eigenvalue shifts the smallest one.
    tolerance = 1e-13 * max(eigenvalues) / min(eigenvalues) + 1e-12
    assert np.allclose(found.reshape(3, 3), expected, atol=tolerance)


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (HeadConfig(tensor="vector"), (3,)),
        (HeadConfig(tensor="symmetric"), (6,)),
        (HeadConfig(tensor="piezoelectric"), (3, 6)),
        (HeadConfig(tensor="elastic"), (6, 6)),
        (HeadConfig(tensor="elastic"), (3, 3, 3, 3)),
        (HeadConfig(irreps="2x0e + 1x2e"), (7,)),
    ],
)
def test_labels_and_components_are_the_same_thing(config: HeadConfig, shape: tuple[int, ...]) -> None:
    head = labels_of(config, shape)
    components = np.random.default_rng(0).normal(size=(5, head.basis.dim))
    labels = components @ presentation(head.basis, shape).numpy().T
    assert np.allclose(head.components(labels.reshape(5, *shape)), components, atol=1e-12)


@given(st.integers(0, 2**32 - 1))
def test_components_of_a_turned_tensor_are_turned(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = Rotation.random(random_state=seed).as_matrix()
    tensor = rng.normal(size=(3, 3))
    tensor = tensor + tensor.T
    head = labels_of(HeadConfig(tensor="symmetric"), (3, 3))
    before, after = head.components(np.stack([tensor, rotation @ tensor @ rotation.T]))
    turn = torch.block_diag(
        *(ir.D_from_matrix(torch.from_numpy(rotation)) for mul, ir in head.basis.irreps for _ in range(mul))
    )
    assert np.allclose(
        turn.numpy() @ before, after, atol=3e-5
    )  # e3nn computes its matrices in the default dtype, float32


def test_an_elastic_tensor_in_voigt_notation() -> None:
    head = labels_of(HeadConfig(tensor="elastic"), (6, 6))
    components = head.components(SILICON[None])[0]
    assert np.allclose(presentation(head.basis, (6, 6)).numpy() @ components, SILICON.ravel(), atol=1e-10)
    size = dict.fromkeys((0, 2, 4), 0.0)
    place = 0
    for mul, ir in head.basis.irreps:
        size[ir.l] += float(np.sum(components[place : place + mul * ir.dim] ** 2))
        place += mul * ir.dim
    assert size[2] < 1e-18 * size[0]  # zero in every cubic crystal
    assert size[4] > 1e-3 * size[0]  # silicon is not isotropic
    assert head.invariant.tolist() == [
        i for i, c in enumerate(head.components(isotropic(100.0, 40.0)[None])[0]) if abs(c) > 1e-9
    ]


def isotropic(bulk: float, shear: float) -> NDArray[np.float64]:
    tensor = np.diag([4 / 3 * shear + bulk] * 3 + [shear] * 3)
    tensor[:3, :3] += (1 - np.eye(3)) * (bulk - 2 / 3 * shear)
    return tensor


def test_a_label_that_is_not_whole_is_absent() -> None:
    head = labels_of(HeadConfig(tensor="symmetric", transform="log"), (3, 3))
    values = np.stack([2 * np.eye(3), np.diag([1.0, -1.0, 1.0]), np.diag([1.0, np.nan, 1.0]), np.zeros((3, 3))])
    found = head.components(values)
    assert np.isfinite(found).all(axis=1).tolist() == [True, False, False, False]
    assert np.isnan(found[1:]).all()
    assert head.without_logarithm(values).tolist() == [False, True, False, True]
    scalar = labels_of(HeadConfig(transform="log"), ())
    assert np.array_equal(
        scalar.components(np.array([1.0, 0.0, -1.0, np.nan]))[:, 0], [0.0, np.nan, np.nan, np.nan], equal_nan=True
    )
    assert scalar.components(np.zeros(0)).shape == (0, 1)


def test_structures_are_usable_that_have_a_label(stores: tuple[GraphStore, GraphStore]) -> None:
    blocks = [store.block(0, len(store)) for store in stores]
    finite = [np.isfinite(block.structure_labels["energy"]) for block in blocks]
    heads = head_labels(stores, HEADS)
    for found, expected in zip(usable_structures(stores, energy=True, heads={}), finite, strict=True):
        assert np.array_equal(found, expected)
    gap = blocks[0].structure_labels["gap"]
    positive = usable_structures(stores, energy=False, heads={"log_gap": heads["log_gap"]})
    assert np.array_equal(positive[0], gap > 0)
    assert not positive[1].any()
    everywhere = np.ones(len(stores[0]), dtype=bool)
    assert heads["log_gap"].count_without_logarithm(stores[0], everywhere) == np.count_nonzero(gap <= 0)
    assert heads["gap"].count_without_logarithm(stores[0], everywhere) == 0
    assert np.array_equal(heads["mu"].labelled(stores[0]), ~blocks[0].pbc.any(axis=1))
    charged = np.zeros(len(blocks[0]), dtype=bool)
    charged[blocks[0].atom_structure[np.isfinite(blocks[0].atom_labels["charge"])]] = True
    assert np.array_equal(heads["charge"].labelled(stores[0]), charged)
    both = usable_structures(stores, energy=True, heads={"charge": heads["charge"]})
    assert np.array_equal(both[0], charged | finite[0])


def test_nothing_to_train_on_is_said(tmp_path: Path) -> None:
    bare = [structure.to_ase() for structure in probe_structures(ELEMENTS, 3, seed=1)]
    for atoms in bare:
        atoms.info["gap"] = -1.0
    store = store_of(tmp_path / "g.zarr", bare, ["gap=gap[eV]"], ())
    with pytest.raises(ConfigError, match="no structure has an energy; map one with `featurize --label energy="):
        usable_structures([store], energy=True, heads={})
    heads = head_labels([store], {"gap": HeadConfig(transform="log")})
    with pytest.raises(ConfigError, match=r"no structure has an energy or a usable label for heads\.gap"):
        usable_structures([store], energy=True, heads=heads)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("gab", HeadConfig(), r"heads\.gab: no store has a label 'gab' \(available: charge, dielectric"),
        ("charge", HeadConfig(), "the label 'charge' has one value per atom; use `per: atom`"),
        ("gap", HeadConfig(tensor="vector"), r"heads\.gap: label 'gap': a tensor of rank 1 does not have"),
        ("mu", HeadConfig(tensor="vector", shape=(6,)), r"the stored label 'mu' has shape \[3\], but .* shape \[6\]"),
    ],
)
def test_a_head_that_does_not_fit_its_label_is_refused(
    stores: tuple[GraphStore, GraphStore], name: str, config: HeadConfig, message: str
) -> None:
    with pytest.raises(EquiscreenError, match=message):
        head_labels(stores, {name: config})


def test_elements_of_structures(stores: tuple[GraphStore, GraphStore]) -> None:
    store = stores[0]
    block = store.block(0, len(store))
    counts = element_counts(block.atom_structure, block.atomic_number, len(block))
    assert np.array_equal(counts.sum(axis=1), block.n_atoms)
    assert np.array_equal(of_elements(store, (13, 29)), counts[:, 79] == 0)
    assert of_elements(store, ELEMENTS).all()
