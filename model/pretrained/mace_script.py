"""TorchScript archives of MACE: files for LAMMPS (`-lammps.pt`) and CP2K (`-cp2k.pth`), and `_compiled.model` files.

Weights and settings have the names that they have in a pickled module, so that `mace_settings` reads them in the same
way.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ...pipeline.errors import CheckpointError, detail
from ..networks.mace import MaceNetwork
from .mace import from_mace
from .mace_settings import settings_of
from .records.record import Record
from .records.torchscript import ScriptArchive, read_script

# Modules that wrap the network in files for LAMMPS and CP2K, and choose one of its heads.
WRAPPERS = ("LAMMPS_MACE", "CP2K_MACE")


def read_mace_script(path: str | Path, head: str | None) -> tuple[MaceNetwork, str]:
    """Build the network of an archive.

    Args:
        path: The archive.
        head: Name of the head to use; None uses the head that a file for LAMMPS or CP2K has chosen, or the only head.

    Returns:
        As in `read_mace`.

    Raises:
        CheckpointError: As in `read_mace`, or a setting cannot be recovered from the archive.
    """
    archive = read_script(path)
    module = _network(archive)
    try:
        settings, state = settings_of(module, path), dict(module.tensors())
        chosen = archive.module.get("head")
        if head is None and isinstance(chosen, Tensor):
            head = settings.heads[int(chosen)]
    except CheckpointError:
        raise
    except Exception as error:  # modules of another version can lack anything
        raise CheckpointError(
            f"{path} is damaged, or was written by an unsupported version of MACE: {detail(error)}; if it is intact, "
            "give its settings with `--config`"
        ) from error
    return from_mace(settings, state, head, path)


def mace_script_weights(path: str | Path) -> dict[str, Tensor]:
    """Return weights and constants of the network in an archive, named as in its `state_dict`.

    Raises:
        CheckpointError: The file is damaged, too large, or names something that no module needs.
    """
    return dict(_network(read_script(path)).tensors())


def _network(archive: ScriptArchive) -> Record:
    inner = archive.module.get("model") if archive.module.name in WRAPPERS else None
    return inner if isinstance(inner, Record) else archive.module
