"""The files that the pages of the documentation are given: a few real crystals, and calculations made with EMT.

`GIVEN` names the files of each page. The crystals are intermetallics of the Materials Project with at most six atoms,
from the file of the demo; their energies are built from their formation energies there.
"""

from __future__ import annotations

import csv
import gzip
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path

import ase.io
import numpy as np
import torch
import yaml
from ase import Atoms
from equiscreen.campaigns import model_file
from equiscreen.campaigns.elements import ELEMENTS as ELEMENT_CRYSTALS
from equiscreen.model.pretrained.load import import_weights
from equiscreen.model.pretrained.registry import REGISTRY
from equiscreen.pipeline import Structure, featurize
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import relax
from equiscreen.screening.chemistry.elemental_energies import elemental_energies

from ..conftest import ELEMENTS, ROOT, cif_text, pymatgen_dict, write_emt_labelled
from ..export.runtime.altered_models import altered

ORACLES = ROOT / "tests/oracles"
MOST_ATOMS = 6
EMT_METALS = {"Al", "Ni", "Cu"}
_FORMATION = "materials_project_eV_per_atom"
IN_PROCESS = "threads"

# Seeds of the structures in several files, so that no two files hold the same.
_FIRST, _SECOND, _THIRD, _FOURTH = range(70, 74)


@cache
def crystals() -> tuple[Atoms, ...]:
    """The smallest crystals of the demo, in the order of its file."""
    found = ase.io.read(ROOT / "demo/crystals.extxyz", ":")
    return tuple(atoms for atoms in found if len(atoms) <= MOST_ATOMS)


def energy_of(atoms: Atoms) -> float:
    """Total energy of a crystal of the demo in PBE, from its formation energy, eV."""
    elemental = elemental_energies("mp-uncorrected")
    return float(len(atoms) * atoms.info[_FORMATION] + sum(elemental[symbol].energy for symbol in atoms.symbols))


def write_cifs(folder: Path, count: int) -> None:
    """A folder of CIFs of real crystals."""
    folder.mkdir()
    for atoms in crystals()[:count]:
        (folder / f"{atoms.info['structure_id']}.cif").write_text(cif_text(Structure.from_ase(atoms)))


def write_alloy_cifs(folder: Path, count: int) -> None:
    """A folder of CIFs of random alloys."""
    folder.mkdir()
    for number, structure in enumerate(probe_structures(ELEMENTS, count, seed=_FOURTH)):
        (folder / f"c{number}.cif").write_text(cif_text(structure))


def write_alloys(path: Path, count: int, seed: int) -> None:
    """Random alloys with EMT's energies, forces and stresses."""
    write_emt_labelled(path, probe_structures(ELEMENTS, count, seed=seed))


def write_alloy_store(path: Path, count: int, seed: int) -> None:
    """A graph store of such alloys."""
    source = path.with_suffix(".extxyz")
    write_alloys(source, count, seed)
    featurize(source, path, scheduler=IN_PROCESS)
    source.unlink()


def write_small_calculations(path: Path, chosen: Sequence[int], *, labelled: bool) -> None:
    """Crystals of Al, Ni and Cu, displaced, with EMT in place of DFT, or without labels."""
    rng = np.random.default_rng(chosen[0])
    found = [atoms for atoms in crystals() if set(atoms.symbols) <= EMT_METALS]
    structures = []
    for number in chosen:
        atoms = found[number % len(found)].copy()
        atoms.positions += rng.normal(0, 0.05, atoms.positions.shape)
        structures.append(Structure.from_ase(atoms))
    if labelled:
        write_emt_labelled(path, structures)
    else:
        ase.io.write(path, [structure.to_ase() for structure in structures], format="extxyz")


def write_entries(path: Path) -> None:
    """Entries of pymatgen: the crystals, and the elements in them."""
    compounds = [(atoms.info["structure_id"], atoms, energy_of(atoms)) for atoms in crystals()]
    wanted = {symbol for _, atoms, _ in compounds for symbol in atoms.symbols}
    pure = [atoms for atoms in ase.io.read(ELEMENT_CRYSTALS, ":") if atoms.symbols[0] in wanted]
    energies = elemental_energies("mp-uncorrected")
    elements = [(atoms.info["id"], atoms, len(atoms) * energies[atoms.symbols[0]].energy) for atoms in pure]
    records = [
        {
            "entry_id": name,
            "composition": dict(zip(*np.unique(atoms.get_chemical_symbols(), return_counts=True), strict=True)),
            "energy": energy,
            "parameters": {"run_type": "GGA"},
            "structure": pymatgen_dict(Structure.from_ase(atoms)),
        }
        for name, atoms, energy in (*compounds, *elements)
    ]
    with gzip.open(path, "wt") as file:
        json.dump(records, file, default=int)


