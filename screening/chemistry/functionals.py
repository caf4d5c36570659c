"""Functionals of DFT calculations, as VASP, pymatgen and databases write them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache

from ...pipeline.energy_schemes import CORRECTED, MATPES_PBE, OMAT24, R2SCAN, UNCORRECTED

# pymatgen calls PBE calculations GGA or PBE, depending on its version and input.
GGA, GGA_U, R2SCAN_FUNCTIONAL = "GGA", "GGA+U", "r2SCAN"
# Functionals of the energy schemes of models. A user's own network may follow any one functional.
OF_SCHEME = {
    UNCORRECTED: frozenset({GGA, GGA_U}),
    CORRECTED: frozenset({GGA, GGA_U}),
    OMAT24: frozenset({GGA, GGA_U}),
    MATPES_PBE: frozenset({GGA}),
    R2SCAN: frozenset({R2SCAN_FUNCTIONAL}),
}
# Lower-case names of fields: run types, which show whether a Hubbard U was used, and functionals, which do not always
# show this.
_RUN_TYPES = frozenset({"run_type", "calc_type"})
STATING = _RUN_TYPES | {
    "functional",
    "xc",
    "xc_functional",
    "xc_functional_name",
    "xc_functional_names",
    "_alexandria_xc_functional",
    "dft_type",
    "dft_functional",
    "exchange_correlation",
    "thermo_type",
    "func",
}
# Lower-case names of the sections of a calculation in which a functional is the one that the POTCARs were made for.
POTCAR_SECTIONS = frozenset({"potcar", "pseudo_potential"})
# First words of a calc_type that states no functional ("GGA Static" and "Static" both occur).
_TASKS = frozenset(
    {"nscf", "dielectric", "dfpt", "nmr", "static", "structure", "deformation", "optic", "unrecognized", "molecular"}
)
# The Materials Project's names for a mix of GGA and GGA+U, and for a mix of these with r2SCAN.
_EITHER = re.compile(r"GGA(?:_GGA\+U|\(\+U\))", re.IGNORECASE)
MIXED = "GGA_GGA+U_R2SCAN"
_TAGS = frozenset({"GGA", "METAGGA", "LHFCALC", "LUSE_VDW", "IVDW", "LDAU"})
_NOTHING = frozenset({"", "NONE", "NULL", "NAN", "F", "FALSE"})
_HYBRID = "hybrid"
_HYBRIDS = ("HSE", "PBE0", "PB0", "B3LYP", "HF")
_NAMES = {
    GGA: "GGA PBE PE GGAPBE PBEGGA PAWPBE PBE52 PBE54 PBE64 PERDEWBURKEERNZERHOF PERDEWBURKEERNZERHOFPBE "
    "GGAXPBE GGACPBE GGAXPBEGGACPBE GGACPBEGGAXPBE",
    R2SCAN_FUNCTIONAL: "R2SCAN METAGGAR2SCAN R2SCANMETAGGA MGGAXR2SCAN MGGACR2SCAN MGGAXR2SCANMGGACR2SCAN "
    "MGGACR2SCANMGGAXR2SCAN",
    "PBEsol": "PBESOL PS GGAXPBESOL GGACPBESOL GGAXPBESOLGGACPBESOL GGACPBESOLGGAXPBESOL",
    "SCAN": "SCAN MGGAXSCAN MGGACSCAN MGGAXSCANMGGACSCAN MGGACSCANMGGAXSCAN",
    "RPBE": "RPBE RP REVPBEPADE REVPBEPAD",
    "revPBE": "REVPBE RE",
    "AM05": "AM05 AM",
    "PW91": "PW91 91 PAWGGA GGAPW91",
    "LDA": "LDA CA PZ PAWLDA LDAPZ",
    "PBE0": "PBE0 PB0",
    _HYBRID: "HYBRID PBEOOROTHERHYBRIDFUNCTIONAL",
}
_BY_KEY = {key: name for name, keys in _NAMES.items() for key in keys.split()}
_WITH_U = re.compile(r"[+_\-\s]\s*u(?:_?eff)?(?![a-z])(?:\s*\([^)]*\))?|(?<=gga)u(?![a-z])", re.IGNORECASE)
_DISPERSION = re.compile(
    r"[+_\-\s]*(?:r?vv10|vdw).*|[+_\-\s]+(?:dft[-_]?)?(?:d[234]|ts|mbd|ddsc)(?![a-z0-9]).*", re.IGNORECASE
)
# The version of a set of POTCARs, as in PBE_54 and PBE_52_W_HASH.
_SET_OF_POTCARS = re.compile(r"_\d\d(?:_W_HASH)?$", re.IGNORECASE)
_SHOWN = 40


class StatementError(ValueError):
    """Statements about one calculation contradict each other, or one of them is malformed.

    Args:
        reason: A short reason that many calculations share; they are counted by reason.
        detail: What is wrong with this calculation.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Functional:
    """What is stated about the functional of a calculation.

    Attributes:
        name: Functional, without additions such as +U; empty if only additions are stated.
        with_u: Whether a Hubbard U was used; None if that is not stated.
        dispersion: Whether a dispersion correction is stated.
    """

    name: str
    with_u: bool | None = None
    dispersion: bool = False

    def __str__(self) -> str:
        return f"{self.name or 'unknown'}{'+U' if self.with_u else ''}{'+vdW' if self.dispersion else ''}"


