"""What is fuzzed. Each target makes sound inputs once, damages a copy of them, and judges the outcome."""

from __future__ import annotations

import csv
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from equiscreen.export.runtime.file_validation import with_checksum
from equiscreen.export.runtime.onnx_potential import OnnxPotential, read_model
from equiscreen.model.checkpoint import load_checkpoint
from equiscreen.model.config.config import Config
from equiscreen.pipeline import GraphStore, LabelMapping, featurize
from equiscreen.pipeline.errors import EquiscreenError
from equiscreen.pipeline.featurization import partitions
from equiscreen.pipeline.store.writer import StoreRun
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import hull, screen
from equiscreen.screening.dataset.reader import ScoresReader

from ..conftest import ELEMENTS, cif_text, pymatgen_dict, write_extxyz
from .mutations import Mutator

STRUCTURES = 8
Result = dict[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        damage: Damages the copy of the sound inputs in a folder, and says how.
        judge: Uses what is in the folder. An `EquiscreenError` is a good end; an assertion that fails or any other
            exception is a fault.
    """

    damage: Callable[[Path, Mutator], str]
    judge: Callable[[Path], None]
    sound: Path

    def attempt(self, folder: Path, mutator: Mutator) -> None:
        """Damage a copy of the sound inputs and use it.

        Raises:
            AssertionError: The counts are wrong, a number has changed silently, or the error does not help a reader.
        """
        shutil.copytree(self.sound, folder)
        damage = self.damage(folder, mutator)
        try:
            self.judge(folder)
        except (EquiscreenError, OSError) as error:  # the command line prints both as one line
            check_message(error, "", damage)
        except Exception as error:
            raise AssertionError(f"{damage}: {type(error).__name__}: {error}") from error


def check_message(error: Exception, name: str, damage: str = "") -> None:
    """An error is one short line, which names the file at fault."""
    message = str(error)
    assert message.strip(), f"{damage}: an error without a message: {error!r}"
    assert len(message.splitlines()) == 1, f"{damage}: an error of several lines: {message!r}"
    assert len(message) < 2_000, f"{damage}: an error of {len(message):,} characters: {message[:200]!r}"
    assert name in message, f"{damage}: an error that does not name {name}: {message}"


# Structure files: every structure is accounted for.


def write_formats(folder: Path) -> None:
    """The same crystals in every format that is read."""
    structures = probe_structures(ELEMENTS, STRUCTURES, 0)
    texts = [cif_text(structure) for structure in structures]
    dicts = [pymatgen_dict(structure) for structure in structures]
    atoms = [structure.to_ase() for structure in structures]
    (folder / "one.cif").write_text(texts[0])
    (folder / "many.cif").write_text("".join(text.replace("data_x", f"data_{i}") for i, text in enumerate(texts)))
    atoms[1].write(folder / "POSCAR", format="vasp", direct=True)
    write_extxyz(folder / "many.extxyz", STRUCTURES)
    (folder / "list.json").write_text(json.dumps(dicts))
    (folder / "map.json").write_text(json.dumps({f"c{i}": one for i, one in enumerate(dicts)}))
    (folder / "lines.jsonl").write_text("".join(json.dumps({"id": i, "s": one}) + "\n" for i, one in enumerate(dicts)))
    with (folder / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerows([["material_id", "energy", "cif"], *([f"m{i}", -i, text] for i, text in enumerate(texts))])
    pq.write_table(pa.table({"id": list(range(STRUCTURES)), "cif": texts}), folder / "table.parquet")
    with zipfile.ZipFile(folder / "archive.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i, text in enumerate(texts):
            archive.writestr(f"in/{i}.cif", text)
    with ase.db.connect(folder / "rows.db") as rows:
        for one in atoms:
            rows.write(one)


BINARY = frozenset({".parquet", ".zip", ".db"})


def damage_format(folder: Path, mutator: Mutator) -> str:
    """Damage one of the structure files and remove the others."""
    files = sorted(folder.iterdir())
    chosen = files[mutator.below(len(files))]
    for path in files:
        if path != chosen:
            path.unlink()
    told = []
    for _ in range(1 + mutator.below(3)):
        content, how = (mutator.binary if chosen.suffix in BINARY else mutator.text)(chosen.read_bytes())
        chosen.write_bytes(content)
        told.append(how)
    return f"{chosen.name}: {', '.join(told)}"


def judge_format(folder: Path) -> None:
    source = next(folder.iterdir())
    report = featurize([source], folder / "g.zarr", scheduler="threads")
    assert report.read == report.stored + report.failed + report.duplicate, report
    store = GraphStore(folder / "g.zarr")
    failures, duplicates = store.table("failures.parquet"), store.table("duplicates.parquet")
    assert (len(store), len(failures), len(duplicates)) == (report.stored, report.failed, report.duplicate), report
    assert all(reason for reason in failures["reason"].to_pylist())
    assert not store.verify()
    for block in store.blocks(100):
        assert np.isfinite(block.cell).all()
        assert np.isfinite(block.frac_coord).all()


# Stores, scores, models: a value is what it was, or there is an error.


def stored_values(path: Path) -> Result:
    store = GraphStore(path)
    if damaged := store.verify():
        raise EquiscreenError(f"{path}: damaged: {damaged[0]}")
    values = {name: store.column(name) for name in store.specs}
    units = [str(spec.attrs.get("units")) for spec in store.specs.values()]
    return {**values, "cutoff": np.array(store.cutoff), "units": np.array(units)}


def read_graphs(path: Path) -> Result:
    """What a screen reads, without the checksums that `equiscreen info --verify` compares."""
    store = GraphStore(path)
    block = store.block(0, len(store))
    arrays = {name: getattr(block, name) for name in ("cell", "pbc", "atomic_number", "frac_coord", "neighbor")}
    return {**arrays, **block.structure_labels, **block.atom_labels, "cutoff": np.array(store.cutoff)}


def score_values(path: Path) -> Result:
    reader = ScoresReader(path)
    names = ("energy", "energy_per_atom", "max_force", "status", "structure_id", "formula", "n_atoms", "volume")
    return {name: reader.column(name, 0, len(reader)) for name in names}


def model_values(path: Path) -> Result:
    potential = OnnxPotential(read_model(path), path.name)
    found = potential.evaluate_structures(probe_structures(ELEMENTS, 2, 5))
    return {"energy": found.energy, "forces": found.forces, "cutoff": np.array(potential.cutoff)}


def checkpoint_values(path: Path) -> Result:
    network, _ = load_checkpoint(path)
    values = {name: tensor.numpy() for name, tensor in network.state_dict().items() if isinstance(tensor, torch.Tensor)}
    return {**values, "cutoff": np.array(network.config.cutoff)}


def unchanged(name: str, read: Callable[[Path], Result], sound: Path) -> Callable[[Path], None]:
    """Judge that reads a file or folder: its values are those of the sound one, to the last bit."""
    expected = read(sound / name)

    def judge(folder: Path) -> None:
        found = read(folder / name)
        assert found.keys() == expected.keys(), f"arrays {sorted(found.keys() ^ expected.keys())}"
        for key, values in expected.items():
            assert same_bits(found[key], values), f"{key} is silently another one"

    return judge


def same_bits(found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> bool:
    equal_nan = expected.dtype.kind == "f"
    return (found.dtype, found.shape) == (expected.dtype, expected.shape) and np.array_equal(
        found, expected, equal_nan=equal_nan
    )


def damage_tree(folder: Path, mutator: Mutator) -> str:
    """Damage one file of a store. Only checksums can notice that two sound files changed places."""
    return mutator.folder(folder, swap=True)


def damage_a_file(folder: Path, mutator: Mutator) -> str:
    return mutator.folder(folder)


def damage_bytes(folder: Path, mutator: Mutator) -> str:
    path = next(folder.iterdir())
    content, how = mutator.binary(path.read_bytes())
    path.write_bytes(content)
    return how


def damage_words(folder: Path, mutator: Mutator) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    path = files[mutator.below(len(files))]
    content, how = mutator.text(path.read_bytes())
    path.write_bytes(content)
    return f"{path.name}: {how}"


# Reference entries: a damaged entry is left out and counted, and energies are finite or missing.


def write_references(folder: Path) -> None:
    symbols = ("Al", "Cu", "Au")
    entries = [
        {"entry_id": f"r{i}", "composition": {symbol: 2.0}, "energy": -2.0 * (i + 1), "parameters": {"run_type": "GGA"}}
        for i, symbol in enumerate(symbols)
    ]
    entries.append(
        {"entry_id": "r3", "composition": {"Al": 1, "Cu": 1}, "energy": -5.0, "parameters": {"run_type": "GGA"}}
    )
    (folder / "entries.json").write_text(json.dumps(entries, indent=1))
    with (folder / "table.csv").open("w", newline="") as file:
        rows = [["id", "formula", "energy_per_atom"], ["a", "Al", -1.0], ["b", "CuAu", -3.0], ["c", "Al2Cu", -2.5]]
        csv.writer(file).writerows([*rows, ["d", "Cu", -2.0], ["e", "Au", -3.0]])


def judge_references(scores: Path, folder: Path) -> None:
    for path in (folder / "entries.json", folder / "table.csv"):
        try:
            found = hull(scores, [path], folder / f"{path.name}.hull.zarr", scheme="own")
        except EquiscreenError as error:
            check_message(error, path.name)
            continue
        above = found["energy_above_hull_unrelaxed"].to_numpy()
        assert not np.isinf(above).any()


# Commit marks: a run resumes from what is sound, and its result is that of an undisturbed run.


def write_unfinished(folder: Path) -> None:
    """A run that was interrupted after its parts were made."""
    write_extxyz(folder / "in.extxyz", STRUCTURES)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "PARTITION_RECORDS", 2)
        patch.setattr(StoreRun, "compact", interrupted)
        with pytest.raises(KeyboardInterrupt):
            featurize([folder / "in.extxyz"], folder / "g.zarr", scheduler="threads")
    assert list(folder.glob("g.zarr.partial/*/parts/*.json"))


def resumed(folder: Path) -> Result:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(partitions, "PARTITION_RECORDS", 2)
        featurize([folder / "in.extxyz"], folder / "g.zarr", scheduler="threads")
    return stored_values(folder / "g.zarr")


def damage_unfinished(folder: Path, mutator: Mutator) -> str:
    return mutator.folder(folder / "g.zarr.partial")


# YAML: it is read, or one line says what is wrong with it.

CONFIG = """network:
  cutoff: 5.0
  hidden_irreps: 32x0e + 16x1o
  n_layers: 2
training:
  epochs: 3
  batch_size: 4
"""
LABELS = """labels:
  energy:
    - key: outputs.E
      unit: eV
  forces:
    - key: outputs.F
      unit: eV/angstrom
columns: [band_gap]
"""


def write_yaml(folder: Path) -> None:
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "labels.yaml").write_text(LABELS)


def judge_yaml(folder: Path) -> None:
    for load, name in ((Config.load, "config.yaml"), (LabelMapping.load, "labels.yaml")):
        try:
            load(folder / name)
        except EquiscreenError as error:
            check_message(error, name)


def make_targets(folder: Path, model: Path, checkpoint: Path) -> dict[str, Target]:
    """All targets, with their sound inputs in subfolders of `folder`."""
    names = ("formats", "stores", "scores", "models", "checkpoints", "references", "unfinished", "yaml")
    sound = {name: folder / name for name in names}
    for path in sound.values():
        path.mkdir(parents=True)
    write_formats(sound["formats"])
    write_extxyz(folder / "in.extxyz", STRUCTURES)
    featurize([folder / "in.extxyz"], sound["stores"] / "g.zarr", cutoff=4.5, scheduler="threads")
    screen(sound["stores"] / "g.zarr", [model], sound["scores"] / "s.zarr", scheduler="threads")
    (sound["models"] / "model.onnx").write_bytes(with_checksum(model.read_bytes()))
    shutil.copyfile(checkpoint, sound["checkpoints"] / "model.ckpt")
    write_references(sound["references"])
    write_unfinished(sound["unfinished"])
    write_yaml(sound["yaml"])
    shutil.copytree(sound["unfinished"], folder / "undisturbed")
    expected = resumed(folder / "undisturbed")

    def judge_unfinished(path: Path) -> None:
        found = resumed(path)
        for key, values in expected.items():
            assert same_bits(found[key], values), f"{key} of the resumed run is another one"

    return {
        "formats": Target(damage_format, judge_format, sound["formats"]),
        "stores": Target(damage_tree, unchanged("g.zarr", stored_values, sound["stores"]), sound["stores"]),
        "graphs": Target(damage_a_file, unchanged("g.zarr", read_graphs, sound["stores"]), sound["stores"]),
        "scores": Target(damage_a_file, unchanged("s.zarr", score_values, sound["scores"]), sound["scores"]),
        "models": Target(damage_bytes, unchanged("model.onnx", model_values, sound["models"]), sound["models"]),
        "checkpoints": Target(
            damage_bytes, unchanged("model.ckpt", checkpoint_values, sound["checkpoints"]), sound["checkpoints"]
        ),
        "references": Target(
            damage_words, lambda path: judge_references(sound["scores"] / "s.zarr", path), sound["references"]
        ),
        "unfinished": Target(damage_unfinished, judge_unfinished, sound["unfinished"]),
        "yaml": Target(damage_words, judge_yaml, sound["yaml"]),
    }
