"""The summary of a table of references: where the references come from, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ...pipeline.errors import SourceError, detail
from ...screening.dataset.parquet import METADATA_KEY

ACCOUNT_SCHEMA = 1
_NAMED = 10


@dataclass(frozen=True)
class SourceAccount:
    """What one source contributed: read = phases + duplicate + outside + left_out.

    Attributes:
        source: Name of the source, without secrets.
        kind: Kind of source: entries, table, dataset, OPTIMADE or mp-api.
        when: Time when the source was downloaded or read, UTC, in ISO 8601 format.
        read: Number of references in the source.
        phases: Number of references that entered the table.
        duplicate: Number of structures that the server sent twice.
        outside: Number of references outside the chemical systems of the candidates.
        left_out: Number of references that cannot be used, by reason.
        left_out_because: Reasons for the first few references that were left out, by name.
        run_types: Number of phases by functional or run type.
    """

    source: str
    kind: str
    when: str
    read: int
    phases: int
    duplicate: int
    outside: int
    left_out: Mapping[str, int]
    left_out_because: Mapping[str, str]
    run_types: Mapping[str, int]


@dataclass(frozen=True)
class ReferencesAccount:
    """Summary of a table of references.

    Attributes:
        scheme: Energy scheme of the candidates that the references are compared with.
        phases: Number of phases.
        run_types: Number of phases by functional or run type.
        systems: Chemical systems of the candidates; empty if the references were not restricted.
        phases_by_system: Number of phases by their own chemical system.
        missing_elements: Elements of the candidates (without candidates, of the phases) for which the table has no
            total energy.
        empty_systems: Chemical systems of candidates for which no phase contains all elements.
        sources: What each source contributed.
        equiscreen: Version that wrote the table.
        schema: Version of this record.
    """

    scheme: str
    phases: int
    run_types: Mapping[str, int]
    systems: tuple[str, ...]
    phases_by_system: Mapping[str, int]
    missing_elements: tuple[str, ...]
    empty_systems: tuple[str, ...]
    sources: tuple[SourceAccount, ...]
    equiscreen: str
    schema: int = ACCOUNT_SCHEMA

    def attrs(self) -> dict[str, Any]:
        """Return the summary as a dictionary, ready for JSON."""
        return {"kind": "references", **asdict(self)}

    def summary(self, path: str | Path) -> str:
        """Return the summary as a few lines of text."""
        lines = [
            f"{path}: {self.phases:,} phases in {len(self.phases_by_system):,} chemical systems, for candidates of "
            f"scheme {self.scheme} ({_counted(self.run_types)})"
        ]
        for one in self.sources:
            parts = [f"{one.phases:,} of {one.read:,} kept"]
            parts += [f"{one.outside:,} outside the chemical systems"] if one.outside else []
            parts += [f"{one.duplicate:,} sent twice"] if one.duplicate else []
            parts += [f"{count:,} left out: {reason}" for reason, count in one.left_out.items()]
            lines.append(f"  {one.source} ({one.kind}, {one.when}): {'; '.join(parts)}")
        if self.missing_elements:
            lines.append(f"  no total energies of the elements {_named(self.missing_elements)}")
        if self.empty_systems:
            lines.append(f"  no phase contains all elements of {_named(self.empty_systems)}")
        return "\n".join(lines)


def read_account(path: str | Path) -> Mapping[str, Any]:
    """Read the summary stored in a table of references, in the form of `ReferencesAccount.attrs`.

    Raises:
        SourceError: The file is not a table of references.
    """
    try:
        found = json.loads((pq.read_schema(path).metadata or {})[METADATA_KEY])
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(
            f"{path} is not a table written by `equiscreen references` ({detail(error)}); give the "
            "output of that command"
        ) from error
    if not isinstance(found, dict) or found.get("kind") != "references":
        raise SourceError(f"{path} is not a table written by `equiscreen references`; give the output of that command")
    return found


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _named(names: tuple[str, ...]) -> str:
    more = f" and {len(names) - _NAMED:,} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
