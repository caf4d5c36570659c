"""Structures per second of 7net-0 with energy, forces and stress on the CPU: the exported file and SevenNet's code.

    python tests/benchmarks/pretrained_rate.py --data DATA_FOLDER [--structures 200] [--cores 2] [--rounds 7]
        [--batch-sizes 1 2 4 8 16 32] [--slots 500 1000 2000 4000] [--model 7net-0] [--scratch FOLDER]

Both sides evaluate the same crystals (mp_20_val.csv.gz, rattled by 0.05 angstrom and strained by 1 %), each with its
best settings: SevenNet in PyTorch, without gradients of the weights, in batches of N structures; equiscreen in tables
of N neighbour slots. Both run either as one process with a thread per core, or as one single-threaded process per core,
which share the crystals. Processes are started and warmed up once; their work is timed from outside, until the last one
finishes.

First every setting runs a few times, the sides alternating, and the fastest run counts. Then the best settings of each
side run in alternating rounds, since the machine may be busy with other things, and medians count. "Network" is the
time from graphs in tables or batches to results, and "with graphs" the time from structures to results. The first line
of results checks that both sides agree.

The peak is a product of two 2,048 x 2,048 matrices (float32) in ONNX Runtime with the same processes and threads, the
best of all rounds. The matrix products of our graph are counted from ONNX Runtime's profile: 2 M N K for each product,
padding included. Takes about half an hour. Prints the text of `pretrained_rate.txt`.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import multiprocessing
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from equiscreen.export import OnnxPotential
from equiscreen.pipeline import GraphBlock, Structure, neighbor_table
from equiscreen.pipeline.graphs.neighbor_table import evaluation_groups
from numpy.typing import NDArray
from pretrained import crystals, exported, header, kept_folder

OURS, SEVENNET = "equiscreen", "SevenNet"
NETWORK, WITH_GRAPHS = "network", "with graphs"
FINALISTS = 2
TRIALS = 2
PEAK_SIZE, PEAK_PRODUCTS = 2_048, 4
PROFILED_TABLES = 64

Results = list[dict[str, NDArray[Any]]]


@dataclass(frozen=True, slots=True)
class Setting:
    """How one side runs.

    Attributes:
        side: `OURS` or `SEVENNET`.
        processes: Number of processes that share the crystals.
        threads: Threads per process.
        size: Structures per batch, or slots per table.
    """

    side: str
    processes: int
    threads: int
    size: int

    def __str__(self) -> str:
        unit = "slots" if self.side == OURS else "structures"
        return f"{self.side:<12}{self.processes} x {self.threads} threads, {self.size:>5,} {unit}"


class Side(Protocol):
    """One network in one process."""

    def choose(self, setting: Setting) -> None:
        """Apply a setting."""

    def inputs(self, structures: Sequence[Structure]) -> list[Any]:
        """Inputs of the network, batch by batch."""

    def run(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Outputs of one batch."""

    def from_structures(self, structures: Sequence[Structure]) -> Results:
        """Outputs for structures, in their order, including the construction of the graphs."""


