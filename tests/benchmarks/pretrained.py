"""Helpers shared by the benchmarks of published weights: crystals, and the imported and exported model."""

from __future__ import annotations

import csv
import gzip
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
from equiscreen.pipeline import Structure
from equiscreen.pipeline.readers.cif import structure_from_cif

SOURCE = "mp/mp_20_val.csv.gz"
RATTLE = 0.05  # standard deviation of each coordinate, angstrom
STRAIN = 0.01
SEED = 11


def header(*packages: str) -> str:
    """Date, machine and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "onnxruntime", "torch", *packages))
    python = platform.python_version()
    return f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python {python}, {versions}"


def crystals(data: Path, count: int, rattle: float = RATTLE, strain: float = STRAIN) -> dict[str, Structure]:
    """Random crystals of the Materials Project, strained and rattled, by id.

    A smaller sample is the start of a larger one, and a crystal is always distorted in the same way.

    Args:
        data: Folder with `SOURCE`.
        count: Number of crystals.
        rattle: Standard deviation of the displacement of each coordinate, angstrom.
        strain: Standard deviation of each component of the strain.
    """
    with gzip.open(data / SOURCE, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    if count > len(rows):
        raise SystemExit(f"{SOURCE} has {len(rows)} crystals, not {count}")
    chosen = np.random.default_rng(SEED).permutation(len(rows))[:count].tolist()
    return {
        rows[row]["material_id"]: distorted(
            structure_from_cif(rows[row]["cif"])[0], np.random.default_rng((SEED, row)), rattle, strain
        )
        for row in chosen
    }


def distorted(structure: Structure, rng: np.random.Generator, rattle: float, strain: float) -> Structure:
    """The crystal with a random symmetric strain and normally distributed displacements."""
    deformation = rng.normal(0, strain, (3, 3))
    cell = structure.cell @ (np.eye(3) + (deformation + deformation.T) / 2)
    positions = structure.frac_coord @ cell + rng.normal(0, rattle, (len(structure), 3))
    return Structure.from_cartesian(structure.atomic_number, positions, cell, pbc=True)


@contextmanager
def kept_folder(folder: Path | None) -> Iterator[Path]:
    """The given folder, whose files are kept for the next run, or a temporary one."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def exported(source: str | Path, folder: Path, modality: str | None = None, *, float64: bool = False) -> Path:
    """Path of the ONNX file of published weights, which is made unless the folder has it.

    Args:
        source: Name or path of the weights, as for `load_pretrained`.
        folder: Folder of the file.
        modality: Modality of the weights, as for `load_pretrained`.
        float64: Whether the file computes in float64.
    """
    name = "-".join(filter(None, (Path(source).name, modality, "float64" if float64 else None)))
    target, checkpoint = folder / f"{name}.onnx", folder / f"{name}.ckpt"
    if target.exists():
        print(f"{target.name} from an earlier run", flush=True)
        return target
    # Processes that only score do not need PyTorch.
    from equiscreen.export import export_onnx  # noqa: PLC0415 - needs PyTorch
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415 - needs PyTorch

    print(import_weights(source, checkpoint, modality=modality, overwrite=True).removeprefix(f"{folder}/"))
    print(str(export_onnx(checkpoint, target, float64=float64)).removeprefix(f"{folder}/"), flush=True)
    return target
