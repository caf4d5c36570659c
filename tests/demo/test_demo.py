"""The demo: the whole job, small, and its parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase.calculators.emt import EMT
from equiscreen.demo import run_demo
from equiscreen.demo.alloys import METALS, PROTOTYPES, AlloyTask, make_alloy, nearest_contact, prototypes, write_alloys
from equiscreen.export import open_scores
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.errors import OutputExistsError


def test_alloys_are_metals_at_sensible_distances() -> None:
    library = prototypes()
    assert set(library) == PROTOTYPES
    for number, name in enumerate(sorted(library)):
        rng = np.random.default_rng(number)
        atoms = make_alloy(library[name], rng)
        assert set(atoms.get_chemical_symbols()) <= set(METALS)
        assert len(set(atoms.numbers)) == len(set(library[name].numbers))
        assert 0.6 < nearest_contact(atoms) < 1.2
        atoms.calc = EMT()
        assert np.isfinite(atoms.get_potential_energy())


def test_alloys_depend_on_their_number_alone(tmp_path: Path) -> None:
    write_alloys(AlloyTask(tmp_path / "all.extxyz", 0, 4, 1, teach=True))
    write_alloys(AlloyTask(tmp_path / "tail.extxyz", 2, 2, 1, teach=True))
    assert (tmp_path / "all.extxyz").read_text().endswith((tmp_path / "tail.extxyz").read_text())


def test_the_demo_runs_and_ranks(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    report = run_demo(out, n_candidates=60, n_training=60, epochs=2, scheduler="threads")
    assert report.candidates.stored == 67
    assert report.ranking.spearman > 0.3
    text = str(report)
    assert "EMT" in text
    assert "not DFT" in text
    assert len(report.ranking.best) == 10
    assert {"training.zarr", "candidates.zarr", "run", "model.onnx", "scores.zarr", "ranking.png"} <= {
        p.name for p in out.iterdir()
    }
    scores = open_scores(out / "scores.zarr")
    # The truth stands in the store, where no model looks.
    truth = GraphStore(out / "candidates.zarr").block(0, 67).structure_labels["emt_energy"]
    assert np.corrcoef(scores["energy"].values, truth)[0, 1] > 0.5
    with pytest.raises(OutputExistsError):
        run_demo(out)