class OurSide:
    """The exported file in ONNX Runtime."""

    def __init__(self, model: str) -> None:
        self.model = Path(model).read_bytes()
        self.potentials: dict[int, OnnxPotential] = {}
        self.potential: OnnxPotential

    def choose(self, setting: Setting) -> None:
        """Select the session with this number of threads, and the slots per table."""
        if setting.threads not in self.potentials:
            self.potentials[setting.threads] = OnnxPotential(self.model, threads=setting.threads)
        self.potential = self.potentials[setting.threads]
        self.potential.slots = setting.size

    def inputs(self, structures: Sequence[Structure]) -> list[Any]:
        """Tables, grouped and laid out as by `OnnxPotential.evaluate`."""
        block = GraphBlock.from_structures(structures, self.potential.cutoff)
        cutoff = self.potential.cutoff
        groups = evaluation_groups(block, cutoff, self.potential.slots)
        return [neighbor_table(block.take(rows), cutoff, width=width).arrays() for rows, width in groups]

    def run(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Outputs of one table."""
        return self.potential.run_table(inputs)

    def from_structures(self, structures: Sequence[Structure]) -> Results:
        """Outputs of `OnnxPotential.evaluate_structures`."""
        found = self.potential.evaluate_structures(structures)
        return [{"energy": found.energy, "forces": found.forces, "stress": found.stress}]

    def products(self, structures: Sequence[Structure], folder: str) -> tuple[float, int, int]:
        """Floating-point operations in the matrix products of some tables, their edges and their slots."""
        import onnxruntime  # noqa: PLC0415 - only in the processes that use it

        tables = self.inputs(structures)
        tables = tables[:: math.ceil(len(tables) / PROFILED_TABLES)]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.enable_profiling = True
        # Optimised, products would be merged with transpositions that the profile does not show.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.profile_file_prefix = f"{folder}/profile"
        session = onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])
        names = [item.name for item in session.get_inputs()]
        for table in tables:
            session.run(None, {name: table[name] for name in names})
        profile = Path(session.end_profiling())
        events = json.loads(profile.read_text())
        profile.unlink()
        flop = sum(product_flop(event["args"]) for event in events if event.get("args", {}).get("op_name") == "MatMul")
        slots = sum(table["neighbors"].size for table in tables)
        # Padding slots point to themselves.
        padding = sum(int((table["reverse"].ravel() == np.arange(table["reverse"].size)).sum()) for table in tables)
        return flop, slots - padding, slots


class SevenNetSide:
    """SevenNet's own network in PyTorch, on batches of its own graphs."""

    def __init__(self, model: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # The processes of the other side do not need these modules.
            import torch  # noqa: PLC0415 - see above
            from sevenn.atom_graph_data import AtomGraphData  # noqa: PLC0415 - see above
            from sevenn.train.dataload import unlabeled_atoms_to_graph  # noqa: PLC0415 - see above
            from sevenn.util import load_checkpoint  # noqa: PLC0415 - see above
            from torch_geometric.data import Batch  # noqa: PLC0415 - see above

            self.network = load_checkpoint(model).build_model()
        self.network.eval().requires_grad_(requires_grad=False)  # slightly faster than in its calculator
        self.network.set_is_batch_data(True)
        self.set_threads = torch.set_num_threads
        self.graph = lambda atoms: unlabeled_atoms_to_graph(atoms, self.network.cutoff)
        self.data, self.join = AtomGraphData.from_numpy_dict, Batch.from_data_list
        self.size = 1

    def choose(self, setting: Setting) -> None:
        """Set PyTorch's threads, and the structures per batch."""
        self.set_threads(setting.threads)
        self.size = setting.size

    def inputs(self, structures: Sequence[Structure]) -> list[Any]:
        """Batches, in the order of the structures."""
        return [
            self.join(
                [self.data(self.graph(structure.to_ase())) for structure in structures[first : first + self.size]]
            )
            for first in range(0, len(structures), self.size)
        ]

    def run(self, inputs: Any) -> Mapping[str, NDArray[Any]]:
        """Outputs of one batch; the network modifies its input, so it gets a shallow copy."""
        out = self.network(copy.copy(inputs))
        stress = -out["inferred_stress"].detach().numpy()[:, [0, 3, 5, 3, 1, 4, 5, 4, 2]]  # from xx yy zz xy yz zx
        energy, forces = out["inferred_total_energy"].detach().numpy(), out["inferred_force"].detach().numpy()
        return {"energy": energy.reshape(-1), "forces": forces, "stress": stress.reshape(-1, 3, 3)}

    def from_structures(self, structures: Sequence[Structure]) -> Results:
        """Outputs, batch by batch."""
        return [dict(self.run(batch)) for batch in self.inputs(structures)]


class Peak:
    """Products of large matrices in ONNX Runtime."""

    def __init__(self, threads: int) -> None:
        import onnxruntime  # noqa: PLC0415 - only in the processes that use it
        from onnx import TensorProto, helper  # noqa: PLC0415 - only in the processes that use it

        shape = (PEAK_SIZE, PEAK_SIZE)
        a, b, c = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "abc")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "peak", [a, b], [c])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        rng = np.random.default_rng(0)
        self.feed = {name: rng.normal(size=shape).astype(np.float32) for name in "ab"}

    def run(self) -> None:
        """Compute `PEAK_PRODUCTS` products."""
        for _ in range(PEAK_PRODUCTS):
            self.session.run(None, self.feed)


