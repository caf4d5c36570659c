"""CIF, parsed by gemmi: a crystal is read if the file is unambiguous; otherwise it is refused, with the reason.

`tags` finds what a data block holds, `elements` and `sites` read the listed sites, `groups` and `symmetry` the space
group, `contents` what the file says about the content of its cell, and `crystal` puts them together.
"""

from .crystal import SYMMETRY_ELSEWHERE, structure_from_cif

__all__ = ["SYMMETRY_ELSEWHERE", "structure_from_cif"]
