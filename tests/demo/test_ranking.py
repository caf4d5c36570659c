"""The ranking of act two holds results alone: rows whose status is ok."""

from __future__ import annotations

from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
import xarray as xr
from equiscreen.demo.alloys import METALS
from equiscreen.demo.ranking import compare
from equiscreen.pipeline import LabelMapping, featurize
from equiscreen.pipeline.errors import StoreError
from hypothesis import given, settings
from hypothesis import strategies as st

SIZE = 12


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, xr.Dataset]:
    """The pure metals and alloys of the first two, with energies of EMT and scores that are close to them."""
    folder, rng = tmp_path_factory.mktemp("ranking"), np.random.default_rng(0)
    names = [f"reference-{metal}" for metal in METALS] + [f"alloy-{number}" for number in range(SIZE)]
    atoms = [ase.Atoms(metal, cell=[2.8] * 3, pbc=True) for metal in METALS]
    pair = f"{METALS[0]}{METALS[1]}"
    atoms += [
        ase.Atoms(pair, [[0, 0, 0], [1.7, 1.7, 1.7]], cell=[3.4 + number / 50] * 3, pbc=True) for number in range(SIZE)
    ]
    emt = rng.normal(size=len(atoms))
    for one, name, energy in zip(atoms, names, emt.tolist(), strict=True):
        one.info = {"structure_id": name, "emt_energy": energy * len(one), "prototype": "B2"}
    ase.io.write(folder / "c.extxyz", atoms)
    mapping = LabelMapping().with_inline(["energy=emt_energy[eV]"], ["prototype"])
    featurize(folder / "c.extxyz", folder / "c.zarr", cutoff=4.0, labels=mapping, scheduler="threads")
    columns = {
        "structure_id": names,
        "formula": [one.get_chemical_formula() for one in atoms],
        "prototype": ["B2"] * len(atoms),
        "energy_per_atom": emt + rng.normal(0, 0.01, len(atoms)),
        "status": np.zeros(len(atoms), np.uint8),
    }
    return folder / "c.zarr", xr.Dataset({name: ("structure", values) for name, values in columns.items()})


@settings(max_examples=10, deadline=None)
@given(lost=st.sets(st.integers(0, SIZE - 1), max_size=SIZE - 1), status=st.integers(1, 4), wrong=st.floats(-1e9, 1e9))
def test_what_is_not_ok_is_not_ranked(
    scored: tuple[Path, xr.Dataset], lost: set[int], status: int, wrong: float
) -> None:
    store, scores = scored
    rows = [len(METALS) + number for number in lost]
    energies, statuses = scores["energy_per_atom"].values.copy(), scores["status"].values.copy()
    energies[rows], statuses[rows] = wrong, status
    found = compare(store, scores.assign(energy_per_atom=("structure", energies), status=("structure", statuses)))
    assert found.left_out == len(lost)
    assert len(found.predicted) == len(found.emt) == SIZE - len(lost)
    assert not {f"alloy-{number}" for number in lost} & {one.structure_id for one in found.best}
    assert found.mae < 0.1


def test_without_a_metal_there_is_no_alloy_of_it(scored: tuple[Path, xr.Dataset]) -> None:
    store, scores = scored
    for metal, works in ((METALS[0], False), (METALS[-1], True)):
        lost = scores["structure_id"].values == f"reference-{metal}"
        changed = scores.assign(status=scores["status"].where(~lost, 4))
        if works:
            assert compare(store, changed).left_out == 0
        else:
            with pytest.raises(StoreError, match="no candidate can be ranked"):
                compare(store, changed)
