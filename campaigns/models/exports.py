"""Exports into the cache. Importing this module imports PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ...export.exporter import lower_and_check
from ...export.runtime.file_validation import with_checksum
from ...model.checkpoint import ENSEMBLE_FILE, ModelCard, find_checkpoints, load_members
from ...model.networks.base import Network
from ...model.pretrained.load import load_pretrained


def exported_weights(source: str | Path, fidelity: str, note: Callable[[str], None]) -> bytes:
    """Import published weights, or a file of another code, and export them.

    Args:
        source: A name in the registry, or a file.
        fidelity: Fidelity to use; empty for the default of the file.
        note: Called with a message about the next step.

    Returns:
        Content of the ONNX file.

    Raises:
        CheckpointError: The weights cannot be imported.
        ExportError: A check failed.
    """
    network, card = load_pretrained(source, modality=fidelity or None, note=note)
    return _exported([network], card, note)


def exported_checkpoint(path: Path, note: Callable[[str], None]) -> bytes:
    """Export a checkpoint, or the network or ensemble in a run folder, and return the content of the ONNX file.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ExportError: A check failed.
    """
    networks, card = load_members(path)
    return _exported(networks, card, note)


def checkpoint_files(path: Path) -> list[Path]:
    """Return the files that an export of a checkpoint or run folder depends on.

    Raises:
        CheckpointError: The run folder has no finished model.
    """
    ensemble = path / ENSEMBLE_FILE
    return [*find_checkpoints(path), *([ensemble] if ensemble.is_file() else [])]


def _exported(networks: Sequence[Network], card: ModelCard, note: Callable[[str], None]) -> bytes:
    model, _ = lower_and_check(networks, card, note=note)
    return with_checksum(model.SerializeToString())
