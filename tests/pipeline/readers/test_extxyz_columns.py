"""Extended XYZ whose columns are counted wrongly."""

from __future__ import annotations

import pytest
from equiscreen.pipeline.errors import InvalidStructureError
from equiscreen.pipeline.readers.extxyz import atoms_of_frame


@pytest.mark.parametrize("width", ["33333333333", "99999", "3.0", "-3", "", "three"])
def test_a_width_that_no_line_can_have_is_refused_at_once(width: str) -> None:
    frame = f'1\nProperties=species:S:1:pos:R:{width} Lattice="3 0 0 0 3 0 0 0 3"\nCu 0 0 0\n'
    with pytest.raises((InvalidStructureError, ValueError), match=r"columns|[Pp]roperties"):
        atoms_of_frame(frame)


def test_sound_columns_are_read() -> None:
    frame = '1\nProperties=species:S:1:pos:R:3:forces:R:3 Lattice="3 0 0 0 3 0 0 0 3"\nCu 0 0 0 1 2 3\n'
    assert len(atoms_of_frame(frame)) == 1
