"""TorchScript archives of all codes: the network of one, whichever code wrote it."""

from __future__ import annotations

from pathlib import Path

from ...pipeline.errors import CheckpointError
from ..networks.base import Network
from .mace_script import WRAPPERS, read_mace_script
from .records.torchscript import ROOT, original_name


def is_script(root: str) -> bool:
    """Whether a file is a TorchScript archive, by the class of its root from `root_class`."""
    return root.startswith(ROOT)


def read_script_network(path: Path, root: str, modality: str | None) -> tuple[Network, str]:
    """Build the network of an archive.

    Args:
        path: The archive.
        root: Class of its root, from `root_class`.
        modality: Head to use; None for the one that the archive has chosen, or if there is only one.

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
            f"{path}: a deployed network of SevenNet, whose weights have no names; import the checkpoint that it was "
            "made from"
        )
    raise CheckpointError(f"{path}: a TorchScript archive of {kind}; only those of MACE can be imported")