def product_flop(arguments: Mapping[str, Any]) -> float:
    """2 M N K of one product in ONNX Runtime's profile, which does not always have the shape of the second matrix."""
    (first, *_), (out,) = arguments["input_type_shape"], arguments["output_type_shape"]
    inner = next(iter(first.values()))[-1]
    return 2.0 * math.prod(next(iter(out.values()))) * inner


def work(connection: Connection, side: str, model: str, structures: Sequence[Structure]) -> None:
    """Loop of a process: carry out each message on its share of the structures."""
    network: Side = OurSide(model) if side == OURS else SevenNetSide(model)
    prepared: dict[tuple[Setting, int], list[Any]] = {}
    peaks: dict[int, Peak] = {}
    while message := connection.recv():
        task, setting, parts, number = message
        network.choose(setting)
        own = [structures[row] for row in parts[number]]
        answer: Any = None
        if task == NETWORK:
            if (setting, number) not in prepared:
                prepared[setting, number] = network.inputs(own)
            for inputs in prepared[setting, number]:
                network.run(inputs)
        elif task == WITH_GRAPHS:
            answer = network.from_structures(own)
        elif task == "peak":
            if setting.threads not in peaks:
                peaks[setting.threads] = Peak(setting.threads)
            peaks[setting.threads].run()
        elif isinstance(network, OurSide):
            answer = network.products(own, str(Path(model).parent))
        connection.send(answer)


