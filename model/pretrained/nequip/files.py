"""Files of NequIP and its extension Allegro: the parts that do not depend on the architecture.

A checkpoint (`.ckpt`) holds the weights and the settings that the network was built from. A package (`.nequip.zip`)
holds the built modules, which are read as records: its settings are attributes of the modules, so it does not matter
whether they were trained from scratch or from another file.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from ase.data import atomic_numbers
from torch import Tensor

from ....pipeline.errors import CheckpointError
from ...equivariance.irreps import Irrep
from ...networks.nequip import COULOMB
from ...statistics import DataStatistics
from ..e3nn_weights import check_finite
from ..records.package import ModulePackage
from ..records.record import Record
from ..records.torchscript import ScriptArchive

# The newest versions of the codes, and of packages, whose files are known.
NEWEST, NEWEST_PACKAGE = {"nequip": (0, 19), "allegro": (0, 8)}, 2
CODES = {"nequip": "NequIP", "allegro": "Allegro"}
METADATA = "model/package_metadata.txt"
INERT = ("nequip.", "allegro.")
TRAINERS = {
    f"nequip.train.{name}"
    for name in ("NequIPLightningModule", "EMALightningModule", "ConFIGLightningModule", "EMAConFIGLightningModule")
}
# Activations of perceptrons, by the class of their modules. None and "None" are linear, but have different gains.
ACTIVATION_MODULES = {"SiLU": "silu", "Mish": "mish", "ShiftedSoftplus": "ssp", "Tanh": "tanh", "Identity": "None"}
LINEAR = (None, "None", "null")
# The first version in which the pair repulsion has its own envelope instead of the envelope of the radial basis.
OWN_ENVELOPE = (0, 17)
SMALLEST_SCALE = 1e-12  # eV
# Modifiers that only choose faster code for the same network.
KERNELS = {
    *("enable_OpenEquivariance", "enable_CuEquivariance"),
    *("enable_CuEquivarianceContracter", "enable_TritonContracter"),
}
# A buffer that every network has, at its top.
MARKER = "per_type_energy_scale_shift.scales"


@dataclass(frozen=True)
class NequipFile:
    """Content of a checkpoint, a package or a TorchScript archive.

    Attributes:
        path: Path of the file, for error messages.
        types: Names of the atom types, in the order of the weights.
        saved: Tensors by name, as in the file.
        settings: Settings of a checkpoint, as its builder received them, with the builder as ``_target_``; None for
            other files.
        modules: The modules of a package or a TorchScript archive, in the order in which they act; None for a
            checkpoint.
        version: First two numbers of the version of NequIP; empty for an archive of `nequip-compile`.
    """

    path: str | Path
    types: Sequence[str]
    saved: Mapping[str, Any]
    settings: Mapping[str, Any] | None
    modules: Record | None
    version: tuple[int, ...]

    @cached_property
    def state(self) -> Mapping[str, Tensor]:
        """Weights and constants by name, starting with the name of the module; averaged weights if the file has them.

        Raises:
            CheckpointError: The file has several models, its averaged weights do not fit, or a weight is not finite.
        """
        state = self.saved if self.settings is None else _trained(self.saved, self.settings, self.path)
        check_finite(state, self.path)
        return state

    @property
    def architecture(self) -> str:
        """``allegro`` or ``nequip``."""
        if self.modules is not None:
            return "allegro" if "allegro" in self.modules.children() else "nequip"
        target = str((self.settings or {}).get("_target_"))
        return "allegro" if target.startswith("allegro.model.") else "nequip"

    def unsupported(self, name: str, what: str) -> CheckpointError:
        """Return the error for a setting that is not supported."""
        return CheckpointError(
            f"{self.path}: unsupported architecture: {name} {what}; docs/pretrained.md lists what can be imported"
        )

    def check_settings(self, builders: set[str], known: set[str]) -> Mapping[str, Any]:
        """Return the settings of a checkpoint.

        Args:
            builders: Supported values of ``_target_``.
            known: Supported settings.

        Raises:
            CheckpointError: The builder or a setting is unknown.
        """
        settings = self.settings or {}
        target = settings.get("_target_")
        if target not in builders:
            code = CODES[self.architecture]
            raise CheckpointError(
                f"{self.path}: unsupported architecture: _target_ is {target}; if it is a fine-tuned or modified "
                f"{code} network, package it with `nequip-package`, and import the package"
            )
        if unknown := sorted(settings.keys() - known):
            raise CheckpointError(
                f"{self.path}: unsupported architecture: unknown setting {unknown[0]}; "
                "docs/pretrained.md lists what can be imported"
            )
        return settings

    def whole_number(self, name: str, power: float) -> int:
        """Return an exponent as an integer.

        Raises:
            CheckpointError: The exponent is not an integer.
        """
        if power != int(power):
            raise self.unsupported(name, f"is {power}, not an integer")
        return int(power)

    def elements(self) -> tuple[list[int], Tensor]:
        """Return the atomic numbers in ascending order, and the index of each element's type, int64[n].

        Raises:
            CheckpointError: A type is not an element.
            ValueError: Two types are the same.
        """
        for name in self.types:
            if atomic_numbers.get(name, 0) < 1:
                raise CheckpointError(
                    f"{self.path}: the atom type {name} is not an element; only networks of elements can be imported"
                )
        numbers = [atomic_numbers[name] for name in self.types]
        if len(set(numbers)) < len(numbers):
            raise ValueError("type_names: contains duplicates")
        order = sorted(range(len(numbers)), key=lambda place: numbers[place])
        return [numbers[place] for place in order], torch.tensor(order)

    def statistics(self, order: Tensor) -> DataStatistics:
        """Return energy scales and shifts in the order of the elements."""
        scale, shift = (
            _by_type(self.state[f"per_type_energy_scale_shift.{name}"], order, default)
            for name, default in (("scales", 1.0), ("shifts", 0.0))
        )
        # The pair repulsion is divided by the scale, so the scale must not be zero.
        scale = torch.where(scale == 0, SMALLEST_SCALE, scale)
        return DataStatistics(tuple(shift.tolist()), tuple(scale.tolist()))

    def perceptron(self, name: str, activation: str | None, *, forward: bool = True) -> list[Tensor]:
        """Return the matrices of a perceptron with its gains folded in; one matrix if it is linear.

        Args:
            name: Name of the module.
            activation: Activation of the perceptron; None and "None" are linear.
            forward: Whether the weights of a checkpoint are normalised by the widths of their inputs, rather than of
                their outputs; a package holds the factors.

        Raises:
            KeyError: The file has no such perceptron.
        """
        pattern = re.escape(name) + r"\.mlp\.(?:weights\.)?(\d+)(?:\.weight)?"
        found = {
            int(match[1]): tensor.double()
            for key, tensor in self.state.items()
            if (match := re.fullmatch(pattern, key)) and tensor.ndim == 2
        }
        matrices = [found[place] for place in sorted(found)]
        if not matrices:
            raise KeyError(name)
        linear = 0 if forward else len(matrices) - 1
        gain = 1.0 if activation is None else math.sqrt(2)
        factors = [
            (1.0 if place == linear else gain) / math.sqrt(m.shape[0 if forward else 1])
            for place, m in enumerate(matrices)
        ]
        if self.modules is not None:
            factors = self._stored_factors(name, len(matrices)) or factors
        matrices = [m * factor for m, factor in zip(matrices, factors, strict=True)]
        if activation in LINEAR and len(matrices) > 1:
            return [torch.linalg.multi_dot(matrices)]
        return matrices

    def _stored_factors(self, name: str, count: int) -> list[float]:
        """Return the factors of a packaged perceptron's matrices; an empty list if the package does not store them."""
        module = self.module(*name.split("."), "mlp")
        found = [layer.get("alpha") for layer in module.children().values() if layer.name == "ScalarLinearLayer"]
        if not found:  # the layers of a linear perceptron have one factor together
            found = [module.get("alpha"), *[1.0] * (count - 1)]
        return [] if None in found or len(found) != count else [float(factor) for factor in found]

    def activation_of(self, setting: str, *names: str) -> str | None:
        """Return the activation of a perceptron of a package.

        Args:
            setting: Name of the setting, for error messages.
            *names: Names of the modules on the way to its ``mlp``.

        Raises:
            CheckpointError: The activation is not supported.
        """
        layers = self.module(*names, "mlp").children().values()
        # A linear perceptron holds a list of its weights instead of layers.
        found = {layer.name for layer in layers} - {"ScalarLinearLayer", "ParameterList"}
        for name in found:
            if name not in ACTIVATION_MODULES:
                raise self.unsupported(setting, f"is {name}")
        return ACTIVATION_MODULES[found.pop()] if found else None

    def module(self, *names: str) -> Record:
        """Return a module of a package by the names on the way to it."""
        if self.modules is None:
            raise TypeError("checkpoints hold no modules")
        return self.modules.child(*names)

    def repulsion(self, *cutoff: str) -> int | None:
        """Return the power of the envelope of the pair repulsion; None if the network has no pair repulsion.

        Args:
            *cutoff: Names of the modules on the way to the envelope of the repulsion in packages before `OWN_ENVELOPE`.

        Raises:
            CheckpointError: The pair potential is not supported.
        """
        if self.modules is None:
            settings = (self.settings or {}).get("pair_potential")
            power = None if settings is None else self._configured_repulsion(settings)
        else:
            module = self.modules.children().get("pair_potential")
            power = None if module is None else self._packaged_repulsion(module, cutoff)
        return None if power is None else self.whole_number("pair_potential p", power)

    def _configured_repulsion(self, settings: Mapping[str, Any]) -> float:
        target = str(settings.get("_target_"))
        if target != "nequip.nn.pair_potential.ZBL":
            raise self.unsupported("pair_potential", f"is {target}")
        if settings.get("units") != "metal":
            raise self.unsupported("pair_potential", f"has units {settings.get('units')!r}, not 'metal'")
        if list(settings["chemical_species"]) != list(self.types):
            raise self.unsupported("pair_potential", "has different elements from the atom types")
        radial = (self.settings or {}).get("radial_chemical_embed") or self.settings or {}
        return float((settings if self.version >= OWN_ENVELOPE else radial).get("polynomial_cutoff_p", 6))

    def _packaged_repulsion(self, module: Record, cutoff: Sequence[str]) -> float:
        if module.name != "ZBL":
            raise self.unsupported("pair_potential", f"is {module.kind}")
        if not math.isclose(float(self.state["pair_potential._qqr2exesquare"]), COULOMB / 2, rel_tol=1e-6):
            raise self.unsupported("pair_potential", "has units other than 'metal'")
        if self.state["pair_potential.atomic_numbers"].tolist() != [atomic_numbers.get(name) for name in self.types]:
            raise self.unsupported("pair_potential", "has different elements from the atom types")
        envelope = module.children().get("cutoff") or self.module(*cutoff)
        return float(envelope.fields["p"])