def write_known(path: Path) -> None:
    """A table of total energies: a few crystals, and the elements."""
    energies = elemental_energies("mp-uncorrected")
    rows = [(atoms.get_chemical_formula(), energy_of(atoms) / len(atoms)) for atoms in crystals()[:5]]
    rows += [(symbol, found.energy) for symbol, found in energies.items()]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["formula", "energy_per_atom", "scheme"])
        table.writerows((*row, "mp-uncorrected") for row in rows)


def write_properties(path: Path, columns: Sequence[str], structure: str) -> None:
    """A table of crystals with a number and a positive tensor that depend on the composition only."""
    rng = np.random.default_rng(0)
    with gzip.open(path, "wt", newline="") as file:
        table = csv.writer(file)
        table.writerow([structure, *columns])
        for atoms in crystals():
            number = float(atoms.numbers.mean()) / 10
            factor = np.eye(3) + rng.normal(0, 0.05, (3, 3))
            tensor = (number * factor @ factor.T).tolist()
            values = {"pretty_formula": atoms.get_chemical_formula(), "band_gap": number}
            text = cif_text(Structure.from_ase(atoms)) if structure == "cif" else poscar_text(atoms)
            table.writerow([text, *(values.get(name, json.dumps(tensor)) for name in columns)])


def poscar_text(atoms: Atoms) -> str:
    """The text of a POSCAR."""
    rows = [" ".join(f"{value:.10f}" for value in row) for row in (*atoms.cell, *atoms.get_scaled_positions())]
    symbols, counts = " ".join(atoms.get_chemical_symbols()), " ".join("1" for _ in atoms)
    return "\n".join(["crystal", "1.0", *rows[:3], symbols, counts, "Direct", *rows[3:]]) + "\n"


def write_mlearn(path: Path) -> None:
    """Records as in the files of mlearn."""
    records = []
    for structure in probe_structures((14,), 4, seed=_FIRST):
        outputs = {"energy": -5.4 * len(structure), "forces": np.zeros((len(structure), 3)).tolist()}
        outputs["virial_stress"] = [1.0, 2.0, 3.0, 0.1, 0.2, 0.3]
        records.append(
            {"structure": pymatgen_dict(structure), "outputs": outputs, "element": "Si", "group": "AIMD-NVT"}
        )
    with gzip.open(path, "wt") as file:
        json.dump(records, file)


def write_sevennet(path: Path) -> None:
    """Weights of SevenNet that no catalogue knows: those of 7net-0 with another seed."""
    import sevenn  # noqa: PLC0415 - without it, only this page cannot run

    packaged = Path(sevenn.__file__).parent / REGISTRY["7net-0"].file
    content = torch.load(packaged, map_location="cpu", weights_only=False)
    content["config"] |= {"random_seed": 12345}
    torch.save(content, path)


def write_mace_weights(path: Path) -> None:
    """Weights of a MACE, without its settings."""
    with np.load(ORACLES / "mace/0.npz") as arrays:
        np.savez(path, **{name: arrays[name] for name in arrays.files if not name.startswith("expected.")})


def write_mace_settings(path: Path) -> None:
    """Settings of the MACE in `write_mace_weights`."""
    path.write_text(json.dumps(json.loads((ORACLES / "mace/settings.json").read_text())[0]))


def write_crystal_store(path: Path) -> None:
    """A graph store of real crystals."""
    ase.io.write(path.with_suffix(".extxyz"), crystals()[:8], format="extxyz")
    featurize(path.with_suffix(".extxyz"), path, scheduler=IN_PROCESS)


def write_relaxed(path: Path) -> None:
    """Real crystals, relaxed with 7net-0."""
    write_crystal_store(path.with_name(f"{path.stem}-input.zarr"))
    relax(path.with_name(f"{path.stem}-input.zarr"), model_file("7net-0"), path, scheduler=IN_PROCESS)


