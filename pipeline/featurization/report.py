"""The report of a finished featurization."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..labels.quantities import ENERGY, PER_ATOM_SUFFIX, STRESS

LISTED_INPUTS = 100
SOFTWARE = ("equiscreen", "numpy", "zarr", "gemmi", "ase", "moyopy")


@dataclass(frozen=True, slots=True)
class FeaturizeReport:
    """Report of a run, with read = stored + failed + duplicate.

    Example:
        >>> from equiscreen.pipeline import featurize
        >>> report = featurize("crystals.extxyz", "crystals.zarr", scheduler="threads")
        >>> report.read == report.stored + report.failed + report.duplicate
        True

    Attributes:
        path: Path or URL of the store, as given by the user.
        read, stored, failed, duplicate: Numbers of records in this run.
        reasons: Number of failures by reason.
        seconds: Wall time of this run.
        bytes_on_disk: Size of the store.
        in_store: Number of structures in the store; more than `stored` after an append.
        aside: Members of archives that were skipped because, by their names, they are not structure files.
        not_found: Requested labels that no structure has.
        unread: Fields that look like a label but are not read, or whose values contradict the label: the names of the
            field and of the label, and the number of structures.
        without_volume: Number of structures whose stress is not stored because they have no volume.
        asymmetric: Number of structures whose stress is not symmetric, so that its symmetric part is stored.
        unnamed: Number of records whose id is missing or neither text nor a whole number, by the field of the id.
    """

    path: str
    read: int
    stored: int
    failed: int
    duplicate: int
    reasons: dict[str, int]
    seconds: float
    bytes_on_disk: int
    in_store: int
    aside: tuple[str, ...] = ()
    unread: tuple[tuple[str, str, int], ...] = ()
    not_found: tuple[str, ...] = ()
    without_volume: int = 0
    asymmetric: int = 0
    unnamed: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        rate = self.read / max(self.seconds, 1e-9)
        most = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        reasons = "".join(f"; {count:,} {reason}" for reason, count in most)
        total = f" ({self.in_store:,} in the store)" if self.in_store != self.stored else ""
        aside = f"; {len(self.aside):,} other files skipped ({', '.join(self.aside[:3])})" if self.aside else ""
        lacking = f"; no structure has the labels {', '.join(self.not_found)}" if self.not_found else ""
        told = "".join(
            f"; {count:,} structures have {key}, which is not read; use --label {label}={key}{_unit(key, label)}"
            for key, label, count in self.unread
        )
        if self.without_volume:
            told += (
                f"; {self.without_volume:,} stresses were skipped because the structures have fewer than three "
                "periodic directions"
            )
        if self.asymmetric:
            told += f"; {self.asymmetric:,} stresses are not symmetric, so their symmetric parts are stored"
        told += "".join(
            f"; {count:,} structures have no text or whole number as {name}, and are named by their file and position"
            for name, count in self.unnamed.items()
        )
        return (
            f"{self.path}: read {self.read:,} = stored {self.stored:,} + failed {self.failed:,} + duplicate "
            f"{self.duplicate:,}{total}; {self.seconds:.1f} s without start-up, {rate:,.0f} structures/s, "
            f"{self.bytes_on_disk / max(self.in_store, 1):,.0f} bytes/structure{reasons}{aside}{lacking}{told}"
        )


def _unit(key: str, label: str) -> str:
    """Return the unit of a field, in brackets, if the field's name shows that it differs from the label's unit."""
    if label == STRESS and "virial" in key.lower():
        return "[eV]"
    return f"[eV{PER_ATOM_SUFFIX}]" if label == ENERGY and "per_atom" in key.lower() else ""
