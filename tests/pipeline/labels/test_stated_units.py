"""Units that a file states are honoured or rejected; a stress that is not symmetric is symmetrised and reported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import units
from equiscreen.pipeline import GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import LabelError
from equiscreen.pipeline.readers.extxyz import atoms_of_frame
from equiscreen.pipeline.readers.records import fields_of_atoms

MAPPING = LabelMapping().with_ase_defaults()


def frame(comment: str) -> str:
    return (
        f'2\nLattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3:forces:R:3 energy=-2.0 {comment}\n'
        "Na 0 0 0 0.1 0 0\nCl 2 2 2 -0.1 0 0\n"
    )


@pytest.mark.parametrize(
    ("stated", "label", "expected"),
    [
        ("energy_unit=eV", "energy", -2.0),
        ("energy_unit=Hartree", "energy", -2.0 * units.Hartree),
        ("energy_units=Ha", "energy", -2.0 * units.Hartree),
        ("unit_energy=ry", "energy", -2.0 * units.Ry),
        ("ENERGY_UNIT=kcal/mol", "energy", -2.0 * units.kcal / units.mol),
        ('energy_unit="eV per atom"', "energy", -4.0),
        ("REF_energy_unit=meV", "energy", -2e-3),
        ("force_unit=Hartree/Bohr", "forces", 0.1 * units.Hartree / units.Bohr),
        ("forces_units=eV/A", "forces", 0.1),
        ('stress="1 0 0 0 1 0 0 0 1" stress_unit=GPa', "stress", units.GPa),
        ('virial="1 0 0 0 1 0 0 0 1" virial_unit=Ha', "stress", -units.Hartree / 64),
        ("energy_unit=metres", "energy", None),
        ("energy_unit=arbitrary", "energy", None),
    ],
)
def test_a_stated_unit_is_honoured_or_refused(stated: str, label: str, expected: float | None) -> None:
    fields = fields_of_atoms(atoms_of_frame(frame(stated)))
    if expected is None:
        with pytest.raises(LabelError, match="cannot convert unit"):
            MAPPING.extract(fields, 2, 64.0)
    else:
        assert MAPPING.extract(fields, 2, 64.0)[label].flat[0] == pytest.approx(expected, rel=1e-6)


def test_a_unit_of_the_user_must_be_that_of_the_record() -> None:
    fields = fields_of_atoms(atoms_of_frame(frame("energy_unit=Hartree")))
    for inline in ("energy=energy[hartree]", "energy=energy[Eh]"):
        found = LabelMapping().with_inline([inline]).extract(fields, 2)
        assert found["energy"] == pytest.approx(-2.0 * units.Hartree)
    with pytest.raises(LabelError, match="energy is in hartree in the record, but in eV in the mapping"):
        LabelMapping().with_inline(["energy=energy"]).extract(fields, 2)


@pytest.mark.parametrize(
    "stated", ["units=real", "unit=Hartree", "length_unit=bohr", "positions_units=nm", "units_cell=pm"]
)
def test_units_that_would_change_the_crystal_are_refused(stated: str) -> None:
    with pytest.raises(Exception, match="convert the values to eV and angstrom"):
        atoms_of_frame(frame(stated))


@pytest.mark.parametrize("stated", ["units=metal", 'units="eV, Angstrom"', "length_unit=Å", "time_unit=fs"])
def test_units_that_are_ours_are_read(stated: str) -> None:
    assert len(atoms_of_frame(frame(stated))) == 2


@pytest.mark.parametrize(("shear", "told"), [("0.02 0.02", 0), ("0.02 0.02001", 0), ("0.02 0.03", 1), ("0.5 -0.5", 1)])
@pytest.mark.parametrize("name", ["stress", "virial"])
def test_a_stress_that_is_not_symmetric_is_symmetrised_and_told(
    name: str, shear: str, told: int, tmp_path: Path
) -> None:
    xy, yx = shear.split()
    (tmp_path / "s.xyz").write_text(frame(f'{name}="0.1 {xy} 0 {yx} 0.1 0 0 0 0.1"'))
    report = featurize(tmp_path / "s.xyz", tmp_path / "g.zarr", scheduler="threads")
    stress = GraphStore(tmp_path / "g.zarr").column("stress")[0]
    mean = (float(xy) + float(yx)) / 2
    assert np.allclose(stress[[0, 1], [1, 0]], mean if name == "stress" else -mean / 64, rtol=1e-12)
    assert report.asymmetric == told
    assert ("not symmetric" in str(report)) == bool(told)
    assert report.unread == ()
