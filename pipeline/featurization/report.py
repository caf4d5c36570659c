"""What a finished featurization reports."""

from __future__ import annotations

from dataclasses import dataclass

LISTED_INPUTS = 100
SOFTWARE = ("equiscreen", "numpy", "zarr", "gemmi", "ase", "moyopy")


@dataclass(frozen=True, slots=True)
class FeaturizeReport:
    """The account of a run: read = stored + failed + duplicate.

    Attributes:
        path: The store, as it was named.
        read, stored, failed, duplicate: Structures of this run.
        reasons: Failures by reason.
        seconds: Wall time of this run.
        bytes_on_disk: Of the store.
        in_store: Structures in the store: more than `stored` after appending.
        aside: Members of archives that hold no structures by their names.
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

    def __str__(self) -> str:
        rate = self.read / max(self.seconds, 1e-9)
        most = sorted(self.reasons.items(), key=lambda item: (-item[1], item[0]))
        reasons = "".join(f"; {count:,} {reason}" for reason, count in most)
        total = f" ({self.in_store:,} in the store)" if self.in_store != self.stored else ""
        aside = f"; {len(self.aside):,} other files left aside ({', '.join(self.aside[:3])})" if self.aside else ""
        return (
            f"{self.path}: read {self.read:,} = stored {self.stored:,} + failed {self.failed:,} + duplicate "
            f"{self.duplicate:,}{total}; {self.seconds:.1f} s, {rate:,.0f} structures/s, "
            f"{self.bytes_on_disk / max(self.in_store, 1):,.0f} bytes/structure{reasons}{aside}"
        )
