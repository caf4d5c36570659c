"""A store that is replaced while it is read: an error that names it, and nothing is published."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import ase.io
import pytest
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import StoreError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import compare, hull, join_energies, report, screen, select
from equiscreen.screening.dataset.reader import ScoresReader

from ..conftest import CUTOFF, ELEMENTS

VERBS: dict[str, Callable[[Path], object]] = {
    "select": lambda folder: select(folder / "s.zarr", folder / "out", by="energy"),
    "select --known": lambda folder: select(
        folder / "s.zarr", folder / "out", by="energy", known=folder / "known.zarr"
    ),
    "report": lambda folder: report(folder / "s.zarr", folder / "out", by="energy_per_atom"),
    "hull": lambda folder: hull(folder / "s.zarr", (), folder / "out"),
    "compare": lambda folder: compare(folder / "s.zarr", folder / "t.zarr"),
    "join_energies": lambda folder: join_energies(folder / "s.zarr", folder / "dft.csv"),
}
# The stores that each verb reads.
READ = [
    ("select", ("s", "g")),
    ("select --known", ("known",)),
    ("report", ("s", "g")),
    ("hull", ("s",)),
    ("compare", ("s", "t")),
    ("join_energies", ("s",)),
]
# One test each of a dataset, a graph store and two inputs; the others are run by `make slow`.
FAST = {("select", "g"), ("report", "s"), ("compare", "t")}
CASES = [
    pytest.param(verb, f"{name}.zarr", marks=() if (verb, name) in FAST else pytest.mark.slow)
    for verb, names in READ
    for name in names
]


@pytest.fixture(scope="module")
def stores(exported: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Graphs and scores, twice: `old` and `new` hold the same structures in larger cells, under the same names."""
    folder = tmp_path_factory.mktemp("stores")
    for name, scale in (("old", 1.0), ("new", 1.01)):
        made = folder / name
        made.mkdir()
        images = [structure.to_ase() for structure in probe_structures(ELEMENTS, 3, seed=1)]
        for atoms in images:
            atoms.set_cell(scale * atoms.cell, scale_atoms=True)
        ase.io.write(made / "x.extxyz", images)
        featurize(made / "x.extxyz", made / "g.zarr", cutoff=CUTOFF, scheduler="threads")
        screen(made / "g.zarr", exported("float32"), made / "s.zarr", scheduler="threads", allow_extrapolation=True)
        shutil.copytree(made / "g.zarr", made / "known.zarr")
        shutil.copytree(made / "s.zarr", made / "t.zarr")
        (made / "dft.csv").write_text("structure_id,energy\nx:0,1.0\n")
    return folder


@pytest.mark.parametrize(("verb", "replaced"), CASES)
def test_a_store_that_is_replaced_meanwhile(
    verb: str, replaced: str, stores: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(stores / "old", tmp_path / "work")
    opened = GraphStore if replaced[0] in "gk" else ScoresReader
    column = opened.column

    def replace_then_read(self: GraphStore, *words: object) -> object:
        if Path(self.path).name == replaced and (folder / replaced / "mark").exists():
            (folder / replaced / "mark").unlink()
            found = column(self, *words)  # type: ignore[arg-type]
            shutil.rmtree(folder / replaced)
            shutil.copytree(stores / "new" / replaced, folder / replaced)
            return found
        return column(self, *words)  # type: ignore[arg-type]

    (folder / replaced / "mark").touch()
    monkeypatch.setattr(opened, "column", replace_then_read)
    changed = "has changed during this run|has changed while it was being read|is not the graph store"
    with pytest.raises(StoreError, match=f"{replaced} ({changed})"):
        VERBS[verb](folder)
    assert not (folder / replaced / "mark").exists()
    assert not (folder / "out").exists()
