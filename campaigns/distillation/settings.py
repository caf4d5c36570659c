"""Settings of a distillation: the structures to label, and the network that learns the labels."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from ...pipeline.bounded_yaml import load_yaml
from ...pipeline.errors import ConfigError, detail

DEFAULT_PRESET = "small"
# Relaxation steps among which frames are chosen. With L-BFGS, most crystals are close to their minimum by then
# (tests/benchmarks/relax_criterion.txt).
RELAXATION_STEPS = 25
# Training, validation and held-out crystals need at least one group each.
LEAST_GROUPS = 3


class HoldOutBy(StrEnum):
    """Property that no held-out crystal may share with a crystal that is trained on."""

    COMPOSITION = "composition"  # the reduced formula
    STRUCTURE = "structure"  # the crystal itself, in any cell, origin, site order and orientation


@dataclass(frozen=True, slots=True)
class VariantSettings:
    """The structures that are made of each crystal; all of them are labelled.

    Attributes:
        variants: Number of rattled and strained copies of each crystal.
        rattle: Largest standard deviation of the displacements of the atoms in a copy, angstrom.
        strain: Largest component of the strain of the cell in a copy.
        frames: Number of frames from a short relaxation of each crystal with the teacher; 0 relaxes none.
        seed: Random seed of the copies, of the choice of crystals, and of the crystals that are held out.

    Raises:
        ConfigError: A value is out of range, or the copies would all be equal.
    """

    variants: int = 8
    rattle: float = 0.1
    strain: float = 0.05
    frames: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.variants, self.frames, self.seed) < 0:
            raise ConfigError("--variants, --frames and --seed must not be negative")
        if not (0 <= self.rattle < 1 and 0 <= self.strain < 0.3):
            raise ConfigError(
                f"--rattle {self.rattle:g} and --strain {self.strain:g} are out of range: choose a rattle from 0 to "
                "below 1 angstrom and a strain from 0 to below 0.3"
            )
        if self.variants and not (self.rattle or self.strain):
            raise ConfigError(
                "without rattle and strain, all variants of a crystal are equal; raise --rattle or --strain, or use "
                "--variants 0"
            )

    @property
    def evaluations(self) -> int:
        """Largest number of evaluations with the teacher for one crystal."""
        return 1 + self.variants + ((RELAXATION_STEPS + self.frames) if self.frames else 0)


@dataclass(frozen=True, slots=True)
class DistillSettings:
    """Settings of a distillation.

    Example:
        >>> from equiscreen.campaigns import DistillSettings
        >>> from equiscreen.campaigns.distillation.settings import VariantSettings
        >>> DistillSettings(VariantSettings(variants=4), epochs=50).variants.evaluations
        5

    Attributes:
        variants: The structures that are made of each crystal.
        crystals: Number of crystals to use, chosen at random; None uses all.
        preset: Preset of the student's network; None takes it from `config`, or uses ``small``.
        config: YAML file with further settings of network and training, as for `equiscreen train`; its section
            `training.split` must be absent.
        epochs: Largest number of epochs; None takes it from `config`, or uses the default of the training.
        cutoff: Cutoff of the student, angstrom; None takes it from `config`, or uses the teacher's.
        hold_out: Fraction of the structures whose crystals are held out for the final comparison. As many others are
            held out to choose the best epoch.
        hold_out_by: Property that no held-out crystal may share with a crystal that is trained on.

    Raises:
        ConfigError: A value is out of range.
    """

    variants: VariantSettings = VariantSettings()
    crystals: int | None = None
    preset: str | None = None
    config: str | Path | None = None
    epochs: int | None = None
    cutoff: float | None = None
    hold_out: float = 0.1
    hold_out_by: HoldOutBy = HoldOutBy.COMPOSITION

    def __post_init__(self) -> None:
        if self.crystals is not None and self.crystals < 1:
            raise ConfigError(f"--crystals is {self.crystals}; it must be at least 1")
        if not 0 < self.hold_out <= 0.4:
            raise ConfigError(f"--hold-out is {self.hold_out:g}; it must be above 0 and at most 0.4")
        if self.cutoff is not None and not (math.isfinite(self.cutoff) and self.cutoff > 0):
            raise ConfigError(f"--cutoff is {self.cutoff:g}; it must be a positive number of angstrom")

    def training_config(self, teacher_cutoff: float) -> dict[str, Any]:
        """Return the configuration of the training as plain values, with the hold-out and the student's cutoff.

        Args:
            teacher_cutoff: Cutoff of the teacher, angstrom; the student's if no other is set.

        Raises:
            ConfigError: The configuration file cannot be read, is not a mapping, or sets the split.
        """
        content = {} if self.config is None else _loaded(Path(self.config))
        network, training = _section(content, "network", self.config), _section(content, "training", self.config)
        if "split" in training:
            raise ConfigError(
                f"{self.config}: training.split cannot be set, because whole crystals are held out; use --hold-out and "
                "--hold-out-by"
            )
        if self.preset is not None or "preset" not in network:
            network["preset"] = self.preset or DEFAULT_PRESET
        if self.cutoff is not None or network.get("cutoff") is None:
            network["cutoff"] = self.cutoff or teacher_cutoff
        if self.epochs is not None:
            training["max_epochs"] = self.epochs
        by_formula = self.hold_out_by is HoldOutBy.COMPOSITION
        held = {"by": "composition"} if by_formula else {"by": "group", "key": CRYSTAL}
        share = {"test": self.hold_out, "validation": self.hold_out, "seed": self.variants.seed}
        return {**content, "network": network, "training": {**training, "split": {**held, **share}}}

    def about_variants(self) -> dict[str, Any]:
        """Return everything that the structures to label depend on, besides the crystals."""
        steps = {"relaxation_steps": RELAXATION_STEPS} if self.variants.frames else {}
        return {**asdict(self.variants), "crystals": self.crystals, **steps}


# Columns of the store of labelled structures: crystal that a structure was made of, how it was made, and whether it
# could be labelled.
CRYSTAL, VARIANT, LABEL_STATUS = "crystal", "variant", "label_status"
COLUMNS = (CRYSTAL, VARIANT, LABEL_STATUS)


def _loaded(path: Path) -> dict[str, Any]:
    try:
        content = load_yaml(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read: {detail(error)}; give a readable YAML file") from error
    if not isinstance(content or {}, dict):
        raise ConfigError(f"{path} is not a configuration; it needs the sections `network` and `training`")
    return dict(content or {})


def _section(content: dict[str, Any], name: str, path: str | Path | None) -> dict[str, Any]:
    section = content.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: {name} must hold settings, such as `{name}:` with indented lines below it")
    return dict(section)
