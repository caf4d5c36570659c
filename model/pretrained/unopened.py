"""Published weights that equiscreen was never tested with: their addresses are known, but not their SHA-256.

equiscreen downloads no file whose hash it does not know, so users must download these files themselves.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...pipeline.energy_schemes import MATPES_PBE, OMAT24, OWN, R2SCAN, UNCORRECTED

_ASL = "ASL (academic use only)"
_MP = "https://github.com/ACEsuit/mace-mp/releases/download"
_FOUNDATIONS = "https://github.com/ACEsuit/mace-foundations/releases/download"
_OFF = "https://raw.githubusercontent.com/ACEsuit/mace-off/main/mace_off23"
_MACE_MP = "Batatia et al., arXiv:2401.00096"
_MACE_OFF = "Kovács et al., arXiv:2312.15211"
_MATPES = "Kaplan et al., arXiv:2503.04070"
_NEQUIP = "https://www.nequip.net/models/mir-group"
_NEQUIP_OAM = "Kavanagh et al., arXiv:2607.28461; doi:10.5281/zenodo.16980200"


@dataclass(frozen=True, slots=True)
class Unopened:
    """One file of published weights that equiscreen was never tested with.

    Attributes:
        name: Name of the model.
        url: Address of the file, or of the page that offers it.
        scheme: Energy scheme of its energies.
        functional: Functional of the training labels.
        training_data: Data sets that the model was trained on.
        licence: Licence of the weights, as their source states it.
        citation: Publication that describes the model.
    """

    name: str
    url: str
    scheme: str
    functional: str
    training_data: str
    licence: str
    citation: str


# Addresses and licences of MACE as in mace-torch 0.3.16, mace/calculators/foundations_models.py; of NequIP and Allegro
# as in Matbench Discovery, models/nequip/*.yml and models/allegro/*.yml.
UNOPENED = {
    name: Unopened(name, url, scheme, functional, data, licence, citation)
    for name, url, scheme, functional, data, licence, citation in (
        *(
            (name, f"{_MP}/{file}", UNCORRECTED, "PBE(+U)", "MPtrj", "MIT", _MACE_MP)
            for name, file in (
                ("mace-mp-0-small", "mace_mp_0/2023-12-10-mace-128-L0_energy_epoch-249.model"),
                ("mace-mp-0-medium", "mace_mp_0/2023-12-03-mace-128-L1_epoch-199.model"),
                ("mace-mp-0-large", "mace_mp_0/MACE_MPtrj_2022.9.model"),
                ("mace-mp-0b-small", "mace_mp_0b/mace_agnesi_small.model"),
                ("mace-mp-0b-medium", "mace_mp_0b/mace_agnesi_medium.model"),
                ("mace-mp-0b2-small", "mace_mp_0b2/mace-small-density-agnesi-stress.model"),
                ("mace-mp-0b2-medium", "mace_mp_0b2/mace-medium-density-agnesi-stress.model"),
                ("mace-mp-0b2-large", "mace_mp_0b2/mace-large-density-agnesi-stress.model"),
                ("mace-mp-0b3-medium", "mace_mp_0b3/mace-mp-0b3-medium.model"),
            )
        ),
        (
            "mace-mpa-0-medium",
            f"{_MP}/mace_mpa_0/mace-mpa-0-medium.model",
            UNCORRECTED,
            "PBE(+U)",
            "MPtrj and sAlex",
            "MIT",
            _MACE_MP,
        ),
        *(
            (
                f"mace-omat-0-{size}",
                f"{_MP}/mace_omat_0/mace-omat-0-{size}.model",
                OMAT24,
                "PBE(+U)",
                "OMat24",
                _ASL,
                _MACE_MP,
            )
            for size in ("small", "medium")
        ),
        *(
            (
                f"mace-matpes-{functional.lower()}-0",
                f"{_FOUNDATIONS}/mace_matpes_0/MACE-matpes-{functional.lower()}-omat-ft.model",
                scheme,
                functional,
                "OMat24, then MatPES",
                _ASL,
                _MATPES,
            )
            for functional, scheme in (("PBE", MATPES_PBE), ("r2SCAN", R2SCAN))
        ),
        *(
            (f"mace-off23-{size}", f"{_OFF}/MACE-OFF23_{size}.model", OWN, "ωB97M-D3(BJ)", "SPICE", _ASL, _MACE_OFF)
            for size in ("small", "medium", "large")
        ),
        *(
            (
                f"{name.lower()}-0.1",
                f"{_NEQUIP}/{name}:0.1",
                UNCORRECTED,
                "PBE(+U)",
                "OMat24, then sAlex and MPtrj" if "OAM" in name else "MPtrj",
                "CC BY 4.0",
                _NEQUIP_OAM,
            )
            for name in ("NequIP-OAM-L", "NequIP-OAM-XL", "NequIP-MP-L", "Allegro-OAM-L", "Allegro-MP-L")
        ),
    )
}


def advice(model: Unopened) -> str:
    """Return how to use a model, and what is not known about it."""
    return (
        f"equiscreen was never tested with this model and does not know the SHA-256 of its file, so the name is not "
        f"enough; download {model.url} (licence: {model.licence}), pass the path of the file, and set "
        f"`--scheme {model.scheme}`"
    )


def describe_unopened() -> str:
    """List the models, one per line."""
    return "\n".join(
        f"{model.name}: {model.scheme}; {model.training_data}; {model.licence}; {model.citation}; never "
        f"tested with equiscreen, SHA-256 unknown; download {model.url}"
        for model in UNOPENED.values()
    )
