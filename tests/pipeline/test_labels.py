"""Labels: mapped by path, unit, order and sign, and by other fields of the record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from ase import units
from equiscreen.pipeline import LabelMapping, LabelRule
from equiscreen.pipeline.errors import LabelError


@pytest.mark.parametrize(
    ("name", "unit", "factor"),
    [
        ("energy", "eV", 1.0),
        ("energy", "meV", 1e-3),
        ("energy", "hartree", units.Hartree),
        ("energy", "eV/atom", 4.0),
        ("stress", "GPa", units.GPa),
        ("stress", "kbar", units.GPa / 10),
        ("forces", "hartree/bohr", units.Hartree / units.Bohr),
    ],
)
def test_units_are_converted(name: str, unit: str, factor: float) -> None:
    shape = {"energy": (), "stress": (3, 3), "forces": (4, 3)}[name]
    value = np.random.default_rng(0).normal(size=shape)
    found = LabelMapping(labels={name: (LabelRule(path="x", unit=unit),)}).extract({"x": value.tolist()}, 4)[name]
    assert found.shape == shape
    assert np.allclose(found, value * factor, rtol=1e-6)


def test_stress_order_and_sign() -> None:
    rule = LabelRule(path="s", unit="eV/angstrom^3", sign=-1, order=("xx", "yy", "zz", "xy", "xz", "yz"))
    found = LabelMapping(labels={"stress": (rule,)}).extract({"s": [1, 2, 3, 4, 5, 6]}, 1)["stress"]
    assert found.tolist() == [[-1, -4, -5], [-4, -2, -6], [-5, -6, -3]]


def test_inline_labels_and_columns() -> None:
    mapping = LabelMapping().with_inline(["energy=outputs.E[hartree]", "gap=band gap"], ["group"])
    assert mapping.labels["energy"][0] == LabelRule(path="outputs.E", unit="hartree")
    found = mapping.extract({"outputs": {"E": 1}, "band gap": "0.5"}, 1)
    assert found["energy"] == pytest.approx(units.Hartree, rel=1e-6)
    assert found["gap"] == 0.5
    assert mapping.columns == ("group",)


def test_absent_labels_are_left_out() -> None:
    mapping = LabelMapping().with_inline(["gap=band_gap[eV]"])
    assert mapping.extract({}, 1) == {}
    assert mapping.extract({"band_gap": ""}, 1) == {}
    assert mapping.extract({"band_gap": None}, 1) == {}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        (LabelMapping(labels={"energy": (LabelRule(path="x", unit="angstrom"),)}), "does not convert to eV"),
        (LabelMapping(labels={"forces": (LabelRule(path="x", unit="furlong"),)}), "does not convert"),
        (LabelMapping(labels={"gap": (LabelRule(path="x", unit="eV"), LabelRule(path="y", unit="GPa"))}), "to eV"),
    ],
)
def test_units_that_do_not_fit(mapping: LabelMapping, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        mapping.check_units()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"x": "high"}, "holds no numbers"), ({"x": [1, 2]}, r"has shape \(2,\)")],
)
def test_values_that_do_not_fit(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        LabelMapping().with_inline(["energy=x"]).extract(fields, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {energy: [{pth: x}]}", "pth"),
        ("labels: {stress: [{path: x, order: [xx, xx, zz, xy, xz, yz]}]}", "each of"),
        ("labels: [", "mapping.yaml"),
    ],
)
def test_a_mapping_with_a_mistake_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "mapping.yaml").write_text(text)
    with pytest.raises(LabelError, match=message):
        LabelMapping.load(tmp_path / "mapping.yaml")
    with pytest.raises(LabelError, match="shipped mapping"):
        LabelMapping.load("nothing")


@pytest.mark.parametrize("element", ["Si", "Ge", "Mo"])
def test_the_shipped_mlearn_order_follows_from_the_strain_of_the_elastic_group(data: Path, element: str) -> None:
    """Shear of a strained cubic crystal gives stress of the same component and sign: the order is not a guess."""
    with gzip.open(data / f"mlearn/{element}.json.gz", "rt") as file:
        records = [r for r in json.load(file) if r["group"] == "Elastic" and len(r["structure"]["sites"]) > 2]
    mapping = LabelMapping.load("mlearn")
    stresses = [mapping.extract(r, len(r["structure"]["sites"]))["stress"] for r in records]
    cells = np.array([r["structure"]["lattice"]["matrix"] for r in records])
    metrics = cells @ cells.transpose(0, 2, 1)
    strain = (metrics / np.median(metrics[:, 0, 0]) - np.eye(3)) / 2
    sheared = np.abs(strain[:, [0, 0, 1], [1, 2, 2]]).max(axis=1) > 1e-3
    assert sheared.sum() >= 10
    for row, column in ((0, 1), (0, 2), (1, 2)):
        applied = strain[sheared, row, column]
        answered = np.array(stresses)[sheared, row, column]
        assert np.corrcoef(applied, answered)[0, 1] > 0.9, (element, row, column)
