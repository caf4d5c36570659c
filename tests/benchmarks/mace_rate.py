"""Edges per second of a MACE of MP-0-medium's shape on one CPU thread: the exported file and mace-torch.

    python tests/benchmarks/mace_rate.py compare --peer PYTHON --data DATA --out FOLDER [--structures 200] [--turns 2]

The weights are random: 128x0e + 128x1o, harmonics to degree 3, correlation 3, 89 elements, two interactions, cutoff 6
angstrom. PYTHON is the interpreter of an environment with mace-torch (see tests/oracles/mace.py); it writes the file
`medium.model`, which this environment imports and exports with all checks. Both sides evaluate energies, forces and
stresses of the first crystals of mp_20_val.csv.gz in float32 on one thread; graphs are built beforehand. Each engine
chooses its batch size on a sample of the crystals: mace-torch as it is (eager), as TorchScript (what it writes for
LAMMPS) and by torch.compile (`compile_mode` of its calculator), and equiscreen. The engines run in turn, each in a
process of its own. Prints the text of `mace_rate.txt`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from engines_in_turn import ELEMENTS, compare, crystals, measure, measure_file

CUTOFF = 6.0
# Structures per batch, or neighbour slots per table.
BATCHES = {"equiscreen": (500, 1000, 2000, 4000), "eager": (1, 2, 4, 8), "torchscript": (1, 2, 4, 8), "compile": (1, 4)}


def make(out: Path) -> None:
    """Write the weights file with mace-torch."""
    from mace import modules  # noqa: PLC0415, I001 - first: PyTorch would refuse e3nn's files otherwise
    import torch  # noqa: PLC0415 - of another environment
    from e3nn import o3  # noqa: PLC0415

    torch.manual_seed(0)
    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    model = modules.ScaleShiftMACE(
        r_max=CUTOFF,
        num_bessel=10,
        num_polynomial_cutoff=5,
        max_ell=3,
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=2,
        num_elements=len(ELEMENTS),
        hidden_irreps=o3.Irreps("128x0e + 128x1o"),
        MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(ELEMENTS)),
        avg_num_neighbors=60.0,
        atomic_numbers=ELEMENTS,
        correlation=3,
        gate=torch.nn.functional.silu,
        atomic_inter_scale=0.8,
        atomic_inter_shift=0.0,
    )
    torch.save(model, out / "medium.model")


def theirs(engine: str, structures: Sequence[Atoms], out: Path) -> None:
    """Measure mace-torch."""
    import mace.data  # noqa: PLC0415 - first: PyTorch would refuse e3nn's files otherwise
    import torch  # noqa: PLC0415 - of another environment
    from e3nn.util import jit  # noqa: PLC0415
    from mace.calculators import MACECalculator  # noqa: PLC0415
    from mace.tools import torch_geometric, utils  # noqa: PLC0415

    torch.set_num_threads(1)
    mode = "default" if engine == "compile" else None
    path = str(out / "medium.model")
    calculator = MACECalculator(model_paths=path, device="cpu", default_dtype="float32", compile_mode=mode)
    model = calculator.models[0]
    if engine == "torchscript":
        model = jit.compile(model)
    for parameter in model.parameters():
        parameter.requires_grad = False
    torch.set_default_dtype(torch.float32)
    table = utils.AtomicNumberTable(ELEMENTS)
    configs = [mace.data.config_from_atoms(atoms) for atoms in structures]
    graphs = [mace.data.AtomicData.from_config(config, z_table=table, cutoff=CUTOFF) for config in configs]
    graphs.sort(key=lambda graph: graph.edge_index.shape[1])

    def run(some: list[Any], size: int) -> None:
        for batch in torch_geometric.dataloader.DataLoader(some, batch_size=size, shuffle=False):
            # As the calculator does: a compiled network gets inputs with gradients, and keeps its graph.
            model(calculator._clone_batch(batch).to_dict(), compute_stress=True, training=engine == "compile")

    measure(engine, run, graphs, [graph.edge_index.shape[1] for graph in graphs], BATCHES[engine])


def ours(structures: Sequence[Atoms], out: Path) -> None:
    """Import and export the weights unless that is done, and measure the ONNX file."""
    from equiscreen.export import export_onnx  # noqa: PLC0415 - of this environment
    from equiscreen.model.pretrained.load import import_weights  # noqa: PLC0415

    target = out / "medium.onnx"
    if not target.exists():
        import_weights(out / "medium.model", out / "medium.ckpt", overwrite=True)
        begin, cpu = time.perf_counter(), time.process_time()
        export_onnx(out / "medium.ckpt", target)
        print(f"export with all checks: {time.perf_counter() - begin:.0f} s, {time.process_time() - cpu:.0f} s of CPU")
        weights, file = ((out / name).stat().st_size / 1e6 for name in ("medium.ckpt", "medium.onnx"))
        print(f"weights: {weights:.1f} MB, ONNX file: {file:.1f} MB, {file / weights:.2f} times as large")
    measure_file("equiscreen", target, structures, CUTOFF, BATCHES["equiscreen"])


def main() -> None:
    """Compare the engines, or run one side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("side", choices=("compare", "make", *BATCHES))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--peer", help="interpreter of an environment with mace-torch")
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--engines", nargs="+", choices=[*BATCHES], default=[*BATCHES])
    words = parser.parse_args()
    if words.side == "make":
        make(words.out)
    elif words.side == "equiscreen":
        ours(crystals(words.data, words.structures), words.out)
    elif words.side != "compare":
        theirs(words.side, crystals(words.data, words.structures), words.out)
    else:
        from pretrained import header  # noqa: PLC0415 - of this environment

        print(f"{header('e3nn')}; {words.structures} crystals")
        if not (words.out / "medium.model").exists():
            subprocess.run([words.peer, __file__, "make", "--out", words.out], check=True)
        options = ("--data", words.data, "--out", words.out, "--structures", str(words.structures))
        pythons = {name: sys.executable if name == "equiscreen" else words.peer for name in words.engines}
        compare({name: (python, __file__, name, *options) for name, python in pythons.items()}, words.turns)


if __name__ == "__main__":
    main()
