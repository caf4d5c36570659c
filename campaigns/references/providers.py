"""OPTIMADE providers that serve energies: their addresses, fields and energy schemes.

The names of the fields are those that public clients request. None of these servers could be reached when this module
was written, so the names are untested; if one proves wrong, correct it in `Provider.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from ...pipeline.energy_schemes import CORRECTED, OWN, R2SCAN, UNCORRECTED
from ...pipeline.errors import ConfigError
from ...pipeline.sources.discovery import OPTIMADE_PREFIX
from ...pipeline.suggestions import unknown_name


@dataclass(frozen=True, slots=True)
class EnergyField:
    """A field of a structure that holds an energy.

    Attributes:
        name: Name of the field in OPTIMADE responses.
        scheme: Energy scheme that its energies follow; `OWN` for a scheme without a name.
        functional: Functional of its energies if the structure does not state one; empty if the structure must state
            one.
        formation: Whether the field holds a formation energy (eV/atom) rather than the total energy of the cell (eV).
        keys: Keys that lead to the number, if the field is an object; case is ignored.
    """

    name: str
    scheme: str
    functional: str
    formation: bool
    keys: tuple[str, ...] = ()

    def value(self, attributes: Mapping[str, Any]) -> Any:
        """Return the value of this field in a structure; None if the field is absent."""
        found: Any = attributes.get(self.name)
        for key in self.keys:
            if not isinstance(found, Mapping):
                return None
            found = next((value for name, value in found.items() if str(name).lower() == key), None)
        return found


@dataclass(frozen=True, slots=True)
class Provider:
    """An OPTIMADE server.

    Attributes:
        name: Name after ``optimade:``.
        url: Base URL.
        fields: Fields with energies; if several are comparable with the candidates, the first that a structure has is
            used.
        functional_field: Field that states the functional of a structure; empty if there is none.
        note: Why there are no fields, if there are none.
    """

    name: str
    url: str
    fields: tuple[EnergyField, ...]
    functional_field: str = ""
    note: str = ""

    def fitting(self, scheme: str) -> tuple[EnergyField, ...]:
        """Return the fields whose energies can be compared with those of an energy scheme."""
        if scheme == OWN:
            # A user's own network may be trained on anything that a provider serves, but rarely on corrected energies.
            return tuple(field for field in self.fields if field.scheme != CORRECTED or field.keys)
        fitting = {UNCORRECTED, CORRECTED} if scheme in (UNCORRECTED, CORRECTED) else {scheme}
        return tuple(field for field in self.fields if field.scheme in fitting)

    def response_fields(self) -> list[str]:
        """Return the names of the fields to request; servers send custom fields only on request."""
        names = [field.name for field in self.fields]
        return list(dict.fromkeys([*names, self.functional_field] if self.functional_field else names))


def _alexandria(functional: str, scheme: str, corrected: str) -> tuple[EnergyField, ...]:
    return (
        EnergyField("_alexandria_energy", scheme, functional, formation=False),
        EnergyField("_alexandria_energy_corrected", corrected, functional, formation=False),
        EnergyField("_alexandria_formation_energy_per_atom", corrected, functional, formation=True),
    )


_FUNCTIONAL = "_alexandria_xc_functional"
PROVIDERS = {
    provider.name: provider
    for provider in (
        Provider(
            "alexandria",
            "https://alexandria.icams.rub.de/pbe",
            _alexandria("PBE", UNCORRECTED, CORRECTED),
            _FUNCTIONAL,
        ),
        Provider(
            "alexandria-pbesol",
            "https://alexandria.icams.rub.de/pbesol",
            _alexandria("PBEsol", OWN, OWN),
            _FUNCTIONAL,
        ),
        Provider(
            "mp",
            "https://optimade.materialsproject.org",
            (
                # The mixed thermo type, gga_gga+u_r2scan, follows no energy scheme and is never used.
                EnergyField(
                    "_mp_stability",
                    CORRECTED,
                    "GGA_GGA+U",
                    formation=True,
                    keys=("gga_gga+u", "formation_energy_per_atom"),
                ),
                EnergyField(
                    "_mp_stability", R2SCAN, "r2SCAN", formation=True, keys=("r2scan", "formation_energy_per_atom")
                ),
            ),
        ),
        Provider("oqmd", "https://oqmd.org/optimade", (EnergyField("_oqmd_delta_e", OWN, "OQMD", formation=True),)),
        Provider(
            "jarvis",
            "https://jarvis.nist.gov/optimade/jarvisdft",
            (EnergyField("_jarvis_formation_energy_peratom", OWN, "OptB88vdW", formation=True),),
        ),
        Provider(
            "gnome",
            "https://optimade-gnome.odbx.science",
            (),
            note="it serves only distances to a hull (_gnome_hull_distance), which are not energies",
        ),
    )
}


def provider_of(what: str) -> Provider:
    """Return the provider named by ``optimade:PROVIDER``, ``optimade:URL`` or ``optimade:PROVIDER@URL`` (a mirror).

    An unknown server is asked for the fields of all providers. If its structures do not state their functional, the
    functional is unknown, since Alexandria's PBE and PBEsol databases use the same names.

    Raises:
        ConfigError: The provider is unknown, or serves no energies.
    """
    text = what.removeprefix(OPTIMADE_PREFIX)
    name, at, mirror = text.partition("@")
    if name in PROVIDERS:
        found = PROVIDERS[name] if not at else replace(PROVIDERS[name], url=mirror)
    elif text.startswith(("http://", "https://")):
        known = [one for one in PROVIDERS.values() if _leads_to(text, one.url)]
        found = replace(known[0], url=text) if known else _any_of(text)
    else:
        raise ConfigError(f"{what}: {unknown_name('provider', name, PROVIDERS)} (or give the base URL of a server)")
    if not found.fields:
        raise ConfigError(f"{what} serves no energies: {found.note}; choose another provider")
    return found


def check_scheme(what: str, provider: Provider, scheme: str, assumed: str | None) -> None:
    """Check that a provider has energies that can be compared with those of the candidates.

    Raises:
        ConfigError: The provider has no comparable energies.
    """
    if scheme == OWN and assumed != OWN:
        raise ConfigError(
            f"{what}: the candidates follow an energy scheme without a name; use --scheme own if the model was trained "
            "on energies of this provider"
        )
    if not provider.fitting(scheme):
        served = {field.functional or "unknown" if field.scheme == OWN else field.scheme for field in provider.fields}
        raise ConfigError(
            f"{what}: the energies of this provider ({', '.join(sorted(served))}) cannot be compared with those of the "
            f"candidates, which follow {scheme}; choose another provider"
        )


def _leads_to(url: str, base: str) -> bool:
    """Whether a URL points into the database at a base URL."""
    one, other = urlsplit(url), urlsplit(base)
    path = one.path.rstrip("/") + "/"
    return one.hostname == other.hostname and path.startswith(other.path.rstrip("/") + "/")


def _any_of(url: str) -> Provider:
    """Return a server that may be a mirror of any provider."""
    every = [field for provider in PROVIDERS.values() for field in provider.fields]
    alexandria = [field for field in every if field.name.startswith("_alexandria")]
    others: Sequence[EnergyField] = [field for field in every if field not in alexandria]
    stating = [replace(field, functional="") for field in alexandria if field.scheme != OWN]
    return Provider(url, url, (*stating, *others), _FUNCTIONAL)
