"""Reading of CIF, parsed by gemmi; a crystal whose description is ambiguous is rejected, with the reason.

`tags` finds what a data block holds, `elements` and `sites` read the listed sites, `groups` and `symmetry` read the
space group, `contents` reads what the file states about the content of its cell, and `crystal` combines these parts.
"""

from .crystal import SYMMETRY_ELSEWHERE, structure_from_cif

__all__ = ["SYMMETRY_ELSEWHERE", "structure_from_cif"]
