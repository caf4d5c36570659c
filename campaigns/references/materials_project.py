"""Reference phases from the Materials Project, through its own client.

This module follows the documentation of `mp-api` (`MPRester.get_entries`) but has never been run, since running it
requires a key and network access.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...pipeline.atomic import write_text_atomically
from ...pipeline.energy_schemes import CORRECTED, R2SCAN, UNCORRECTED
from ...pipeline.errors import ConfigError, SourceError
from ...pipeline.redaction import HIDDEN
from .systems import ChemicalSystems, system_name

KEY = "MP_API_KEY"
# The thermo type of each energy scheme; GGA_GGA+U_R2SCAN, which mixes functionals, is never used.
_THERMO_TYPES = {UNCORRECTED: "GGA_GGA+U", CORRECTED: "GGA_GGA+U", R2SCAN: "R2SCAN"}
_SYSTEMS_AT_ONCE = 50


def entries_of_mp(
    systems: ChemicalSystems, scheme: str, folder: Path, progress: Callable[[int], None]
) -> Iterator[dict[str, Any]]:
    """Fetch the entries of chemical systems; entries that an interrupted run has fetched are not fetched again.

    Raises:
        ConfigError: `mp-api` or the key is missing, no chemical system is chosen, or no thermo type fits the scheme.
        SourceError: The client fails.
    """
    if scheme not in _THERMO_TYPES:
        raise ConfigError(
            f"mp: the Materials Project has no energies that follow {scheme}, the scheme of the candidates; choose "
            "another source"
        )
    if systems.given is None:
        raise ConfigError("mp: choose the chemical systems to fetch with --systems Li-Fe-O or --candidates SOURCE")
    key = os.environ.get(KEY, "")
    if not key:
        raise ConfigError(f"mp: set {KEY} to your API key from materialsproject.org, or use optimade:mp")
    wanted = [system_name(part) for part in systems.parts()]
    for start in range(0, len(wanted), _SYSTEMS_AT_ONCE):
        chosen = wanted[start : start + _SYSTEMS_AT_ONCE]
        digest = hashlib.sha256(",".join([_THERMO_TYPES[scheme], *chosen]).encode()).hexdigest()[:16]
        file = folder / f"mp-{digest}.json"
        if not file.exists():
            entries = _asked(chosen, _THERMO_TYPES[scheme], key)
            write_text_atomically(file, json.dumps(entries))
            progress(len(entries))
        yield from json.loads(file.read_text(encoding="utf-8"))


def _asked(systems: list[str], thermo_type: str, key: str) -> list[dict[str, Any]]:
    """Return the entries of chemical systems, as dictionaries with uncorrected energies."""
    try:
        from mp_api.client import MPRester  # noqa: PLC0415 - optional
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"mp: this source needs {error.name}, which is not installed: pip install mp-api, or use optimade:mp"
        ) from error
    try:
        with MPRester(key) as client:
            found = client.get_entries(systems, additional_criteria={"thermo_types": [thermo_type]})
            return [entry if isinstance(entry, dict) else json.loads(entry.to_json()) for entry in found]
    except Exception as error:  # noqa: BLE001 - errors of the client and of its HTTP library
        reason = " ".join(str(error).replace(key, HIDDEN).split())[:200] or type(error).__name__
    # Raised without its cause, whose text may contain the key.
    raise SourceError(
        f"mp: the request to the Materials Project failed ({reason}); check {KEY} and the connection, then run the "
        "same command again to resume"
    )