def stating_field(column: str) -> str | None:
    """Return the field of a calculation that a table's column holds, such as ``run_type`` for ``parameters.run_type``.

    Returns:
        One of `STATING`; None for all other columns.
    """
    *sections, name = column.lower().split(".")
    return name if name in STATING and POTCAR_SECTIONS.isdisjoint(sections) else None


@lru_cache(maxsize=4096)
def named(field: str, text: str) -> Functional | None:
    """Return the functional that a field or column states; None if it states none.

    Args:
        field: Name of the field or column: one of `STATING`, in upper or lower case.
        text: Content of the field, such as ``PBE``, ``GGA+U``, ``PAW_PBE`` or ``r2SCAN Static``.
    """
    is_run_type = field.lower() in _RUN_TYPES
    words = text.split()
    if field.lower() == "calc_type":
        text = words[0] if words and words[0].lower() not in _TASKS else ""
    if _says_nothing(text):
        return None
    if text.strip().upper() == MIXED:
        return Functional(MIXED)
    if _EITHER.fullmatch(text.strip()):
        return Functional(GGA)
    with_u, rest = _WITH_U.search(text) is not None, _WITH_U.sub("", text)
    found = _DISPERSION.search(rest)
    base = rest[: found.start()].strip() if found is not None else ""
    return Functional(_name(base or rest), with_u or (False if is_run_type else None), bool(base))


def of_vasp(tags: Mapping[str, object]) -> Functional | None:
    """Return the functional stated in VASP's input; None if none is stated.

    In that case, VASP uses the functional that the POTCARs were made for.

    Args:
        tags: Content of an INCAR, or any mapping that may hold some of its tags.
    """
    if _TAGS.isdisjoint(tags):
        return None
    name, dispersion = "", _switched_on(tags.get("LUSE_VDW")) or tags.get("IVDW") not in (None, 0, "0", "", False)
    if _switched_on(tags.get("LHFCALC")):
        name = _HYBRID
    elif not _says_nothing(tags.get("METAGGA")):
        name = _name(str(tags["METAGGA"]))
    elif not _says_nothing(tags.get("GGA")) and not _switched_on(tags.get("LUSE_VDW")):
        # Functionals with nonlocal correlation use this tag for only a part of the functional.
        name = _name(str(tags["GGA"]))
    with_u = _switched_on(tags.get("LDAU")) and _any_u(tags.get("LDAUU"))
    return Functional(name, with_u or None, dispersion) if name or dispersion or with_u else None


@lru_cache(maxsize=4096)
def of_potcar(title: str) -> str:
    """Return the functional that a POTCAR was made for: ``GGA`` (PBE), ``LDA`` or ``PW91``; empty if not recognised.

    Args:
        title: Title or set, such as ``PAW_PBE Fe_pv 06Sep2000``, ``PBE Fe_pv``, ``PAW Fe 03Mar1998`` or ``PBE_54``.
    """
    words = title.split()
    first = _SET_OF_POTCARS.sub("", words[0]) if words else ""
    if len(words) > 1 and first.upper() in ("PAW", "US", "NC"):  # titles of LDA POTCARs do not state the functional
        return "LDA"
    found = _BY_KEY.get(_key(first), "")
    return found if found in (GGA, "LDA", "PW91") else ""  # some element symbols are also names of functionals


def agreed(statements: Iterable[Functional]) -> Functional | None:
    """Return the functional of a calculation, from everything stated about it; None if nothing is stated.

    Raises:
        StatementError: Two statements contradict each other.
    """
    given = list(statements)
    names = {one.name for one in given if one.name}
    if any(name.upper().startswith(_HYBRIDS) for name in names):
        names.discard(_HYBRID)  # a less precise statement of the same functional
    u = {one.with_u for one in given} - {None}
    if len(names) > 1 or len(u) > 1:
        raise StatementError("contradictory functionals", " and ".join(sorted({str(one) for one in given})))
    if not given:
        return None
    return Functional(next(iter(names), ""), next(iter(u), None), any(one.dispersion for one in given))


def of_row(row: Mapping[str, object]) -> Functional | None:
    """Return the functional that a row of a table states; None if it states none.

    Args:
        row: Content of the columns that state a functional, by name; a list holds several statements.

    Raises:
        StatementError: Two statements contradict each other, or one is not text.
    """
    found = []
    for column, value in row.items():
        for text in value if isinstance(value, list) else [value]:
            if text is not None and not isinstance(text, str):
                raise StatementError(f"malformed {column}", f"found {text!r:.80}")
            found.append(named(stating_field(column) or column, text or ""))
    return agreed(one for one in found if one is not None)


def _key(text: str) -> str:
    """Return the letters and digits of a name in upper case, which all spellings of the name share."""
    return re.sub(r"[^A-Z0-9]", "", text.upper())


def _name(text: str) -> str:
    """Return this module's name of a functional; for an unknown functional, its letters and digits in upper case."""
    key = _key(text)
    return _BY_KEY.get(key, (key or text.strip())[:_SHOWN])


def _says_nothing(value: object) -> bool:
    return value is None or str(value).strip(" \t-.").upper() in _NOTHING


def _switched_on(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.strip().strip(".").upper().startswith("T"))


def _any_u(values: object) -> bool:
    """Return whether any U is non-zero; true if `values` is not a collection, such as None."""
    items = values.values() if isinstance(values, Mapping) else values
    if isinstance(items, str):
        items = items.split()
    return not isinstance(items, Iterable) or any(str(item).strip("0.") for item in items)
