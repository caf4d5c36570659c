"""Label mappings: path, unit, order and sign, and conditions on other fields of the record."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from ase import units
from equiscreen.pipeline import LabelMapping, LabelRule, Quantity, Structure
from equiscreen.pipeline.errors import LabelError
from equiscreen.pipeline.store.schema import graph_schema


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
        (
            LabelMapping(labels={"energy": (LabelRule(path="x", unit="angstrom"),)}),
            "cannot convert unit 'angstrom' to eV",
        ),
        (LabelMapping(labels={"forces": (LabelRule(path="x", unit="furlong"),)}), "cannot convert"),
        (LabelMapping(labels={"gap": (LabelRule(path="x", unit="eV"), LabelRule(path="y", unit="GPa"))}), "to eV"),
    ],
)
def test_units_that_do_not_fit(mapping: LabelMapping, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        mapping.check_units()


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"x": "high"}, "is not numeric"), ({"x": [1, 2]}, r"has shape \(2,\)")],
)
def test_values_that_do_not_fit(fields: dict[str, object], message: str) -> None:
    with pytest.raises(LabelError, match=message):
        LabelMapping().with_inline(["energy=x"]).extract(fields, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("labels: {energy: [{path: x, unitt: eV}]}", r"labels\.energy\.0: unknown key 'unitt'; did you mean 'unit'"),
        ("quantities: {gap: {shap: [3]}}", r"quantities\.gap: unknown key 'shap'; did you mean 'shape'"),
        ("label: {}", r"mapping\.yaml: unknown key 'label'; did you mean 'labels'"),
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
    """Shear of a strained cubic crystal gives a stress of the same component and sign, which verifies the order."""
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


def test_vectors_and_tensors_of_structures_and_atoms() -> None:
    inline = [
        "dipole:3=mu[e*angstrom]",
        "dielectric:3x3=eps",
        "charge:atom=q[e]",
        "born:atomx3x3=z[e]",
        "bands:7=b[eV]",
    ]
    mapping = LabelMapping().with_inline(inline)
    rng = np.random.default_rng(1)
    shapes = {"mu": (3,), "eps": (3, 3), "q": (5,), "z": (5, 3, 3), "b": (7,)}
    fields = {name: rng.normal(size=shape).tolist() for name, shape in shapes.items()}
    found = mapping.extract(fields, 5)
    for name, key in zip(("dipole", "dielectric", "charge", "born", "bands"), shapes, strict=True):
        assert np.array_equal(found[name], fields[key]), name
    as_text = mapping.extract({name: json.dumps(value) for name, value in fields.items()}, 5)
    assert all(np.array_equal(as_text[name], found[name]) for name in found)
    dims = {spec.name: spec.dims for spec in graph_schema(mapping)}
    assert dims["dielectric"] == ("structure", "cartesian", "cartesian_2")
    assert dims["born"] == ("atom", "cartesian", "cartesian_2")
    assert dims["bands"] == ("structure", "bands_component")


def test_an_elastic_tensor_is_brought_to_ases_order() -> None:
    """VASP writes xx yy zz xy yz zx; C44 is the stiffness of yz."""
    rule = LabelRule(path="c", unit="kbar", order=("xx", "yy", "zz", "xy", "yz", "xz"))
    quantity = Quantity(shape=(6, 6), unit="GPa")
    mapping = LabelMapping(labels={"elastic": (rule,)}, quantities={"elastic": quantity})
    vasp = np.arange(36.0).reshape(6, 6)
    found = mapping.extract({"c": vasp.tolist()}, 1)["elastic"]
    place = {"xx": 0, "yy": 1, "zz": 2, "xy": 3, "yz": 4, "xz": 5}
    order = [place[name] for name in ("xx", "yy", "zz", "yz", "xz", "xy")]
    assert np.allclose(found, vasp[np.ix_(order, order)] / 10)
    assert {spec.name: spec.dims for spec in graph_schema(mapping)}["elastic"] == ("structure", "voigt", "voigt_2")


def test_units_of_other_labels_are_converted_to_the_one_of_the_store() -> None:
    rules = (LabelRule(path="a", unit="eV"), LabelRule(path="b", unit="meV"))
    mapping = LabelMapping(labels={"gap": rules})
    assert mapping.extract({"b": 1500}, 1)["gap"] == pytest.approx(1.5)
    assert mapping.quantity("gap").unit == "eV"


def test_a_mapping_comes_back_from_yaml(tmp_path: Path) -> None:
    mapping = LabelMapping.load("mlearn").with_inline(["elastic:6x6=c[GPa]", "charge:atom=q[e]"], ["name"])
    mapping.save(tmp_path / "m.yaml")
    assert LabelMapping.load(tmp_path / "m.yaml") == mapping


@pytest.mark.parametrize("text", ["energy:3=x", "gap:0=x", "gap:axb=x", "a:atomx=y"])
def test_shapes_that_make_no_sense(text: str) -> None:
    with pytest.raises(LabelError):
        LabelMapping().with_inline([text])


def test_a_tensor_in_another_frame_than_its_crystal_is_noticed() -> None:
    """Rutile has a fourfold axis along c, so eps is diagonal with eps_xx = eps_yy."""
    cell, u = np.diag([4.6, 4.6, 2.96]), 0.305
    frac = [[0, 0, 0], [0.5] * 3, [u, u, 0], [-u, -u, 0], [0.5 + u, 0.5 - u, 0.5], [0.5 - u, 0.5 + u, 0.5]]
    rutile = Structure.from_fractional([22, 22, 8, 8, 8, 8], cell, frac)
    mapping = LabelMapping().with_inline(["eps:3x3=e", "mu:3=m", "gap=g"])
    allowed, turned = np.diag([6.0, 6.0, 8.0]), np.diag([8.0, 6.0, 6.0])
    assert not mapping.breaks_symmetry(rutile, {"eps": allowed})
    assert mapping.breaks_symmetry(rutile, {"eps": turned})
    assert mapping.breaks_symmetry(rutile, {"mu": np.array([0.0, 0.0, 1.0])})  # it has a centre of inversion
    assert not mapping.breaks_symmetry(rutile, {"gap": np.array(1.0)})
    rattled = Structure.from_fractional(rutile.atomic_number, cell, rutile.frac_coord + 0.02 * np.eye(6, 3))
    assert not mapping.breaks_symmetry(rattled, {"mu": np.array([0.0, 0.0, 1.0])})