class Team:
    """The processes of both sides, started once.

    Args:
        models: Model of each side.
        structures: Structures to evaluate.
        n_edges: Edges of each structure, int[n], by which the work is divided.
        processes: Processes per side.
    """

    def __init__(
        self, models: Mapping[str, str], structures: Sequence[Structure], n_edges: NDArray[np.integer], processes: int
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self.order = np.argsort(-n_edges, kind="stable")
        self.connections: dict[str, list[Connection]] = {}
        self.processes = []
        for side, model in models.items():
            for _ in range(processes):
                ours, theirs = context.Pipe()
                process = context.Process(target=work, args=(theirs, side, model, structures), daemon=True)
                process.start()
                theirs.close()
                self.processes.append(process)
                self.connections.setdefault(side, []).append(ours)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for connection in chain.from_iterable(self.connections.values()):
            if error is None:
                connection.send(None)
            connection.close()
        for process in self.processes:
            process.join() if error is None else process.terminate()

    def run(self, task: str, setting: Setting) -> tuple[float, list[Any]]:
        """Run a task in the processes of a setting; returns the seconds until the last one finishes, and the answers.

        Raises:
            SystemExit: A process ended.
        """
        parts = [np.sort(self.order[number :: setting.processes]) for number in range(setting.processes)]
        connections = self.connections[setting.side][: setting.processes]
        begin = time.perf_counter()
        for number, connection in enumerate(connections):
            connection.send((task, setting, parts, number))
        try:
            answers = [connection.recv() for connection in connections]
        except EOFError:
            raise SystemExit(
                f"{setting}: its process ended, perhaps out of memory; use smaller --batch-sizes"
            ) from None
        return time.perf_counter() - begin, answers


def settings(arguments: argparse.Namespace, side: str) -> list[Setting]:
    """All settings of one side."""
    arrangements = dict.fromkeys(((1, arguments.cores), (arguments.cores, 1)))
    sizes = arguments.slots if side == OURS else arguments.batch_sizes
    return [Setting(side, *arrangement, size) for arrangement in arrangements for size in sizes]


def in_turn(arguments: argparse.Namespace) -> list[Setting]:
    """All settings, the sides alternating."""
    pairs = zip_longest(settings(arguments, SEVENNET), settings(arguments, OURS))
    return [setting for setting in chain.from_iterable(pairs) if setting is not None]


def check(team: Team, cores: int, n_atoms: NDArray[np.integer]) -> None:
    """Print the largest differences between the two sides."""
    found = {}
    for setting in (Setting(OURS, 1, cores, 1_000), Setting(SEVENNET, 1, cores, 4)):
        (results,) = team.run(WITH_GRAPHS, setting)[1]
        found[setting.side] = {name: np.concatenate([part[name] for part in results]) for name in results[0]}
    out = {name: np.abs(values - found[SEVENNET][name]) for name, values in found[OURS].items()}
    print(
        f"the sides differ by at most {(out['energy'] / n_atoms).max():.1e} eV/atom, {out['forces'].max():.1e} "
        f"eV/angstrom, {out['stress'].max():.1e} eV/angstrom^3",
        flush=True,
    )


def trials(team: Team, arguments: argparse.Namespace) -> dict[Setting, float]:
    """Run time in seconds of the fastest of a few runs of every setting."""
    best: dict[Setting, float] = {}
    for turn in range(TRIALS + 1):
        for setting in in_turn(arguments):
            seconds, _ = team.run(NETWORK, setting)
            if turn:  # the first run builds the graphs and warms up compilers and caches
                best[setting] = min(best.get(setting, math.inf), seconds)
    return best


def finalists(best: Mapping[Setting, float]) -> dict[str, list[Setting]]:
    """The best settings of each side, the best first."""
    return {
        side: sorted((setting for setting in best if setting.side == side), key=best.__getitem__)[:FINALISTS]
        for side in (SEVENNET, OURS)
    }


def print_settings(best: Mapping[Setting, float], structures: int) -> None:
    """Print a line per arrangement and a column per size."""
    print("\nnetwork, structures/s, the fastest of a few runs")
    for side in (SEVENNET, OURS):
        of_side = [setting for setting in best if setting.side == side]
        sizes = list(dict.fromkeys(setting.size for setting in of_side))
        unit = "slots per table" if side == OURS else "structures per batch"
        print(f"{side:<12}{'':<12}" + "".join(f"{size:>8,}" for size in sizes) + f"   {unit}")
        for arrangement in dict.fromkeys((setting.processes, setting.threads) for setting in of_side):
            rates = [structures / best[Setting(side, *arrangement, size)] for size in sizes]
            name = f"{arrangement[0]} x {arrangement[1]} threads"
            print(f"  {name:<22}" + "".join(f"{rate:>8.1f}" for rate in rates), flush=True)


def measure(
    team: Team, chosen: Mapping[str, list[Setting]], rounds: int
) -> tuple[dict[tuple[str, Setting], list[float]], dict[tuple[int, int], float]]:
    """Run times of all rounds in seconds, and the peak in FLOP/s by processes and threads."""
    seconds: dict[tuple[str, Setting], list[float]] = {}
    peaks: dict[tuple[int, int], float] = {}
    for turn in range(rounds):
        for place in range(max(map(len, chosen.values()))):
            for task in (NETWORK, WITH_GRAPHS):
                for side in (SEVENNET, OURS):
                    if place < len(chosen[side]):
                        setting = chosen[side][place]
                        seconds.setdefault((task, setting), []).append(team.run(task, setting)[0])
        for setting in chosen[OURS]:
            arrangement = (setting.processes, setting.threads)
            if not turn:
                team.run("peak", setting)  # creates the matrices
            rate = setting.processes * PEAK_PRODUCTS * 2 * PEAK_SIZE**3 / team.run("peak", setting)[0]
            peaks[arrangement] = max(peaks.get(arrangement, 0.0), rate)
    return seconds, peaks


def print_rates(seconds: Mapping[tuple[str, Setting], list[float]], structures: int, edges: int) -> dict[str, Setting]:
    """Print the rates of both sides with and without graphs, and the ratios.

    Returns:
        The setting of each side with the fastest network.
    """
    best: dict[str, Setting] = {}
    for task in (NETWORK, WITH_GRAPHS):
        print(f"\n{task + ', medians':<40}{'structures/s':>14}{'edges/s':>12}{'s, min - max':>18}")
        for (measured, setting), times in seconds.items():
            if measured == task:
                middle = median(times)
                spread = f"{min(times):.2f} - {max(times):.2f}"
                print(f"{setting!s:<40}{structures / middle:>14.1f}{edges / middle:>12,.0f}{spread:>18}")
        winners = {
            side: min(
                (key for key in seconds if key[0] == task and key[1].side == side),
                key=lambda key: median(seconds[key]),
            )
            for side in (SEVENNET, OURS)
        }
        ratio = median(seconds[winners[SEVENNET]]) / median(seconds[winners[OURS]])
        each = [a / b for a, b in zip(seconds[winners[SEVENNET]], seconds[winners[OURS]], strict=True)]
        print(f"{OURS} / {SEVENNET}, best to best: {ratio:.2f}; by round {min(each):.2f} to {max(each):.2f}")
        if task == NETWORK:
            best = {side: key[1] for side, key in winners.items()}
    return best


def print_share(team: Team, setting: Setting, edge_rate: float, peaks: Mapping[tuple[int, int], float]) -> None:
    """Print the rate of matrix products of our graph, and its share of the peak."""
    flop, edges, slots = team.run("products", Setting(OURS, 1, setting.threads, setting.size))[1][0]
    peak = peaks[setting.processes, setting.threads]
    print(
        f"\nmatrix products of our graph: {flop / edges / 1e6:.3f} MFLOP/edge ({flop / slots / 1e6:.3f} MFLOP/slot, "
        f"{slots / edges:.2f} slots/edge), so {flop / edges * edge_rate / 1e9:.1f} GFLOP/s"
    )
    for (processes, threads), rate in peaks.items():
        print(f"peak of float32 products, {processes} x {threads} threads: {rate / 1e9:.1f} GFLOP/s")
    print(
        f"share of the peak at {setting.processes} x {setting.threads} threads: {flop / edges * edge_rate / peak:.1%}"
    )


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="7net-0")
    parser.add_argument("--structures", type=int, default=200)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--slots", type=int, nargs="+", default=[500, 1_000, 2_000, 4_000])
    parser.add_argument("--scratch", type=Path)
    arguments = parser.parse_args()
    print(header("sevenn", "e3nn"))
    structures = list(crystals(arguments.data, arguments.structures).values())
    with kept_folder(arguments.scratch) as folder:
        path = exported(arguments.model, folder)
        block = GraphBlock.from_structures(structures, OnnxPotential.load(path).cutoff)
        edges = int(block.n_edges.sum())
        print(f"{len(block):,} crystals, {len(block.atomic_number):,} atoms, {edges:,} edges", flush=True)
        models = {SEVENNET: arguments.model, OURS: str(path)}
        with Team(models, structures, block.n_edges, arguments.cores) as team:
            check(team, arguments.cores, block.n_atoms)
            fastest = trials(team, arguments)
            print_settings(fastest, len(block))
            seconds, peaks = measure(team, finalists(fastest), arguments.rounds)
            best = print_rates(seconds, len(block), edges)[OURS]
            print_share(team, best, edges / median(seconds[NETWORK, best]), peaks)


if __name__ == "__main__":
    main()