def open_checkpoint(content: Mapping[str, Any], path: str | Path) -> NequipFile:
    """Read the content of a checkpoint.

    Args:
        content: Content of the file.
        path: Path of the file, for error messages.

    Raises:
        CheckpointError: The file is from a newer version, or its training module or a modifier is not supported.
    """
    settings, info = _unmodified(content["hyper_parameters"]["model"], path), content["hyper_parameters"]["info_dict"]
    version = check_version(info["versions"], path)
    trainer = info.get("training_module", {}).get("_target_")
    if trainer not in TRAINERS:
        raise CheckpointError(
            f"{path}: the training module {trainer} is not supported; package the model with `nequip-package`, and "
            "import the package"
        )
    types = [str(name) for name in settings.get("type_names", ())]
    return NequipFile(path, types, content["state_dict"], settings, None, version)


def open_package(path: str | Path) -> NequipFile:
    """Read the content of a package.

    Raises:
        CheckpointError: The file is damaged, unsafe or from a newer version, contains several models, or has
            unsupported modules.
    """
    package = ModulePackage(Path(path), INERT)
    metadata = yaml.safe_load(package.text(METADATA))
    number = int(metadata["package_version_id"])
    if number > NEWEST_PACKAGE:
        raise CheckpointError(
            f"{path} has package version {number}, but only versions up to {NEWEST_PACKAGE} are supported; try a newer "
            "version of equiscreen"
        )
    version = check_version(metadata["versions"], path)
    models = package.unpickled("model/eager_model.pkl")
    if list(models.children()) != ["sole_model"]:
        raise CheckpointError(f"{path} contains the models {', '.join(models.children())}; package each separately")
    graph = models.child("sole_model")
    network = _sequential(graph, path)
    tensors = {name: tensor.detach() for name, tensor in network.tensors()}
    return NequipFile(path, [str(name) for name in graph.fields["type_names"]], tensors, None, network, version)