def write_elements(path: Path) -> None:
    """A table of the elements."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["formula", "energy_per_atom", "scheme"])
        table.writerows(
            (name, one.energy, "mp-uncorrected") for name, one in elemental_energies("mp-uncorrected").items()
        )


def write_quick_config(path: Path) -> None:
    """A configuration of a small network."""
    path.write_text(yaml.safe_dump({"network": {"hidden_irreps": "4x0e + 2x1o", "correlation": 2}}))


def copy_model(path: Path) -> None:
    """The ONNX file of 7net-0."""
    shutil.copy(model_file("7net-0"), path)


def alter_model(path: Path) -> None:
    """A worse model of the same energy scheme."""
    altered(model_file("7net-0"), path, 1.01)


Maker = Callable[[Path], None]
_CANDIDATES: dict[str, Maker] = {"candidates": partial(write_cifs, count=6)}
_MINE: dict[str, Maker] = {"my_crystals": partial(write_cifs, count=6)}
_ENTRIES: dict[str, Maker] = {"entries.json.gz": write_entries}
# Files and folders that each page is given, by name, with what makes them.
GIVEN: dict[str, dict[str, Maker]] = {
    "README.md": {**_MINE, **_ENTRIES},
    "index.md": _MINE,
    "sources.md": {
        "mp.csv.gz": partial(write_properties, columns=("pretty_formula", "band_gap"), structure="cif"),
        "dielectric.csv.gz": partial(write_properties, columns=("e_total",), structure="poscar"),
        "Si.json.gz": write_mlearn,
    },
    "models.md": _CANDIDATES,
    "pretrained.md": {
        **_CANDIDATES,
        "my-sevennet.pth": write_sevennet,
        "my-allegro.nequip.zip": partial(shutil.copy, ORACLES / "allegro/trained.nequip.zip"),
        "my-network.nequip.zip": partial(shutil.copy, ORACLES / "nequip/trained.nequip.zip"),
        "several-heads.model": partial(shutil.copy, ORACLES / "mace/module.model"),
        "MACE-mine.model-lammps.pt": partial(shutil.copy, ORACLES / "mace/1-lammps.pt"),
        "deployed.pth": partial(shutil.copy, ORACLES / "nequip_deploy/00.pth"),
        "weights.npz": write_mace_weights,
        "settings.json": write_mace_settings,
    },
    "references.md": {**_CANDIDATES, **_ENTRIES, "relaxed.zarr": write_relaxed, "elements.csv": write_elements},
    "own_network.md": {
        "training.extxyz": partial(write_alloys, count=20, seed=_FIRST),
        "candidates": partial(write_alloy_cifs, count=12),
    },
    "training.md": {
        "G.zarr": partial(write_alloy_store, count=8, seed=_FIRST),
        "A.zarr": partial(write_alloy_store, count=8, seed=_SECOND),
        "B.zarr": partial(write_alloy_store, count=8, seed=_THIRD),
        "OLD.zarr": partial(write_alloy_store, count=40, seed=_FOURTH),
        "mine.zarr": partial(write_alloy_store, count=8, seed=_FIRST),
        "7net-0.ckpt": partial(import_weights, "7net-0"),
        "c.yaml": write_quick_config,
    },
    "scores.md": {
        **_ENTRIES,
        "R.zarr": write_relaxed,
        "G.zarr": write_crystal_store,
        "known.csv": write_known,
        "7net-0.onnx": copy_model,
        "small.onnx": alter_model,
    },
    "conformance.md": {"model.onnx": copy_model},
    "fine_tune.md": {
        "new.extxyz": partial(write_small_calculations, chosen=range(10), labelled=True),
        "old.extxyz": partial(write_small_calculations, chosen=range(20, 26), labelled=False),
        "new_test.extxyz": partial(write_small_calculations, chosen=range(30, 34), labelled=True),
        "old_test.extxyz": partial(write_small_calculations, chosen=range(40, 44), labelled=False),
    },
    "dask.md": _CANDIDATES,
    "distill.md": {"candidates": partial(write_cifs, count=12)},
    "dft_handoff.md": _MINE,
    "custom_head.md": {
        **_CANDIDATES,
        "properties.csv.gz": partial(write_properties, columns=("band_gap", "dielectric"), structure="cif"),
    },
    "gpu.md": _CANDIDATES,
    "properties.md": {"relaxed.zarr": write_relaxed},
    "publish.md": {"relaxed.zarr": write_relaxed},
}
