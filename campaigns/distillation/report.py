"""The report of a finished distillation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from ...pipeline.atomic import write_text_atomically
from ...pipeline.errors import StoreError
from .evaluation import Errors, Rates
from .labelling import summary
from .settings import HoldOutBy


@dataclass(frozen=True, slots=True)
class Subset:
    """A part of the crystals.

    Attributes:
        crystals: Number of different crystals.
        structures: Number of labelled structures made of them, including the crystals themselves.
    """

    crystals: int
    structures: int


@dataclass(frozen=True, slots=True)
class DistillReport:
    """Result of a distillation: the student, and how it compares with its teacher.

    Example:
        >>> from equiscreen.campaigns import DistillSettings, distill
        >>> settings = DistillSettings(config="quick.yaml")
        >>> report = distill("candidates.zarr", "student", "model.onnx", settings, scheduler="threads")
        >>> report.energy_scheme, sum(report.label_statuses.values()) == report.counts["stored"]
        ('own', True)

    Attributes:
        model: ONNX file of the student.
        teacher, teacher_sha256: Name of the teacher, and SHA-256 of its file.
        energy_scheme: Energy scheme of the teacher, and so of the student.
        counts: Numbers of structures ``read``, ``stored``, ``failed`` and ``duplicate``.
        label_statuses: Number of stored structures with each status; only those that are ok have labels.
        training, validation, held_out: Crystals that the student was trained on, that chose the best epoch, and that
            were held out for the comparison; no two parts have variants of one crystal.
        hold_out_by: Property that no held-out crystal shares with the others: ``composition`` or ``structure``.
        errors: Differences from the teacher on the held-out crystals, as they were given.
        variant_errors: Differences on the variants of these crystals; None if there are no variants.
        rates: Speed of both models on held-out crystals.
        seconds: Wall time of the call that finished the distillation, seconds.
    """

    model: str
    teacher: str
    teacher_sha256: str
    energy_scheme: str
    counts: Mapping[str, int]
    label_statuses: Mapping[str, int]
    training: Subset
    validation: Subset
    held_out: Subset
    hold_out_by: str
    errors: Errors
    variant_errors: Errors | None
    rates: Rates
    seconds: float

    def __str__(self) -> str:
        of_variants = (
            []
            if self.variant_errors is None
            else [f"their {self.variant_errors.structures:,} variants, MAE: {self.variant_errors}"]
        )
        basis = "composition" if self.hold_out_by == HoldOutBy.COMPOSITION else "structure"
        return "\n".join(
            [
                f"{self.model}: distilled from {self.teacher}, energy scheme {self.energy_scheme}",
                f"structures: {summary(self.counts, self.label_statuses)}",
                f"crystals: {self.training.crystals:,} trained on ({self.training.structures:,} structures), "
                f"{self.validation.crystals:,} for validation, {self.held_out.crystals:,} held out by {basis}",
                f"{self.errors.structures:,} held-out crystals, MAE: {self.errors}",
                *of_variants,
                f"speed on {self.rates.crystals:,} of them, one thread: {self.rates}",
            ]
        )

    def save(self, path: Path) -> None:
        """Write the report as JSON."""
        write_text_atomically(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a report that `save` wrote.

        Raises:
            StoreError: The file is damaged.
        """
        try:
            content = json.loads(path.read_text())
            for name in ("training", "validation", "held_out"):
                content[name] = Subset(**content[name])
            for name in ("errors", "variant_errors"):
                content[name] = Errors(**content[name]) if content[name] else None
            return cls(**{**content, "rates": Rates(**content["rates"])})
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path} is damaged; delete it, and run the same command again") from error
