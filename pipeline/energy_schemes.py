"""Energy schemes: the DFT settings and corrections behind the energies of a model, dataset or table of references.

Only energies of the same scheme can be compared. The MP2020 corrections turn `UNCORRECTED` energies into `CORRECTED`
ones.

- ``mp-uncorrected``: PBE and PBE+U with the settings of the Materials Project, before its corrections.
- ``mp2020-corrected``: the same energies with the MP2020 corrections (Wang et al., Scientific Reports 11, 15496,
  2021).
- ``omat24``: PBE and PBE+U with the settings and pseudopotentials of OMat24.
- ``matpes-pbe``: PBE with the settings of MatPES.
- ``r2scan``: calculations with the r2SCAN functional.
- ``own``: any other scheme. Its energies are compared only with energies of the same model, of a model that was
  distilled from it, or of a model that the user declares to be trained on the same energies.

Energies that include a dispersion correction follow another scheme, such as ``mp-uncorrected+d3``. They are compared
only with energies that include the same correction, and get no MP2020 corrections.
"""

from __future__ import annotations

UNCORRECTED, CORRECTED = "mp-uncorrected", "mp2020-corrected"
OMAT24, MATPES_PBE, R2SCAN = "omat24", "matpes-pbe", "r2scan"
OWN = "own"
SCHEMES = (UNCORRECTED, CORRECTED, OMAT24, MATPES_PBE, R2SCAN, OWN)
# Dispersion corrections; see `export.runtime.dispersion`.
NO_DISPERSION, DISPERSIONS = "none", ("d3", "d3-atm")


def plus_dispersion(scheme: str, dispersion: str) -> str:
    """Return the scheme of energies after a dispersion correction."""
    return scheme if dispersion == NO_DISPERSION else f"{scheme}+{dispersion}"


def dispersion_of(scheme: str) -> str:
    """Return the dispersion correction that the energies of a scheme include; ``none`` if there is none."""
    return scheme.partition("+")[2] or NO_DISPERSION


def without_dispersion(scheme: str) -> str:
    """Return the scheme of the same energies without their dispersion correction."""
    return scheme.partition("+")[0]
