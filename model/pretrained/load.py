"""Import of published weights: find the file, read it safely, and record its origin and energy scheme."""

from __future__ import annotations

import hashlib
import importlib.util
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ...pipeline.energy_schemes import OWN, SCHEMES
from ...pipeline.errors import CheckpointError, detail
from ...pipeline.runs.staging import ZIP, check_file
from ..checkpoint import ModelCard, save_checkpoint
from ..networks.base import Network
from ..networks.mace import MaceNetwork
from ..networks.reflection import MIRROR_STRUCTURES, mirror_violation
from ..networks.torch_potential import TorchPotential
from .mace import from_mace, read_mace
from .mace_script import mace_script_weights
from .mace_settings import MaceSettings
from .nequip.allegro import allegro_network
from .nequip.files import CODES, METADATA, open_checkpoint, open_package
from .nequip.nequip import nequip_network
from .nequix import read_nequix
from .records.saved_module import root_class
from .registry import REGISTRY, Published
from .script_archives import is_script, read_script_network
from .sevennet import from_sevennet, modality_name
from .state_files import read_state
from .unopened import UNOPENED, advice

MAX_FILE_BYTES = 4 << 30
KNOWN_CODES = "SevenNet, Nequix, NequIP, Allegro or MACE"


def load_pretrained(
    source: str | Path,
    *,
    modality: str | None = None,
    scheme: str | None = None,
    trust: bool = False,
    config: str | Path | None = None,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> tuple[Network, ModelCard]:
    """Convert published weights, or a file of SevenNet, Nequix, NequIP, Allegro or MACE, to a network of this package.

    The code that the weights were trained with is not imported. Unless `trust` is set, no code in a file is run: files
    are read with PyTorch's restricted unpickler, which also accepts NumPy arrays, and the modules in a MACE file are
    read as plain data.

    Example:
        >>> from equiscreen.model import load_pretrained
        >>> network, card = load_pretrained("7net-0")
        >>> len(network.elements), card.energy_scheme
        (89, 'mp-uncorrected')

    Args:
        source: A name in `REGISTRY` of a file that is part of the package `sevenn`, or the path of a file: SevenNet's
            .pth, Nequix's .pt or .nqx, .ckpt or .nequip.zip of NequIP and Allegro, MACE's .model, a TorchScript archive
            of MACE, NequIP or Allegro or, with `config`, a state dict of MACE.
        modality: Fidelity or head to use, if the model has several; None uses the file's default.
        scheme: Energy scheme of the file, one of `SCHEMES`; None uses the published scheme for a file in
            `REGISTRY`, and ``own`` for any other file.
        trust: Whether to unpickle everything in a checkpoint of SevenNet, NequIP or Allegro, which can run arbitrary
            code; other files are always read as plain data.
        config: File of settings, YAML or JSON, if `source` is a state dict (.pt, .safetensors or .npz) or a TorchScript
            archive of MACE.
        note: Called with a line about the next step, since each step may take a minute.

    Returns:
        The network, in evaluation mode, and its model card. The dtype of the network is float32; a MACE network has the
        dtype of its file.

    Raises:
        CheckpointError: The name or file does not exist, the modality or energy scheme is unknown, the file is damaged
            or not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE, or its architecture is not supported.
    """
    if scheme is not None and scheme not in SCHEMES:
        raise CheckpointError(f"unknown --scheme {scheme}; choose one of {', '.join(SCHEMES)}")
    named = REGISTRY.get(str(source))
    path = _packaged_file(named) if named is not None else Path(source)
    note(f"import: reading {path.name}")
    network, fidelity = _read(path, modality, trust=trust) if config is None else _with_config(path, config, modality)
    digest = _sha256(path)
    known = next((model for model in REGISTRY.values() if digest in model.sha256), None)
    if named is not None and known is not named:
        raise CheckpointError(
            f"{named.name}: the SHA-256 of {path} does not match the published file; reinstall sevenn, or pass "
            "the path of the file instead of the name"
        )
    so3 = network.config.symmetry == "so3"
    origin = {"file": path.name}
    if isinstance(network, MaceNetwork):
        origin |= {"sha256": digest, **({"head": fidelity} if fidelity else {})}
    card = ModelCard("so3" if so3 else "o3", scheme or OWN, origin=origin)
    if known is not None:
        scheme = scheme or known.schemes[fidelity]
        card = replace(card, energy_scheme=scheme, origin={"file": path.name, **_origin(known, fidelity)})
    if so3:
        note("import: comparing mirror images")
        violation = mirror_violation(TorchPotential(network), network.config)
        card = replace(card, mirror_violation=violation, mirror_structures=MIRROR_STRUCTURES)
    return network, card


def import_weights(
    source: str | Path,
    out: str | Path,
    *,
    modality: str | None = None,
    scheme: str | None = None,
    trust: bool = False,
    config: str | Path | None = None,
    float32: bool = False,
    overwrite: bool = False,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> str:
    """Convert published weights to a checkpoint.

    Args:
        source: As in `load_pretrained`.
        out: Checkpoint to write.
        modality: As in `load_pretrained`.
        scheme: As in `load_pretrained`.
        trust: As in `load_pretrained`.
        config: As in `load_pretrained`.
        float32: Whether to convert float64 weights to float32, which makes the network several times faster.
        overwrite: Whether to replace an existing checkpoint.
        note: As in `load_pretrained`.

    Returns:
        A summary of the checkpoint, in one line.

    Raises:
        CheckpointError: As in `load_pretrained`.
        OutputExistsError: The checkpoint already exists, is a folder or a URL, or is the source.
    """
    target = check_file(out, [source], overwrite=overwrite, begins=ZIP)
    network, card = load_pretrained(source, modality=modality, scheme=scheme, trust=trust, config=config, note=note)
    if float32:
        network = network.to(torch.float32)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(target, network, card)
    count = sum(parameter.numel() for parameter in network.parameters())
    violations = [(*name.partition(" ")[::2], value) for name, value in card.mirror_violation.items()]
    differences = ", ".join(f"in {name} by at least {value:.0e} {unit}".rstrip() for name, unit, value in violations)
    largest = f"the largest difference among {card.mirror_structures} random structures at relaxed distances"
    mirror = f"; mirror images differ {differences} ({largest})" if differences else ""
    digest = f"; SHA-256 of the file {card.origin['sha256']}" if "sha256" in card.origin else ""
    unknown = "" if scheme or card.origin.get("name") else " (unknown file: set `--scheme`)"
    return (
        f"{target}: {len(network.elements)} elements, cutoff {network.cutoff:g} angstrom, {count:,} weights, symmetry "
        f"{card.symmetry}, energies {card.energy_scheme}{unknown}{mirror}{digest}"
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


def _sha256(path: Path) -> str:
    """Return the SHA-256 of a file; published files are identified by their content, since users may rename them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_config(path: Path, config: str | Path, modality: str | None) -> tuple[Network, str]:
    """Read a state dict and its settings, and return the network with the head that was chosen."""
    settings = MaceSettings.load(config)
    _check_size(path)
    state = mace_script_weights(path) if is_script(root_class(path)) else read_state(path)
    return from_mace(settings, state, modality, path)


def _packaged_file(model: Published) -> Path:
    """Find the file of a model in the package that contains it, without importing the package."""
    if not model.packaged:
        raise CheckpointError(
            f"{model.name} is not part of any package; download {model.url} and pass the path of the file"
        )
    spec = importlib.util.find_spec("sevenn")
    if spec is None or spec.origin is None:
        raise CheckpointError(
            f"{model.name} needs the package sevenn, which is not installed: pip install 'equiscreen[pretrained]'"
        )
    path = Path(spec.origin).parent / model.file
    if not path.is_file():
        raise CheckpointError(
            f"{model.name}: the installed version of sevenn does not contain {model.file}; pip install --upgrade sevenn"
        )
    return path


def _read(path: Path, modality: str | None, *, trust: bool) -> tuple[Network, str]:
    """Read the network of a file, and return it with the fidelity that was chosen."""
    if not path.is_file():
        if str(path) in UNOPENED:
            raise CheckpointError(f"{path}: {advice(UNOPENED[str(path)])}")
        raise CheckpointError(
            f"{path}: no such file, and no published model of that name; choose one of {', '.join(REGISTRY)}"
        )
    _check_size(path)
    root = root_class(path)
    if root.startswith("mace."):
        return read_mace(path, modality)
    if is_script(root):
        return read_script_network(path, root, modality)
    with path.open("rb") as file:
        first = file.read(1)
    if first == b"{":
        if modality is not None:
            raise CheckpointError(f"{path} has only one fidelity; remove `--modality`")
        return read_nequix(path), ""
    return _read_sevennet_or_nequip(path, modality, trust=trust)


def _read_sevennet_or_nequip(path: Path, modality: str | None, *, trust: bool) -> tuple[Network, str]:
    """Read the network of a checkpoint of SevenNet, or of a file of NequIP or Allegro, as `_read` does."""
    package = _is_nequip_package(path)
    content = {} if package else _unpickle(path, trust=trust)
    keys = content.keys() if isinstance(content, dict) else set()
    sevennet = {"config", "model_state_dict"} <= keys
    if not sevennet and not package and not {"hyper_parameters", "state_dict"} <= keys:
        raise CheckpointError(
            f"{path} is not a checkpoint of {KNOWN_CODES}; if it is a state dict of MACE, give its settings with "
            "`--config`"
        )
    if not sevennet and modality is not None:
        raise CheckpointError(f"{path} has only one fidelity; remove `--modality`")
    code, fidelity = "SevenNet" if sevennet else "NequIP", ""
    network: Network
    try:
        if sevennet:
            fidelity = modality_name(content["config"], modality, path)
            network = from_sevennet(content, fidelity, path)
        else:
            file = open_package(path) if package else open_checkpoint(content, path)
            code = CODES[file.architecture]
            network = allegro_network(file) if file.architecture == "allegro" else nequip_network(file)
    except CheckpointError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise CheckpointError(
            f"{path} is damaged, or was written by an unsupported version of {code} ({detail(error)}); copy or "
            "download it again, or try a newer version of equiscreen"
        ) from error
    return network.to(torch.float32), fidelity


def _is_nequip_package(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(f"/{METADATA}") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return False


def _check_size(path: Path) -> None:
    if path.is_file() and _unpacked_size(path) > MAX_FILE_BYTES:
        raise CheckpointError(
            f"{path} is larger than {MAX_FILE_BYTES >> 30} GiB when unpacked; check that this is a weights file"
        )


def _unpacked_size(path: Path) -> int:
    """Return the size of a file (bytes); for a ZIP file, its declared unpacked size if that is larger."""
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            return max(size, sum(item.file_size for item in archive.infolist()))
    except (zipfile.BadZipFile, ValueError, OSError):
        return size


def _unpickle(path: Path, *, trust: bool) -> Any:
    try:
        if trust:
            return torch.load(path, map_location="cpu", weights_only=False)
        with torch.serialization.safe_globals(_safe_globals()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = sorted(set(_unsafe_globals(path)))
        if not unsafe:
            raise CheckpointError(
                f"{path} is damaged, or not a checkpoint of {KNOWN_CODES}; download it again"
            ) from error
        raise CheckpointError(
            f"{path}: loading it would run {', '.join(unsafe)}; if you trust the source of the file, use `--trust`"
        ) from error
    except Exception as error:  # torch raises many kinds of errors for a file that it did not write
        raise CheckpointError(
            f"{path} is damaged, or not a checkpoint of {KNOWN_CODES} ({detail(error)}); download it again"
        ) from error


def _unsafe_globals(path: Path) -> list[str]:
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001 - a damaged pickle can fail in any way
        return []


def _safe_globals() -> list[Any]:
    """Return the globals of pickled NumPy arrays, under their names before and since NumPy 2."""
    rebuild = np.empty(0).__reduce__()[0]  # the function that pickles call; its module is private
    dtypes = [type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64", "bool")]
    return [np.ndarray, np.dtype, (rebuild, "numpy.core.multiarray._reconstruct"), rebuild, *dtypes]