def open_script(archive: ScriptArchive, path: str | Path) -> NequipFile:
    """Read the content of a TorchScript archive that `nequip-compile` of NequIP 0.7 or later wrote.

    Its modules have the same names and attributes as in a package.

    Raises:
        CheckpointError: The modules are not supported.
    """
    network = _sequential(archive.module, path)
    tensors = {name: tensor.detach() for name, tensor in network.tensors()}
    return NequipFile(path, archive.extra["type_names"].split(), tensors, None, network, ())


def _sequential(module: Record, path: str | Path) -> Record:
    """Return the modules that compute the energy, which lie inside the modules that derive forces."""
    while module.name != "SequentialGraphNetwork":
        if module.name not in {"ForceStressOutput", "GraphModel"}:
            raise CheckpointError(
                f"{path}: unsupported architecture: {module.kind} is unknown; docs/pretrained.md "
                "lists what can be imported"
            )
        module = next(iter(module.children().values()))
    return module


def irreps_of(irreps: Record | Sequence[Any]) -> Iterator[tuple[int, Irrep]]:
    """Yield multiplicities and irreps of recorded `e3nn.o3.Irreps`; in TorchScript they are tuples."""
    for pair in _content(irreps):
        count, irrep = _content(pair)
        degree, parity = _content(irrep)
        yield int(count), Irrep(int(degree), int(parity))


