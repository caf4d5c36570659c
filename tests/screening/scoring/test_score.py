"""Rows of scores: limits become statuses, a lack of memory loses no other row, and other structures change no bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ase
import ase.build
import ase.io
import numpy as np
import pytest
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure, featurize
from equiscreen.pipeline.errors import ConfigError, StoreError
from equiscreen.pipeline.graphs.potential import Evaluation, OutputSpec
from equiscreen.pipeline.memory import is_out_of_memory
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores, screen
from equiscreen.screening.dataset.scores import EXTRAPOLATING, OK, TOO_LARGE, UNKNOWN_ELEMENT
from equiscreen.screening.label_comparison import calibration, labels_and_predictions
from equiscreen.screening.scoring.score import ScoreLimits, score_block
from hypothesis import given, settings
from hypothesis import strategies as st

from ...conftest import CUTOFF, ELEMENTS, write_extxyz

SCORES = ("energy", "energy_per_atom", "max_force", "stress", "status")


class Crowded:
    """A potential that runs out of memory above a number of atoms per batch.

    Args:
        potential: Potential that evaluates smaller batches.
        atoms: Largest number of atoms that fit in memory.
    """

    def __init__(self, potential: OnnxPotential, atoms: int) -> None:
        self.potential, self.atoms = potential, atoms
        self.cutoff, self.elements, self.slots = potential.cutoff, potential.elements, potential.slots
        self.outputs: tuple[OutputSpec, ...] = potential.outputs

    def evaluate(self, block: GraphBlock) -> Evaluation:
        if len(block.atomic_number) > self.atoms:
            raise RuntimeError("Failed to allocate memory for requested buffer of size 8325120")
        return self.potential.evaluate(block)


@pytest.fixture(scope="module")
def potential(exported: Callable[[str], Path]) -> OnnxPotential:
    return OnnxPotential.load(exported("float32"), threads=1)


@pytest.fixture(scope="module")
def crystals() -> list[Structure]:
    return probe_structures(ELEMENTS, 40, seed=200)


@settings(deadline=None, max_examples=6)
@given(rows=st.lists(st.integers(0, 47), min_size=1, max_size=48), slots=st.integers(1, 20_000))
def test_scores_have_the_same_bits_in_any_company(
    exported: Callable[[str], Path], crystals: list[Structure], rows: list[int], slots: int
) -> None:
    """In any order, alone or with others, in tables of any size; also structures of one atom and of few neighbours."""
    few = [Structure.from_fractional([z], np.eye(3) * a, [[0, 0, 0]]) for z, a in ((13, 3.0), (29, 3.1), (79, 9.0))]
    few += [Structure.from_cartesian([13, 29], [[0, 0, 0], [0, 0, d]]) for d in (2.4, 2.6, 2.8)]
    few += [Structure.from_ase(ase.build.bulk(metal, cubic=True).repeat(3)) for metal in ("Al", "Cu")]
    block = GraphBlock.from_structures([*crystals, *few], CUTOFF)
    for dtype in ("float32", "float64"):
        whole = score_block(block, OnnxPotential.load(exported(dtype), threads=1))
        part = score_block(block.take(rows), OnnxPotential.load(exported(dtype), threads=1, slots=slots))
        for name, values in whole.items():
            assert np.array_equal(part[name], values[rows], equal_nan=values.dtype.kind == "f"), name


@settings(deadline=None, max_examples=10)
@given(atoms=st.integers(0, 60))
def test_where_memory_is_short_only_what_does_not_fit_by_itself_is_lost(
    potential: OnnxPotential, crystals: list[Structure], atoms: int
) -> None:
    block = GraphBlock.from_structures(crystals, CUTOFF)
    whole, found = score_block(block, potential), score_block(block, Crowded(potential, atoms))
    fits = block.n_atoms <= atoms
    assert found["status"].tolist() == np.where(fits, OK, TOO_LARGE).tolist()
    for name in SCORES[:-1]:
        assert np.array_equal(found[name][fits], whole[name][fits]), name
        assert np.isnan(found[name][~fits]).all()


def test_other_errors_are_not_taken_for_a_lack_of_memory(potential: OnnxPotential, crystals: list[Structure]) -> None:
    crowded = Crowded(potential, 1000)
    crowded.evaluate = lambda _: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    with pytest.raises(ZeroDivisionError):
        score_block(GraphBlock.from_structures(crystals, CUTOFF), crowded)
    assert is_out_of_memory(MemoryError())


SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening.scoring.score import score_block
potential = OnnxPotential.load(sys.argv[1], threads=1, slots=1 << 20)
block = GraphBlock.from_structures(probe_structures((13, 29, 79), 900, seed=3), potential.cutoff)
score_block(block.take([0, 1]), potential)
now = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
_, most = resource.getrlimit(resource.RLIMIT_AS)
resource.setrlimit(resource.RLIMIT_AS, (now + (int(sys.argv[2]) << 20), most))
tried = []
evaluate = potential.evaluate
potential.evaluate = lambda block: tried.append(len(block)) or evaluate(block)
found = score_block(block, potential)
print(len(tried), (found["status"] == 0).sum())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory limits need Linux")
def test_onnx_runtime_without_memory_is_understood(exported: Callable[[str], Path]) -> None:
    words = [sys.executable, "-c", SHORT_OF_MEMORY, str(exported("float32")), "150"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    tried, ok = map(int, done.stdout.split())
    assert tried > 2
    assert ok == 900


def test_what_is_too_large_and_what_is_too_close_have_a_status(
    potential: OnnxPotential, crystals: list[Structure]
) -> None:
    close = replace(crystals[1], cell=crystals[1].cell * 0.7)
    unknown = replace(crystals[2], atomic_number=np.full(len(crystals[2]), 92, dtype=np.uint8))
    block = GraphBlock.from_structures([crystals[0], close, unknown, crystals[3]], CUTOFF)
    lengths = np.linalg.norm(block.displacements(), axis=1)
    shortest = np.minimum.reduceat(lengths, block.edge_start)
    between = float(np.sort(shortest[[0, 3]])[0] + shortest[1]) / 2
    found = score_block(block, potential, ScoreLimits(min_distance=between))
    assert found["status"].tolist() == [OK, EXTRAPOLATING, UNKNOWN_ELEMENT, OK]
    assert np.isfinite(found["energy"]).tolist() == [True, True, False, True]
    plain = score_block(block, potential)
    assert plain["status"].tolist() == [OK, OK, UNKNOWN_ELEMENT, OK]
    fewest = int(np.delete(block.n_edges, 2).min())
    found = score_block(block, potential, ScoreLimits(max_edges=fewest))
    expected = np.where(block.n_edges > fewest, TOO_LARGE, OK)
    expected[2] = UNKNOWN_ELEMENT  # an unknown element takes precedence over the limits
    assert found["status"].tolist() == expected.tolist()
    assert np.isnan(found["energy"]).tolist() == (expected != OK).tolist()


def test_structures_without_edges_are_not_close(potential: OnnxPotential, crystals: list[Structure]) -> None:
    alone = Structure.from_cartesian([29], [[0.0, 0, 0]])
    found = score_block(
        GraphBlock.from_structures([alone, crystals[0], alone], CUTOFF), potential, ScoreLimits(min_distance=100.0)
    )
    assert found["status"].tolist() == [OK, EXTRAPOLATING, OK]
    assert (
        score_block(GraphBlock.from_structures([alone], CUTOFF), potential, ScoreLimits(min_distance=1))["status"] == 0
    )


@pytest.fixture(scope="module")
def labelled(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of twelve crystals with energies, except that one has no energy and one has an unknown element."""
    folder = tmp_path_factory.mktemp("labelled")
    images = ase.io.read(write_extxyz(folder / "c.extxyz", 12, seed=201), index=":")
    del images[3].calc.results["energy"]
    images[5].numbers[0] = 92
    ase.io.write(folder / "c.extxyz", images)
    featurize(folder / "c.extxyz", folder / "c.zarr", cutoff=CUTOFF, scheduler="threads")
    screen(folder / "c.zarr", exported("float32"), folder / "s.zarr", scheduler="threads")
    return folder


