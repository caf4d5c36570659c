"""Networks that must obey the laws: untrained and narrow, of every kind that a configuration allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.config.network import AllegroConfig, MaceConfig, NequipConfig, NetworkConfig
from equiscreen.model.layers.heads import neutral_statistics
from equiscreen.model.networks.allegro import AllegroNetwork
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.mace import MaceNetwork
from equiscreen.model.networks.nequip import NequipNetwork
from equiscreen.model.statistics import DataStatistics, HeadStatistics

from ..conftest import CUTOFF, ELEMENTS, REFERENCES


def head(**settings: Any) -> HeadConfig:
    """Configuration of a narrow head."""
    return HeadConfig(**{"channels": 2, **settings})


# Every kind in equivariance.tensors.TENSORS, formulas, irreps and both transforms, for structures and for atoms.
EVERY_HEAD = {
    "gap": head(),
    "charge": head(per="atom"),
    "total": head(extensive=True),
    "hardness": head(transform="log"),
    "handedness": head(tensor="pseudoscalar"),
    "polarity": head(tensor="vector"),
    "dipole": head(tensor="dipole", extensive=True),
    "spin": head(tensor="axial_vector", per="atom"),
    "shielding": head(tensor="matrix", per="atom"),
    "permittivity": head(tensor="symmetric", transform="log"),
    "born": head(tensor="symmetric", per="atom", shape=(6,)),
    "gyration": head(tensor="ij=ji", pseudo=True),
    "piezo": head(tensor="piezoelectric", shape=(3, 6)),
    "stiffness": head(tensor="elastic", shape=(6, 6)),
    "octopole": head(irreps="2x2o + 3o"),
    "several": head(irreps="2x0e + 1e", per="atom"),
}
NATURAL_HEADS = {name: EVERY_HEAD[name] for name in ("gap", "charge", "total", "polarity", "permittivity", "born")}
POLAR_HEADS = {name: EVERY_HEAD[name] for name in ("gap", "dipole", "shielding", "permittivity")}

EVERY_HIDDEN = "2x0e + 2x0o + 2x1o + 2x1e + 2x2e"
EVERY_KIND: dict[str, Any] = {
    "symmetry": "o3",
    "hidden_irreps": EVERY_HIDDEN,
    "l_max": 4,
    "correlation": 2,
    "heads": EVERY_HEAD,
}
NETWORKS: dict[str, dict[str, Any]] = {
    "natural": {"heads": NATURAL_HEADS, "correlation": 2},
    "natural, correlation 3": {},
    "o3": {
        "symmetry": "o3",
        "hidden_irreps": "3x0e + 2x0o + 2x1o + 2x1e + 2x2e + 2x2o",
        "n_interactions": 3,
        "correlation": 2,
    },
    "every head": EVERY_KIND,
    "so3": {"symmetry": "so3", "hidden_irreps": "3x0e + 2x1e + 2x2e", "correlation": 2, "heads": POLAR_HEADS},
    "heads only": {"energy": False, "correlation": 2, "heads": NATURAL_HEADS},
    "gate": {"nonlinearity": "gate", "correlation": 2},
    "mix": {"nonlinearity": "mix", "correlation": 2},
    "bessel": {"basis": "bessel", "correlation": 2},
    "deep": {"hidden_irreps": "4x0e + 2x1o", "n_interactions": 3, "correlation": 2, "l_max": 3},
    "shallow": {"hidden_irreps": "4x0e", "n_interactions": 1, "correlation": 1, "l_max": 0},
}


# NequIP-type networks: narrow versions of SevenNet, Nequix and NequIP.
NEQUIP: dict[str, dict[str, Any]] = {
    "sevennet": {
        "symmetry": "so3",
        "hidden_irreps": ("4x0e + 3x1e + 2x2e", "4x0e + 3x1e + 2x2e", "4x0e"),
        "envelope": "xplor",
        "envelope_onset": CUTOFF - 0.5,
    },
    "nequix": {
        "symmetry": "natural",
        "hidden_irreps": ("4x0e + 2x1o + 2x2e + 2x3o", "4x0e"),
        "l_max": 3,
        "layer_norm": True,
    },
    "sevennet with parity": {
        "symmetry": "o3",
        # Odd scalars influence the energy by way of 1e and 1o.
        "hidden_irreps": ("3x0e + 2x1o", "2x0e + 2x1e + 2x1o", "2x0e + 2x0o", "2x0e + 2x1e", "2x0e + 2x1o", "3x0e"),
        "l_max": 1,
        "self_connections": ("element", "element", "linear", "linear", "element", "linear"),
        "activation": "tanh",
        "gate_activation": "ssp",
        "radial_activation": "tanh",
        "readout_hidden": (3,),
        "readout_activation": "tanh",
    },
    "nequip": {
        "symmetry": "natural",
        "hidden_irreps": ("3x0e + 2x1o + 2x2e", "3x0e + 2x1o + 2x2e", "4x0e"),
        "radial_hidden": (6,),
        "sender_scales": True,
        "self_connections": ("none", "element", "none"),
        "residual": True,
        "gate_activation": "tanh",
        "readout_hidden": (4,),
        "readout_activation": "mish",
        "pair_repulsion": 6,
    },
}


def nequip_of(settings: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> NequipNetwork:
    """Build an untrained NequIP-type network with distinct energy scales."""
    torch.manual_seed(3)
    given = {"cutoff": CUTOFF, "embedding": 3, "l_max": 2, "radial_hidden": (8, 8)}
    statistics = DataStatistics(REFERENCES, (0.6, 0.7, 0.8))
    return NequipNetwork(NequipConfig(**{**given, **settings}), ELEMENTS, statistics, dtype).eval()


# Narrow versions of MACE-MP-0, of its later versions with density normalisation, Agnesi transform and repulsion, and of
# MACE-MH-1.
MACE: dict[str, dict[str, Any]] = {
    "mp-0": {"hidden_irreps": ("0e + 1o", "0e"), "l_max": 2, "correlation": (3, 2), "residual": (True, True)},
    "mp-0b": {
        "hidden_irreps": ("0e + 1o", "0e"),
        "l_max": 2,
        "correlation": (2, 2),
        "residual": (False, True),
        "density": (True, True),
        "transform": "agnesi",
        "repulsion": {},
    },
    "soft": {
        "hidden_irreps": ("0e",),
        "l_max": 1,
        "correlation": (3,),
        "residual": (False,),
        "readouts": ("linear",),
        "density": (True,),
        "basis": "gaussian",
        "transform": "soft",
        "envelope_on": "functions",
    },
    "mh-1": {
        "hidden_irreps": ("0e + 1o", "0e"),
        "edge_irreps": "2x0e + 2x1o",
        "edge_irreps_first": True,
        "l_max": 2,
        "correlation": (2, 2),
        "residual": (True, True),
        "nonlinear": (True, True),
        "transform": "agnesi",
        "envelope_on": "functions",
        "readouts": ("none", "biased"),
    },
}


def mace_of(settings: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> MaceNetwork:
    """Build an untrained MACE with equal energy scales."""
    torch.manual_seed(3)
    given = {
        "cutoff": CUTOFF,
        "channels": 3,
        "density": (False, False),
        "readouts": ("linear", "perceptron"),
        "radial_hidden": (8, 8),
    }
    statistics = DataStatistics(REFERENCES, (4.0, 4.0, 4.0))
    network = MaceNetwork(MaceConfig(**{**given, **settings}), ELEMENTS, statistics, dtype).eval()
    for name, x in network.named_parameters():
        if name.endswith(("nonlinear.alpha", "nonlinear.beta")):
            x.data.fill_(1.0)  # untrained, the density of neighbours has no effect, and forces are small
    return network


# Narrow versions of Allegro-OAM-L, and of a network with all other settings.
ALLEGRO: dict[str, dict[str, Any]] = {
    "oam": {"symmetry": "natural", "edge_irreps": ("0e + 1o + 2e", "0e"), "n_basis": 4},
    "splines": {
        "symmetry": "o3",
        "edge_irreps": ("0e + 1o + 1e", "0e + 1o", "0e"),
        "l_max": 1,
        "radial": "spline",
        "n_basis": 6,
        "spline_span": 4,
        "pair_cutoffs": {"Al": {"Cu": CUTOFF - 0.5}},
        "latent_activation": "ssp",
        "channel_weights": False,
        "sum_scales": True,
        "pair_repulsion": 6,
    },
}


def allegro_of(settings: Mapping[str, Any], dtype: torch.dtype = torch.float64) -> AllegroNetwork:
    """Build an untrained Allegro network with distinct energy scales."""
    torch.manual_seed(3)
    given = {
        "cutoff": CUTOFF,
        "l_max": 2,
        "scalars": 4,
        "channels": 3,
        "embedding": 6,
        "embedding_hidden": (6,),
        "latent_hidden": (6,),
        "readout_hidden": (5,),
    }
    statistics = DataStatistics(REFERENCES, (0.6, 0.7, 0.8))
    return AllegroNetwork(AllegroConfig(**{**given, **settings}), ELEMENTS, statistics, dtype).eval()


def network_of(
    settings: Mapping[str, Any],
    seed: int = 3,
    dtype: torch.dtype = torch.float64,
    elements: Sequence[int] = ELEMENTS,
) -> EquivariantNetwork:
    """Build an untrained network with distinct scales of energies and heads, and distinct shifts of heads."""
    torch.manual_seed(seed)
    given = {
        "cutoff": CUTOFF,
        "hidden_irreps": "4x0e + 3x1o + 2x2e",
        "n_radial": 4,
        "radial_hidden": 8,
        "readout_hidden": 4,
    }
    config = NetworkConfig(**{**given, **settings})
    statistics = DataStatistics(
        REFERENCES if elements == ELEMENTS else (0.0,) * len(elements),
        tuple(0.6 + 0.1 * (place % 3) for place in range(len(elements))),
        mean_neighbors=20.0,
        heads={name: head_statistics(kind, len(elements)) for name, kind in config.heads.items()},
    )
    return EquivariantNetwork(config, elements, statistics, dtype).eval()


def head_statistics(kind: HeadConfig, n_elements: int) -> HeadStatistics:
    """Random statistics of a head, with non-zero shifts."""
    neutral = neutral_statistics(kind, n_elements)
    rng = np.random.default_rng(9)
    shifts = tuple(tuple(float(x) for x in rng.uniform(-0.5, 0.5, len(row))) for row in neutral.shifts)
    return replace(neutral, shifts=shifts, scales=tuple(float(x) for x in rng.uniform(0.5, 2, len(neutral.scales))))
