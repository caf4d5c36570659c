"""Functions of the distance and elements of a pair of atoms: transforms of distances, and repulsion."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ase.data import covalent_radii
from torch import Tensor, nn

from ..config.network import MaceConfig, RepulsionConfig
from .radial import polynomial_envelope
from .table import Table

# Constants of the universal potential (Ziegler, Biersack and Littmark, The Stopping and Range of Ions in Solids, 1985):
# decay rates of its exponentials, Bohr radius (angstrom), and e^2 / (4 pi epsilon_0) (eV angstrom).
ZBL_RATES = (3.2, 0.9423, 0.4028, 0.2016)
BOHR, COULOMB = 0.529, 14.3996


def pair_atoms(table: Table) -> tuple[Tensor, Tensor]:
    """Return the sender and the receiver of the first slot of each pair: int64[P] each."""
    neighbors, opposite = table.neighbors.view(-1), table.reverse.view(-1)[table.pair_slot]
    return neighbors[table.pair_slot], neighbors[opposite]


class DistanceTransform(nn.Module):
    """Transform of distances that depends on the covalent radii of both atoms.

    ``agnesi`` maps distances to (0, 1) (Witt et al., J. Chem. Phys. 159, 164101 (2023)); ``soft`` leaves long distances
    unchanged, and maps short distances to about three quarters of the sum of the radii.

    Args:
        config: Configuration of the network; its transform is not ``none``.
        elements: Atomic numbers of the elements.
    """

    def __init__(self, config: MaceConfig, elements: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.radii: Tensor
        self.register_buffer("radii", torch.from_numpy(covalent_radii[list(elements)]))

    def forward(self, distance: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Transform distances.

        Args:
            distance: float[P, 1], angstrom.
            one: int64[P], index of the element of the first atom of each pair.
            other: int64[P], index of the element of the second atom of each pair.

        Returns:
            float[P, 1]; dimensionless for ``agnesi``, otherwise in angstrom.
        """
        bond = (self.radii[one] + self.radii[other]).unsqueeze(-1)
        if self.config.transform == "agnesi":
            a, p, q = self.config.agnesi
            ratio = distance / (bond / 2)
            return 1 / (1 + a * torch.pow(ratio, q) / (1 + torch.pow(ratio, q - p)))
        inner, outer = bond * 0.75, bond * (4 / 3)
        switch = (1 + torch.tanh((distance - (inner + outer) / 2) * (self.config.steepness / (outer - inner)))) / 2
        return inner + (distance - inner) * switch


class ZblRepulsion(nn.Module):
    """Screened repulsion of the nuclei up to the sum of the covalent radii, with a polynomial envelope.

    The screening function is given by Ziegler, Biersack and Littmark (1985); see `RepulsionConfig`.

    Args:
        config: Constants of the repulsion.
        cutoff: Cutoff radius of the network, beyond which the repulsion is zero (angstrom).
        elements: Atomic numbers of the elements.
    """

    def __init__(self, config: RepulsionConfig, cutoff: float, elements: Sequence[int]) -> None:
        super().__init__()
        self.config, self.cutoff = config, cutoff
        numbers = torch.tensor(elements, dtype=torch.float64)
        self.radii: Tensor
        self.numbers: Tensor
        self.powers: Tensor
        self.register_buffer("radii", torch.from_numpy(covalent_radii[list(elements)]))
        self.register_buffer("numbers", numbers, persistent=False)
        self.register_buffer("powers", numbers**config.exponent, persistent=False)

    def forward(self, distance: Tensor, one: Tensor, other: Tensor) -> Tensor:
        """Compute half the energy of each pair, which is the share of each of its atoms.

        Args:
            distance: float[P, 1], angstrom.
            one: int64[P], index of the element of the first atom of each pair.
            other: int64[P], index of the element of the second atom of each pair.

        Returns:
            float[P, 1], eV.
        """
        charges = (self.numbers[one] * self.numbers[other]).unsqueeze(-1)
        screening = (self.powers[one] + self.powers[other]).unsqueeze(-1) / (self.config.length * BOHR)
        reach = (self.radii[one] + self.radii[other]).unsqueeze(-1)
        terms = [
            torch.exp(distance * screening * -rate) * weight
            for rate, weight in zip(ZBL_RATES, self.config.weights, strict=True)
        ]
        phi = terms[0] + terms[1] + terms[2] + terms[3]
        envelope = polynomial_envelope(distance / reach, self.config.envelope_power)
        energy = phi * envelope * (charges * (COULOMB / 2)) / distance
        # The distance of a padding slot is two cutoffs, which can be less than the sum of two large covalent radii.
        return torch.where(distance < self.cutoff, energy, torch.zeros_like(energy))