def _content(record: Record | Sequence[Any]) -> Sequence[Any]:
    """Return the content of a recorded tuple."""
    found: Sequence[Any] = (record.args or ((),))[0] if isinstance(record, Record) else record
    return found


def _unmodified(settings: Mapping[str, Any], path: str | Path) -> dict[str, Any]:
    """Return the settings of the network itself, without modifiers that only choose faster code."""
    if settings.get("_target_") == "nequip.model.modify":
        unknown = sorted({str(one["modifier"]) for one in settings["modifiers"]} - KERNELS)
        if unknown:
            raise CheckpointError(
                f"{path}: unsupported architecture: the modifier {unknown[0]}; package the checkpoint with "
                "`nequip-package`, and import the package"
            )
        return _unmodified(settings["model"], path)
    # The builders have two names each.
    target = re.sub(r"\.(allegro|nequip)_models\.", ".", str(settings.get("_target_")))
    return {**settings, "_target_": target}


def check_version(versions: Mapping[str, Any], path: str | Path) -> tuple[int, ...]:
    """Return the first two numbers of the version of NequIP.

    Raises:
        CheckpointError: The file is from a newer version of a code.
    """
    for code, newest in NEWEST.items():
        if code in versions and _numbers(versions[code]) > newest:
            raise CheckpointError(
                f"{path} is from {CODES[code]} {versions[code]}, but only versions up to {'.'.join(map(str, newest))} "
                "are supported; try a newer version of equiscreen"
            )
    return _numbers(versions["nequip"])


def _numbers(version: Any) -> tuple[int, ...]:
    return tuple(int(part) for part in str(version).split(".")[:2])


def _trained(state: Mapping[str, Any], settings: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """Return the weights, or averaged weights if the file has them, without the names of modules around the network."""
    (prefix,) = {name.removesuffix(MARKER) for name in state if name.endswith(MARKER)}
    if not prefix.startswith("model.sole_model."):
        raise CheckpointError(f"{path} contains several models, but only one can be imported; package each separately")
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    averaged = [tensor for name, tensor in state.items() if re.fullmatch(r"ema\.ema_weights?[._]\d+", name)]
    if not averaged:
        return found
    if not state["ema._extra_state"]["is_holding_ema_weights"]:
        raise CheckpointError(
            f"{path} was saved during validation, when averaged and raw weights are swapped; use another checkpoint"
        )
    radial = settings.get("radial_chemical_embed") or settings
    trained = {
        "bessel_weights": radial.get("bessel_trainable", False),
        "scales": settings.get("per_type_energy_scales_trainable", False),
        "shifts": settings.get("per_type_energy_shifts_trainable", False),
    }
    names = [
        name
        for name, x in found.items()
        if x.numel() and trained.get(name.rpartition(".")[2], re.search(r"\.weights?(\.\d+)?$", name))
    ]
    if [found[name].shape for name in names] != [tensor.shape for tensor in averaged]:
        raise CheckpointError(
            f"{path} is damaged: its averaged weights do not fit its network; copy or download it again"
        )
    return {**found, **dict(zip(names, averaged, strict=True))}


def _by_type(values: Tensor, order: Tensor, default: float) -> Tensor:
    flat = values.double().flatten()
    if not flat.numel():
        return torch.full((len(order),), default, dtype=torch.float64)
    return flat.expand(len(order)) if flat.numel() == 1 else flat[order]
