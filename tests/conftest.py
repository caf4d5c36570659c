"""Fixtures and helpers shared by many tests: real data, small networks and their exported files, structure files."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.io
import fsspec
import numpy as np
import onnx
import pytest
import torch
from ase.calculators.emt import EMT
from equiscreen.cli.app import app, main
from equiscreen.export import exporter, lowering
from equiscreen.export.cuda_placement import cpu_nodes
from equiscreen.export.exporter import lower_and_check
from equiscreen.export.graph_builder import OPSET
from equiscreen.model.checkpoint import ModelCard, save_checkpoint
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.networks.base import Network
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import Structure
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import settings
from torch import fx
from typer.testing import CliRunner

# Workers of pytest-xdist share the cores: with several threads each, they would spin while they wait for one another.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for processes that tests start

# The first example of a test may compile, import or wait for other processes: no test fails because it was slow.
settings.register_profile("equiscreen", deadline=None)
settings.load_profile("equiscreen")

ROOT = Path(__file__).parents[1]
# Files whose tests take longest. They come first, so that no process of pytest-xdist is left with one at the end.
LONGEST_FILES = (
    "test_faults.py",
    "screening/scoring/test_interrupted.py",
    "screening/relaxation/test_relax.py",
    "screening/relaxation/test_interrupted.py",
    "demo/test_demo.py",
    "model/pretrained/test_pretrained.py",
    "screening/convex_hull/test_hull.py",
    "export/test_grid.py",
    "model/training/test_resume.py",
    "model/training/test_parallel.py",
    "model/training/test_run_folder.py",
    "model/training/test_finetune.py",
    "conformance/test_eager.py",
    "conformance/test_onnx.py",
    "screening/relaxation/test_batched.py",
)
DATA = ROOT.parent / "shared" / "data"
CUTOFF = 4.5
ELEMENTS = (13, 29, 79)
REFERENCES = (-1.5, -3.25, -9.0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests of the longest files to the front; all others keep their order."""
    places = {ROOT / "tests" / name: place for place, name in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: places.get(item.path, len(places)))


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the real data sets, which is beside the repository and not part of it."""
    if not DATA.is_dir():
        pytest.skip("the real data sets are not beside the repository")
    return DATA


@pytest.fixture(scope="session", autouse=True)
def _connections_closed() -> Iterator[None]:
    """Close the connections of object-store clients: garbage collection at interpreter exit would be too late."""
    yield
    for protocol in ("http", "s3"):
        fsspec.get_filesystem_class(protocol).clear_instance_cache()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def _exports_stay_on_the_gpu() -> Iterator[None]:
    """Check that each graph that a test exports runs on a GPU, except for arithmetic with sizes."""
    check_structure = exporter.check_structure

    def check(model: onnx.ModelProto) -> None:
        check_structure(model)
        if model.opset_import[0].version <= OPSET:
            leaving = [node for node in cpu_nodes(model) if not node.shape_arithmetic]
            assert not leaving, f"ONNX Runtime would run these nodes on the CPU, not on a GPU: {leaving}"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "check_structure", check)
        yield


def small_network(hidden_irreps: str = "4x0e + 3x1o + 2x2e", **settings: Any) -> EquivariantNetwork:
    """An untrained network for three metals, in float64."""
    torch.manual_seed(3)
    config = {"cutoff": CUTOFF, "hidden_irreps": hidden_irreps, "n_radial": 4, "radial_hidden": 8, **settings}
    statistics = DataStatistics(REFERENCES, (0.7,) * len(ELEMENTS), 20.0)
    return EquivariantNetwork(NetworkConfig(**config), ELEMENTS, statistics, torch.float64).eval()


@pytest.fixture(scope="session")
def network() -> EquivariantNetwork:
    """A network with natural parity and correlation 2, as in the exported fixtures."""
    return small_network(correlation=2)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the worker processes of pytest-xdist share."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "shared"
    folder.mkdir(exist_ok=True)
    return folder


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Make a file in the first process that needs it; the other processes wait for it."""
    with path.with_name(f"{path.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            unfinished = path.with_name(f"unfinished-{path.name}")
            make(unfinished)
            unfinished.rename(path)
    return path


@contextmanager
def traced_once() -> Iterator[None]:
    """Within this block, let an export trace each network only once, which takes half of the time.

    Otherwise an export traces a network twice and compares the graphs, to check that they do not depend on the sizes of
    its inputs. tests/export/test_grid.py exports a grid of networks without this shortcut.
    """
    trace = lowering._trace
    traced: dict[int, tuple[Network, fx.GraphModule]] = {}

    def trace_once(network: Network, example: tuple[torch.Tensor, ...]) -> fx.GraphModule:
        if id(network) not in traced:
            traced[id(network)] = network, trace(network, example)
        return traced[id(network)][1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lowering, "_trace", trace_once)
        yield


@pytest.fixture(scope="session")
def exported(shared_folder: Path) -> Callable[[str], Path]:
    """Function that returns the ONNX file of the network in a given dtype, exported on first use."""

    def file(dtype: str) -> Path:
        def export(path: Path) -> None:
            cast = small_network(correlation=2).to(getattr(torch, dtype))
            with traced_once():
                path.write_bytes(lower_and_check([cast], ModelCard(training_data="none"))[0].SerializeToString())

        return made_once(shared_folder / f"{dtype}.onnx", export)

    return file


@pytest.fixture(scope="session")
def sevennet_model(shared_folder: Path) -> Path:
    """ONNX file of 7net-0, a network trained on real crystals, made by `equiscreen import` and `equiscreen export`."""
    pytest.importorskip("sevenn", reason="the sevenn package contains the weights")

    def export(path: Path) -> None:
        checkpoint = path.with_suffix(".ckpt")
        for words, out in ((("import", "7net-0"), checkpoint), (("export", str(checkpoint)), path)):
            with traced_once():
                done = CliRunner().invoke(app, [*words, "--overwrite", "--out", str(out)])
            assert done.exit_code == 0, done.output
            assert str(out) in done.stdout

    return made_once(shared_folder / "7net-0.onnx", export)


@pytest.fixture
def command_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Function that runs `equiscreen` with the given words in this process, which has imported everything already."""

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.setattr(sys, "argv", ["equiscreen", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        printed = capfd.readouterr()
        return subprocess.CompletedProcess(sys.argv, int(end.value.code or 0), printed.out, printed.err)

    return run


def without_progress(err: str) -> list[str]:
    """Lines that `screen` has printed to standard error, except those on its progress."""
    return [line for line in err.splitlines() if not line.startswith("screen: ")]


@pytest.fixture(scope="session")
def checkpoint(network: EquivariantNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "model.ckpt"
    save_checkpoint(path, network, ModelCard())
    return path


def write_extxyz(path: Path, count: int, seed: int = 0, elements: Sequence[int] = ELEMENTS) -> Path:
    """Write random crystals with random energies, forces and stresses as extended XYZ."""
    rng = np.random.default_rng(seed)
    images = []
    for structure in probe_structures(elements, count, seed):
        atoms = structure.to_ase()
        energy, stress = rng.normal(), rng.normal(size=(3, 3))
        atoms.info.update(energy=energy, stress=(stress + stress.T) / 2)
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


def write_emt_labelled(path: Path, structures: Sequence[Structure]) -> Path:
    """Write structures with EMT energies, forces and stresses as extended XYZ."""
    images = []
    for structure in structures:
        atoms = structure.to_ase()
        atoms.calc = EMT()
        atoms.get_forces()
        atoms.get_stress()
        images.append(atoms)
    ase.io.write(path, images, format="extxyz")
    return path


def pymatgen_dict(structure: Structure) -> dict[str, object]:
    """A structure as the dict that pymatgen writes to JSON."""
    symbols = structure.to_ase().get_chemical_symbols()
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "lattice": {"matrix": structure.cell.tolist()},
        "sites": [
            {"species": [{"element": symbol, "occu": 1}], "abc": abc.tolist()}
            for symbol, abc in zip(symbols, structure.frac_coord, strict=True)
        ],
    }


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def cif_text(structure: Structure) -> str:
    """The text of a CIF in space group P1."""
    a, b, c, alpha, beta, gamma = structure.to_ase().cell.cellpar()
    lines = ["data_x", f"_cell_length_a {a:.12f}", f"_cell_length_b {b:.12f}", f"_cell_length_c {c:.12f}"]
    lines += [f"_cell_angle_alpha {alpha:.12f}", f"_cell_angle_beta {beta:.12f}", f"_cell_angle_gamma {gamma:.12f}"]
    lines += ["_symmetry_Int_Tables_number 1", "loop_", "_symmetry_equiv_pos_as_xyz", "'x, y, z'", "loop_"]
    lines += [f"_atom_site_{x}" for x in ("type_symbol", "label", "fract_x", "fract_y", "fract_z", "occupancy")]
    for i, atom in enumerate(structure.to_ase()):
        x, y, z = structure.frac_coord[i]
        lines.append(f"{atom.symbol} {atom.symbol}{i} {x:.12f} {y:.12f} {z:.12f} 1")
    return "\n".join(lines) + "\n"
