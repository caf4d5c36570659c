"""What the benchmarks of published weights share: crystals, and the file that import and export make."""

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
RATTLE = 0.05  # angstrom, of each coordinate
STRAIN = 0.01
SEED = 11


def header(*packages: str) -> str:
    """Date, machine and versions."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("equiscreen", "onnxruntime", "torch", *packages))
    python = platform.python_version()
    return f"{datetime.now(UTC):%Y-%m-%d}, {platform.machine()}, {os.cpu_count()} cores, Python {python}, {versions}"


def crystals(data: Path, count: int, rattle: float = RATTLE, strain: float = STRAIN) -> dict[str, Structure]:
    """Crystals of the Materials Project by their ids, drawn at random, strained and rattled.

    The smaller number are the first of the larger, and a crystal is always the same.

    Args:
        data: Folder with `SOURCE`.
        count: How many.
        rattle: Angstrom, of each coordinate.
        strain: Of each component.
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
    """A crystal with a random symmetric strain and normal displacements."""
    deformation = rng.normal(0, strain, (3, 3))
    cell = structure.cell @ (np.eye(3) + (deformation + deformation.T) / 2)
    positions = structure.frac_coord @ cell + rng.normal(0, rattle, (len(structure), 3))
    return Structure.from_cartesian(structure.atomic_number, positions, cell, pbc=True)


@contextmanager
def kept_folder(given: Path | None) -> Iterator[Path]:
    """A folder for files: the one that is given, where they stay for another time, or a temporary one."""
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given
        return
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def exported(source: str | Path, folder: Path, modality: str | None = None) -> Path:
    """The ONNX file, in float32, of published weights; one that stands in the folder is taken as it is.

    Args:
        source: As for `load_pretrained`.
        folder: Where it goes.
        modality: As for `load_pretrained`.
    """
    name = "-".join(filter(None, (Path(source).name, modality)))
    target, checkpoint = folder / f"{name}.onnx", folder / f"{name}.ckpt"
    if target.exists():
        print(f"{target.name} as it stood there", flush=True)
        return target
    # Processes that only score have no use for PyTorch.
    from equiscreen.export import export_onnx  # noqa: PLC0415 - see above
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415 - see above

    print(import_weights(source, checkpoint, modality=modality, overwrite=True).removeprefix(f"{folder}/"))
    print(str(export_onnx(checkpoint, target)).removeprefix(f"{folder}/"), flush=True)
    return target
