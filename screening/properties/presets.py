"""Presets: the protocols by which properties are computed, with the relaxation that precedes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np

from ...pipeline.errors import ConfigError
from ...pipeline.suggestions import unknown_name
from ..relaxation.batched import RelaxSettings
from ..relaxation.optimizers import Optimizer
from .lattice_dynamics.conductivity import Kappa
from .lattice_dynamics.phonons import Phonons
from .mechanics.elastic import Elastic, StressMeasure
from .mechanics.equation_of_state import EquationOfState
from .protocol import Property


@dataclass(frozen=True, slots=True)
class Preset:
    """A protocol by which properties are computed.

    Attributes:
        name: Name of the preset, as in ``--preset``.
        relaxation: Relaxation of each crystal before its properties are computed. If it keeps the space group, crystals
            are symmetrized first (`screening.relaxation.symmetry.symmetrized`).
        properties: The properties that the preset defines.
    """

    name: str
    relaxation: RelaxSettings
    properties: tuple[Property, ...]

    def chosen(self, names: Sequence[str]) -> tuple[Property, ...]:
        """Return the properties with the given names, in the order of the names.

        Raises:
            ConfigError: A name is unknown or given twice, or there is none.
        """
        known = {one.name: one for one in self.properties}
        for name in names:
            if name not in known:
                raise ConfigError(f"preset {self.name}: {unknown_name('property', name, known)}")
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                f"the chosen properties are {', '.join(names) or 'none'}; name at least one, and each only once"
            )
        return tuple(known[name] for name in names)

    def altered(self, name: str, **settings: Any) -> Self:
        """Return this protocol with other settings of one property.

        Args:
            name: Name of the property.
            **settings: Its settings that differ.

        Raises:
            ConfigError: The preset does not define the property.
        """
        self.chosen([name])
        others = (replace(one, **settings) if one.name == name else one for one in self.properties)  # type: ignore[type-var]
        return replace(self, properties=tuple(others))

    def record(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the settings of some properties and of the relaxation, as content for JSON."""
        own = {one.name: asdict(one) for one in self.chosen(names)}  # type: ignore[call-overload]
        return {"preset": self.name, "relaxation": asdict(self.relaxation), "properties": own}


# The relaxations of MatCalc 0.4: FIRE to 0.05 eV/angstrom with ASE's FrechetCellFilter, or of the ions alone.
_MATCALC = RelaxSettings(fmax=0.05, smax=None, optimizer=Optimizer.FIRE)
_PRESETS = (
    Preset(
        "default",
        RelaxSettings(fmax=1e-3, smax=0.02, fix_symmetry=True, symprec=0.01),
        (Elastic(), EquationOfState(), Phonons(), Kappa()),
    ),
    # MatCalc's `ElasticityCalc` with the settings of its benchmark, and its `EOSCalc`.
    Preset(
        "matcalc",
        _MATCALC,
        (
            Elastic(
                normal_strains=(-0.01, -0.005, 0.005, 0.01),
                shear_strains=(-0.06, -0.03, 0.03, 0.06),
                relax_ions=None,
                use_symmetry=False,
                stress_measure=StressMeasure.CAUCHY,
            ),
            EquationOfState(
                volumes=tuple(((1 + np.linspace(-0.1, 0.1, 11)) ** 3).tolist()),
                relax_ions=RelaxSettings(
                    fmax=0.05, smax=None, optimizer=Optimizer.FIRE, fix_cell=True, allow_extrapolation=True
                ),
            ),
        ),
    ),
    # phonondb-103, a benchmark of thermal conductivities (Póta et al., arXiv:2408.00755). The benchmark relaxes with
    # FIRE, to the same criterion.
    Preset(
        "phonondb-103",
        RelaxSettings(fmax=1e-4, smax=None, max_steps=300, fix_symmetry=True, symprec=1e-5),
        (Phonons(), Kappa(displacement=0.01, phonondb=True, average_degenerate=False)),
    ),
)
PRESETS = {one.name: one for one in _PRESETS}


def preset_named(name: str) -> Preset:
    """Return the preset with a given name.

    Raises:
        ConfigError: No preset has this name.
    """
    if name not in PRESETS:
        raise ConfigError(unknown_name("preset", name, PRESETS))
    return PRESETS[name]