def test_parity_pairs_each_label_with_its_prediction(labelled: Path) -> None:
    scores = open_scores(labelled / "s.zarr")
    rows = [row for row in range(12) if row not in (3, 5)]
    images = ase.io.read(labelled / "c.extxyz", index=":")
    label, prediction = labels_and_predictions(scores)
    expected = [images[row].get_potential_energy() / len(images[row]) for row in rows]
    assert np.allclose(label, expected, rtol=0, atol=1e-12)
    assert np.array_equal(prediction, scores["energy_per_atom"].values[rows])
    with pytest.raises(ConfigError, match="no energy_std"):
        calibration(scores)
    with pytest.raises(ConfigError, match="'gap' with one number"):
        labels_and_predictions(scores, "gap")
    assert [len(values) for values in labels_and_predictions(scores, "max_force")] == [0, 0]
    with pytest.raises(ConfigError, match="subset of a dataset"):
        labels_and_predictions(scores.isel(structure=slice(2, None)))


def test_parity_with_another_store_is_refused(labelled: Path, tmp_path: Path) -> None:
    write_extxyz(tmp_path / "d.extxyz", 12, seed=202)
    featurize(tmp_path / "d.extxyz", tmp_path / "d.zarr", cutoff=CUTOFF, scheduler="threads")
    with pytest.raises(StoreError, match=r"d\.zarr is not the store that"):
        labels_and_predictions(open_scores(labelled / "s.zarr"), store=tmp_path / "d.zarr")
