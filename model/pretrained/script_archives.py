"""Networks from TorchScript archives of MACE, NequIP and Allegro."""

from __future__ import annotations

from pathlib import Path

import torch

from ...pipeline.errors import CheckpointError, detail
from ..networks.base import Network
from .mace_script import WRAPPERS, read_mace_script
from .nequip.allegro import allegro_network
from .nequip.deployed import VERSION, deployed_network
from .nequip.files import open_script
from .nequip.nequip import nequip_network
from .records.torchscript import ROOT, ScriptArchive, original_name, read_script


def is_script(root: str) -> bool:
    """Whether a file is a TorchScript archive, by the class of its root from `root_class`."""
    return root.startswith(ROOT)


def read_script_network(path: Path, root: str, modality: str | None) -> tuple[Network, str]:
    """Build the network of an archive.

    Args:
        path: The archive.
        root: Class of its root, from `root_class`.
        modality: Head to use; None uses the head that the archive has chosen, or the only head.

    Returns:
        The network, and the name of the head, "" if there is only one.

    Raises:
        CheckpointError: The file is damaged, its architecture is not supported, or another code wrote it.
    """
    kind = original_name(root)
    if kind.startswith("mace.") or kind.rpartition(".")[2] in WRAPPERS:
        return read_mace_script(path, modality)
    if kind.startswith("sevenn."):
        raise CheckpointError(
            f"{path} is a deployed network of SevenNet, whose weights have no names; import the checkpoint that it was "
            "made from"
        )
    if not kind.startswith("nequip."):
        raise CheckpointError(
            f"{path} is a TorchScript archive of {kind}; only archives of MACE, NequIP and Allegro can be imported"
        )
    if modality is not None:
        raise CheckpointError(f"{path} has only one fidelity; remove `--modality`")
    archive = read_script(path)
    try:
        network = nequip_script_network(archive, path)
    except CheckpointError:
        raise
    except Exception as error:  # modules of another version can lack anything
        raise CheckpointError(
            f"{path} is damaged, or was written by an unsupported version of NequIP ({detail(error)}); copy or "
            "download it again, or try a newer version of equiscreen"
        ) from error
    return network.to(torch.float32), ""


def nequip_script_network(archive: ScriptArchive, path: str | Path) -> Network:
    """Build the network of an archive of NequIP or Allegro.

    Returns:
        The network in float64.

    Raises:
        CheckpointError: The architecture is not supported, or the archive is from a newer version of NequIP.
    """
    if VERSION in archive.extra:
        return deployed_network(archive, path)
    file = open_script(archive, path)
    return allegro_network(file) if file.architecture == "allegro" else nequip_network(file)
