"""Registry of published weights, by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...pipeline.energy_schemes import OMAT24, R2SCAN, UNCORRECTED

_SEVENNET = "Park et al., J. Chem. Theory Comput. 20, 4857 (2024)"
_NEQUIX = "Koker and Smidt, arXiv:2508.16067"
_MP: dict[str, Any] = {"schemes": {"": UNCORRECTED}, "functionals": {"": "PBE(+U)"}, "licence": "MIT"}
_FOLDER = "pretrained_potentials"
_SEVENNET_NETWORK: dict[str, Any] = {"cutoff": 5.0, "n_elements": 89, "symmetry": "so3"}
_NEQUIX_NETWORK: dict[str, Any] = {"cutoff": 6.0, "n_elements": 89, "symmetry": "o3"}
# The addresses that the package `nequix` (0.4.5) downloads from: each names a commit, whose files never change.
_NEQUIX_URL = "https://github.com/atomicarchitects/nequix/raw/{}/models/{}.nqx"
_NEQUIX_MP, _NEQUIX_OMAT = "7c2854de8e754b1a60274c7d9d2e014989ed632e", "9c852a9c4cce69ae5e75bc5a2cf670be21ff8c28"


@dataclass(frozen=True, slots=True)
class Published:
    """One set of published weights.

    Attributes:
        name: Name of the model, here and in its own code.
        file: Path inside the `sevenn` package, or name of the file that its authors distribute.
        packaged: Whether the `sevenn` package contains the file.
        purpose: Structures or properties that the model is suited for.
        schemes: Energy scheme by fidelity; "" stands for a model with one fidelity.
        functionals: Functional of the training labels, by fidelity.
        training_data: Data sets that the model was trained on.
        licence: Licence of the weights.
        citation: Publication that describes the model.
        cutoff: Cutoff radius, angstrom.
        n_elements: Number of elements that the model covers.
        symmetry: Group under which the model is equivariant: ``so3`` or ``o3``.
        size: Size of the file, bytes; accurate to 1 % for Nequix's files.
        sha256: Hashes of `file`, and then of the same weights in other formats; a file with any other hash is not
            recognised.
        url: Address of the file, if no package contains it.
        aliases: Other names of the model.
    """

    name: str
    file: str
    packaged: bool
    schemes: Mapping[str, str]
    functionals: Mapping[str, str]
    training_data: str
    licence: str
    citation: str
    purpose: str
    cutoff: float
    n_elements: int
    symmetry: str
    size: int
    sha256: tuple[str, ...]
    url: str = ""
    aliases: tuple[str, ...] = ()


REGISTRY = {
    model.name: model
    for model in (
        Published(
            "7net-0",
            f"{_FOLDER}/SevenNet_0__11Jul2024/checkpoint_sevennet_0.pth",
            packaged=True,
            sha256=("7052cb42b7b3be42b40b97fa0d21077a48c54b5548948fc4dcf346629f813c36",),
            training_data="MPtrj",
            citation=_SEVENNET,
            purpose="inorganic crystals of all kinds; the default",
            size=10_268_648,
            **_MP,
            **_SEVENNET_NETWORK,
        ),
        Published(
            "7net-l3i5",
            f"{_FOLDER}/SevenNet_l3i5/checkpoint_l3i5.pth",
            packaged=True,
            sha256=("a7ff190d41efe5b8317a03d20a468e4036a1a3e64e0b14fdbab64ac3f4bfc09d",),
            training_data="MPtrj",
            citation=_SEVENNET,
            purpose="like 7net-0, but with harmonics up to degree 3: slower; more accurate according to its authors",
            size=14_345_754,
            **_MP,
            **_SEVENNET_NETWORK,
        ),
        Published(
            "7net-mf-0",
            f"{_FOLDER}/SevenNet_MF_0/checkpoint_sevennet_mf_0.pth",
            packaged=True,
            sha256=("81791329b37d445f46b531578c182c41792d98c7814222c9e5dde276402225fd",),
            schemes={"PBE": UNCORRECTED, "R2SCAN": R2SCAN},
            functionals={"PBE": "PBE(+U)", "R2SCAN": "r2SCAN"},
            training_data="MPtrj, and r2SCAN calculations of the Materials Project",
            licence="MIT",
            citation="Kim et al., J. Am. Chem. Soc. 147, 1042 (2025)",
            purpose="energies of two functionals, PBE and r2SCAN, from one network",
            size=10_322_158,
            **_SEVENNET_NETWORK,
        ),
        *(
            Published(
                name,
                f"{name}.nqx",
                packaged=False,
                training_data=data,
                citation=_NEQUIX,
                purpose=purpose,
                sha256=hashes,
                url=_NEQUIX_URL.format(commit, name),
                size=2_842_366,
                **{**_MP, **_NEQUIX_NETWORK, **other},
            )
            for name, data, purpose, commit, hashes, other in (
                (
                    "nequix-mp-1",
                    "MPtrj",
                    "inorganic crystals of all kinds; mirror images have equal energies",
                    _NEQUIX_MP,
                    (
                        "1647af8e627e1afa11e2bfadeab0797326513a521afd7dd01606a96f56783eee",
                        "3cda805e7233857c30e2173c2bd91b6647fb170de7b23346b176d1242dab8061",
                    ),
                    {},
                ),
                (
                    "nequix-mp-1-pft",
                    "MPtrj, and phonons",
                    "phonons, with energies that still follow MPtrj",
                    _NEQUIX_MP,
                    ("a88aeaed71fd447572dc57af21d469207d7737b85a6dbb66f8c38156f175c5f1",),
                    {},
                ),
                (
                    "nequix-mp-1-pft-no-cotrain",
                    "MPtrj, then phonons",
                    "phonons; its energies follow MPtrj less closely than those of nequix-mp-1-pft",
                    _NEQUIX_MP,
                    ("c191f7208e15f7caf8cc5c1202444652f301fed2f41d85f9a8080af3843ef308",),
                    {"aliases": ("nequix-mp-1-pft-nocotrain",)},  # its name in the README of Nequix
                ),
                (
                    "nequix-omat-1",
                    "OMat24",
                    "crystals far from equilibrium; energies follow OMat24, not the Materials Project",
                    _NEQUIX_OMAT,
                    ("2d0802ae7f5915cb488c44d25649d98404a103697e6500abb40f515e003a46a6",),
                    {"schemes": {"": OMAT24}},
                ),
                (
                    "nequix-oam-1",
                    "OMat24, then sAlex and MPtrj",
                    "stability of inorganic crystals: the most training data of all",
                    _NEQUIX_OMAT,
                    ("6a43475eaeb32a7a049f36c1306d78aa1e7a17e8af37aeda7901c8fec0ca845c",),
                    {},
                ),
                (
                    "nequix-oam-1-pft",
                    "OMat24, then sAlex and MPtrj, and phonons",
                    "like nequix-oam-1, and also phonons",
                    _NEQUIX_OMAT,
                    ("4ce693d68886512aab50c84ea2400efd68163e11155f7c7babe98e695177e809",),
                    {},
                ),
            )
        ),
    )
}


def describe_registry() -> str:
    """List the published weights, one per line."""
    lines = []
    for model in REGISTRY.values():
        fidelities = ", ".join(f"{name} = {scheme}" if name else scheme for name, scheme in model.schemes.items())
        where = "pip install 'equiscreen[pretrained]'" if model.packaged else f"download {model.url}"
        lines.append(f"{model.name}: {fidelities}; {model.training_data}; {model.licence}; {model.citation}; {where}")
    return "\n".join(lines)
