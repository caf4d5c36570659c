"""Published weights: where they come from, what they speak, and how they become networks of ours."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...pipeline.energy_schemes import OWN, SCHEMES
from ...pipeline.errors import CheckpointError, OutputExistsError, detail
from ..checkpoint import ModelCard, save_checkpoint
from ..networks.base import Network
from ..networks.reflection import mirror_violation
from ..networks.torch_potential import TorchPotential
from .nequix import read_nequix
from .registry import REGISTRY, Published
from .sevennet import from_sevennet, modality_name

MAX_FILE_BYTES = 4 << 30


def load_pretrained(
    source: str | Path, *, modality: str | None = None, energy_scheme: str | None = None, trust: bool = False
) -> tuple[Network, ModelCard]:
    """Make a network of ours from published weights, or from a file of SevenNet or Nequix.

    Nothing of the code that the weights were trained with is imported. Files are read without running code in them:
    PyTorch's restricted unpickler, with NumPy's arrays allowed.

    Args:
        source: A name in `REGISTRY`, or a file: SevenNet's .pth, Nequix's .pt or .nqx.
        modality: Of a model of several fidelities, which one.
        energy_scheme: Which energies the file speaks, one of `SCHEMES`; None takes what is known of the file.
        trust: Unpickle whatever the file asks for, which can run any code.

    Returns:
        The network, in float32 and evaluation mode, and what is known of it.

    Raises:
        CheckpointError: No such name or file, a file that is not what it should be, or an architecture that is not
            known here.
    """
    if energy_scheme is not None and energy_scheme not in SCHEMES:
        raise CheckpointError(f"--energy-scheme {energy_scheme}: there are {', '.join(SCHEMES)}")
    known = REGISTRY.get(str(source))
    path = _packaged(known) if known is not None else Path(source)
    network, fidelity = _read(path, modality, trust=trust)
    known = known or _recognised(path)
    so3 = network.config.symmetry == "so3"
    card = ModelCard("so3" if so3 else "o3", energy_scheme or OWN, origin={"file": path.name})
    if known is not None:
        scheme = energy_scheme or known.schemes[fidelity]
        card = replace(card, energy_scheme=scheme, origin={"file": path.name, **_origin(known, fidelity)})
    if so3:
        card = replace(card, mirror_violation=mirror_violation(TorchPotential(network), network.config))
    return network, card


def import_weights(
    source: str | Path,
    out: str | Path,
    *,
    modality: str | None = None,
    energy_scheme: str | None = None,
    trust: bool = False,
    overwrite: bool = False,
) -> str:
    """Write published weights as a checkpoint of ours; arguments as for `load_pretrained`.

    Returns:
        What the checkpoint is, in a line.

    Raises:
        CheckpointError: As for `load_pretrained`.
        OutputExistsError: The checkpoint exists.
    """
    target = Path(out)
    if target.exists() and not overwrite:
        raise OutputExistsError(f"{target}: exists; choose another --out, or say --overwrite")
    network, card = load_pretrained(source, modality=modality, energy_scheme=energy_scheme, trust=trust)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, network, card)
    count = sum(parameter.numel() for parameter in network.parameters())
    mirror = "".join(f"; a mirror changes {name} by up to {value:.0e}" for name, value in card.mirror_violation.items())
    unknown = "" if energy_scheme or card.origin.get("name") else " (not known of this file: say --energy-scheme)"
    return (
        f"{target}: {len(network.elements)} elements, cutoff {network.cutoff:g} angstrom, {count:,} weights, symmetry "
        f"{card.symmetry}, energies {card.energy_scheme}{unknown}{mirror}"
    )


def _origin(model: Published, fidelity: str) -> dict[str, str]:
    return {
        "name": model.name,
        "fidelity": fidelity,
        "functional": model.functionals[fidelity],
        "training_data": model.training_data,
        "licence": model.licence,
        "citation": model.citation,
    }


def _recognised(path: Path) -> Published | None:
    """What a file is, by its content; names can be anything."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return next((model for model in REGISTRY.values() if digest in model.sha256), None)


def _packaged(model: Published) -> Path:
    """The file of a model in the package that carries it, which is not imported."""
    if not model.packaged:
        raise CheckpointError(f"{model.name}: no package carries it; download {model.file} and give its path")
    spec = importlib.util.find_spec("sevenn")
    if spec is None or spec.origin is None:
        raise CheckpointError(f"{model.name}: is in the package sevenn; pip install 'equiscreen[pretrained]'")
    path = Path(spec.origin).parent / model.file
    if not path.is_file():
        raise CheckpointError(f"{model.name}: this version of the package sevenn lacks {model.file}")
    return path


def _read(path: Path, modality: str | None, *, trust: bool) -> tuple[Network, str]:
    """The network of a file, and the fidelity that was chosen."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file, and no model of that name; known are {', '.join(REGISTRY)}")
    if _unpacked_size(path) > MAX_FILE_BYTES:
        raise CheckpointError(f"{path}: larger than {MAX_FILE_BYTES >> 30} GiB")
    with path.open("rb") as file:
        first = file.read(1)
    if first == b"{":
        if modality is not None:
            raise CheckpointError(f"{path}: has one fidelity only; leave out --modality")
        return read_nequix(path), ""
    content = _unpickled(path, trust=trust)
    if not isinstance(content, dict) or not {"config", "model_state_dict"} <= content.keys():
        raise CheckpointError(f"{path}: no checkpoint of SevenNet or Nequix")
    try:
        fidelity = modality_name(content["config"], modality, path)
        return from_sevennet(content, fidelity, path), fidelity
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged, or of an unknown version: {detail(error)}") from error


def _unpacked_size(path: Path) -> int:
    """Bytes of a file, or of what a ZIP file (as PyTorch's are) says that it holds, if that is more."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return max(size, sum(item.file_size for item in archive.infolist()))
    except (zipfile.BadZipFile, ValueError, OSError):
        return size


def _unpickled(path: Path, *, trust: bool) -> Any:
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_harmless()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = sorted(set(_wanted(path)))
        if not wanted:
            raise CheckpointError(f"{path}: no checkpoint of SevenNet or Nequix") from error
        raise CheckpointError(
            f"{path}: wants to run {', '.join(wanted)}; if you know where the file comes from, say --trust"
        ) from error
    except Exception as error:  # torch raises many kinds for a file that is none of its own
        raise CheckpointError(f"{path}: no checkpoint of SevenNet or Nequix ({detail(error)})") from error


def _wanted(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_harmless()):
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - of a damaged pickle nothing is known, least of all how it fails
        return []


def _harmless() -> list[Any]:
    """Arrays of NumPy, under the names that they had before version 2 and have since."""
    rebuild = np._core.multiarray._reconstruct  # noqa: SLF001 - what pickles call
    dtypes = [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")]
    return [np.ndarray, np.dtype, (rebuild, "numpy.core.multiarray._reconstruct"), rebuild, *dtypes]
