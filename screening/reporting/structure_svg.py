"""Small SVG pictures of crystals: a parallel projection of one cell."""

from __future__ import annotations

import itertools

import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.data.colors import jmol_colors
from numpy.typing import NDArray

from ...pipeline.structures.structure import Structure

# Largest number of atoms, including images on the faces of the cell; pictures of more atoms would be unreadable.
_MAX_ATOMS = 400
# Drawn radius as a fraction of the covalent radius.
_RADIUS = 0.45
# An atom this close to a face of the cell (fractional) is drawn on the opposite face too.
_ON_FACE = 1e-3
_ANGLES = (-75.0, 0.0, -20.0)  # rotations about x, y and z, degrees


def picture(structure: Structure) -> str:
    """Return a crystal as SVG, with atoms in Jmol colours and a dashed cell.

    Args:
        structure: The structure; if it has too many atoms to draw, a note is returned instead of a picture.
    """
    places, numbers = _atoms(structure)
    if len(numbers) > _MAX_ATOMS:
        return f"<span>{len(structure):,} atoms: not drawn</span>"
    rotated = (places @ structure.cell) @ _rotation()
    corners = np.array(list(itertools.product((0, 1), repeat=3)), dtype=np.float64)
    drawn = corners @ structure.cell @ _rotation() if structure.pbc.any() else np.zeros((0, 3))
    radii = _RADIUS * covalent_radii[numbers]
    points = np.concatenate([rotated, drawn])
    margin = float(radii.max())
    low, high = points[:, :2].min(axis=0) - margin, points[:, :2].max(axis=0) + margin
    size = float((high - low).max()) or 1.0
    lines = [
        _line(drawn[i], drawn[j])
        for i, j in itertools.combinations(range(len(drawn)), 2)
        if int(np.abs(corners[i] - corners[j]).sum()) == 1
    ]
    # Draw the furthest atoms first, so that nearer ones cover them.
    circles = [
        _circle(rotated[atom], radii[atom], int(numbers[atom])) for atom in np.argsort(rotated[:, 2], kind="stable")
    ]
    middle = (low + high) / 2 - size / 2
    view = f"{middle[0]:.2f} {-middle[1] - size:.2f} {size:.2f} {size:.2f}"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{view}" role="img">{"".join((*lines, *circles))}</svg>'


def _atoms(structure: Structure) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return fractional coordinates (float64[n, 3]) and atomic numbers (int64[n]) in one cell.

    Atoms on a face of the cell are on all equivalent faces.
    """
    frac = np.where(structure.pbc, structure.frac_coord % 1.0, structure.frac_coord)
    frac = np.where(structure.pbc & (frac > 1 - _ON_FACE), 0.0, frac)
    on_face = structure.pbc & (frac < _ON_FACE)
    places, numbers = [], []
    for atom in range(len(structure)):
        for shift in itertools.product(*((0, 1) if face else (0,) for face in on_face[atom])):
            places.append(frac[atom] + np.array(shift))
            numbers.append(int(structure.atomic_number[atom]))
    return np.array(places), np.array(numbers)


def _rotation() -> NDArray[np.float64]:
    out = np.eye(3)
    for axis in (2, 1, 0):
        angle = np.deg2rad(_ANGLES[axis])
        i, j = (axis + 1) % 3, (axis + 2) % 3
        rotation = np.eye(3)
        rotation[i, i] = rotation[j, j] = np.cos(angle)
        rotation[i, j], rotation[j, i] = np.sin(angle), -np.sin(angle)
        out = out @ rotation
    return out


def _line(a: NDArray[np.float64], b: NDArray[np.float64]) -> str:
    return (
        f'<line x1="{a[0]:.2f}" y1="{-a[1]:.2f}" x2="{b[0]:.2f}" y2="{-b[1]:.2f}" stroke="#99a" stroke-width="0.06" '
        'stroke-dasharray="0.3 0.2"/>'
    )


def _circle(center: NDArray[np.float64], radius: float, number: int) -> str:
    red, green, blue = (round(255 * part) for part in jmol_colors[number])
    return (
        f'<circle cx="{center[0]:.2f}" cy="{-center[1]:.2f}" r="{radius:.2f}" fill="rgb({red},{green},{blue})" '
        f'stroke="#333" stroke-width="0.05"><title>{chemical_symbols[number]}</title></circle>'
    )
