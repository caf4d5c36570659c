"""Edges per second of a NequIP network of 7net-0's shape on one CPU thread: imported, and compiled by NequIP itself.

    python tests/benchmarks/nequip_rate.py compare --peer PYTHON --data DATA --out FOLDER [--structures 200] [--turns 3]

PYTHON is the interpreter of an environment with nequip (see tests/oracles/nequip.py) and g++ beside it. It trains a
network of that shape for one step on random labels (five interactions of 128x0e + 64x1e + 32x2e, harmonics to degree 2,
8 Bessel functions, cutoff 5 angstrom, 89 elements), packages it, and compiles it with `nequip-compile --mode
aotinductor --target batch` for the CPU. This environment imports and exports the package, and 7net-0 itself. All
evaluate energies, forces and stresses of the first crystals of mp_20_val.csv.gz in float32 on one thread; graphs are
built beforehand, each engine chooses its batch size on a sample of the crystals, and the engines run in turn, each in
a process of its own. Prints the text of `nequip_rate.txt`.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import chemical_symbols
from ase.neighborlist import primitive_neighbor_list
from engines_in_turn import ELEMENTS, compare, crystals, measure, measure_file

CUTOFF = 5.0
SYMBOLS = [chemical_symbols[number] for number in ELEMENTS]
SHAPE = {
    "_target_": "nequip.model.NequIPGNNModel",
    "seed": 3,
    "model_dtype": "float32",
    "type_names": SYMBOLS,
    "r_max": CUTOFF,
    "num_layers": 5,
    "l_max": 2,
    "parity": False,
    "num_features": [128, 64, 32],
    "type_embed_num_features": 128,
    "radial_mlp_depth": 2,
    "radial_mlp_width": 64,
    "num_bessels": 8,
    "avg_num_neighbors": 36.0,
}
PACKAGE, COMPILED = "network.nequip.zip", "network.nequip.pt2"
# Neighbour slots per table, or structures per batch.
BATCHES = {"7net-0": (500, 1000, 2000, 4000), "imported": (500, 1000, 2000, 4000), "aotinductor": (2, 4, 8, 16)}


def make(out: Path, data: Path) -> None:
    """Train a network for one step, package and compile it."""
    import yaml  # noqa: PLC0415 - of another environment

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.oracles.nequip import TRAINED  # noqa: PLC0415 - of another environment

    rng, images = np.random.default_rng(0), []
    for atoms in crystals(data, 8):
        atoms.calc = SinglePointCalculator(atoms, energy=rng.normal(), forces=rng.normal(0, 1, (len(atoms), 3)))
        images.append(atoms)
    ase.io.write(out / "data.extxyz", images)
    config = copy.deepcopy(TRAINED)
    config["training_module"]["model"] = SHAPE
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 1, "limit_val_batches": 1}
    source = config["data"]
    source["stats_manager"]["type_names"] = SYMBOLS
    source["transforms"][0] = {
        "_target_": "nequip.data.transforms.ChemicalSpeciesToAtomTypeMapper",
        "model_type_names": SYMBOLS,
    }
    source["transforms"][1]["r_max"] = CUTOFF
    (out / "train.yaml").write_text(yaml.safe_dump(config))
    scripts = Path(sys.executable).parent
    for words in (
        ("nequip-train", "-cp", str(out), "-cn", "train", "hydra.run.dir=."),
        ("nequip-package", "build", "out/last.ckpt", PACKAGE),
        ("nequip-compile", PACKAGE, COMPILED, "--mode", "aotinductor", "--target", "batch", "--device", "cpu"),
    ):
        subprocess.run([scripts / words[0], *words[1:]], cwd=out, check=True, stdout=subprocess.DEVNULL)


def theirs(structures: Sequence[Atoms], out: Path) -> None:
    """Measure the compiled network."""
    import torch  # noqa: PLC0415 - of another environment
    from nequip.data import AtomicDataDict  # noqa: PLC0415
    from nequip.model.inference_models import load_compiled_model  # noqa: PLC0415

    torch.set_num_threads(1)
    model, _ = load_compiled_model(str(out / COMPILED), "cpu")
    types = torch.zeros(100, dtype=torch.int64)
    types[torch.tensor(ELEMENTS)] = torch.arange(len(ELEMENTS))
    graphs = []
    for atoms in structures:
        i, j, shifts = primitive_neighbor_list("ijS", atoms.pbc, atoms.cell[:], atoms.positions, CUTOFF)
        graphs.append(
            {
                AtomicDataDict.POSITIONS_KEY: torch.tensor(atoms.positions),
                AtomicDataDict.CELL_KEY: torch.tensor(atoms.cell[:]).view(1, 3, 3),
                AtomicDataDict.EDGE_INDEX_KEY: torch.tensor(np.array([i, j])),
                AtomicDataDict.EDGE_CELL_SHIFT_KEY: torch.tensor(shifts, dtype=torch.float64).reshape(-1, 3),
                AtomicDataDict.ATOM_TYPE_KEY: types[torch.tensor(atoms.numbers)],
                AtomicDataDict.BATCH_KEY: torch.zeros(len(atoms), dtype=torch.int64),
                AtomicDataDict.NUM_NODES_KEY: torch.tensor([len(atoms)]),
            }
        )
    edges = [graph[AtomicDataDict.EDGE_INDEX_KEY].shape[1] for graph in graphs]
    order = np.argsort(edges)

    def run(some: list[dict[str, Any]], size: int) -> None:
        # The compiled network needs at least two structures, so a single last one joins the batch before it.
        starts = range(0, max(len(some) - 1, 1), size)
        for start in starts:
            stop = start + size if start != starts[-1] else len(some)
            model(AtomicDataDict.batched_from_list(some[start:stop]))

    measure("aotinductor", run, [graphs[place] for place in order], sorted(edges), BATCHES["aotinductor"])


def ours(name: str, structures: Sequence[Atoms], out: Path) -> None:
    """Import, export and measure 7net-0 or the package."""
    from pretrained import exported  # noqa: PLC0415 - of this environment

    begin = time.perf_counter()
    target = exported(name if name == "7net-0" else out / PACKAGE, out)
    print(f"  {name}: {target.stat().st_size / 1e6:.1f} MB; import and export took {time.perf_counter() - begin:.0f} s")
    measure_file(name, target, structures, CUTOFF, BATCHES[name])


def main() -> None:
    """Compare the engines, or run one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("compare", "make", *BATCHES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", help="interpreter of an environment with nequip")
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    words = parser.parse_args()
    if words.side == "make":
        make(words.out, words.data)
    elif words.side == "aotinductor":
        theirs(crystals(words.data, words.structures), words.out)
    elif words.side != "compare":
        ours(words.side, crystals(words.data, words.structures), words.out)
    else:
        from pretrained import header  # noqa: PLC0415 - of this environment

        print(f"{header('e3nn')}; {words.structures} crystals")
        options = ("--data", words.data, "--out", words.out, "--structures", str(words.structures))
        if not (words.out / COMPILED).exists():
            subprocess.run([words.peer, __file__, "make", *options], check=True)
        pythons = {name: words.peer if name == "aotinductor" else sys.executable for name in BATCHES}
        compare({name: (python, __file__, name, *options) for name, python in pythons.items()}, words.turns)


if __name__ == "__main__":
    main()
