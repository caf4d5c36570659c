"""TorchScript archives: the numbers of their own codes, and what is wrong with other files."""

from __future__ import annotations

import copy
import json
import zipfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from equiscreen.campaigns import model_file
from equiscreen.cli.app import app
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint, load_pretrained
from equiscreen.model.networks.base import Network
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.records.torchscript import read_script
from equiscreen.model.pretrained.script_archives import nequip_script_network
from equiscreen.pipeline.errors import CheckpointError
from typer.testing import CliRunner

from ...conftest import ROOT
from . import test_mace, test_oracles

ORACLES = ROOT / "tests/oracles"
MACE = sorted((ORACLES / "mace").glob("*-*.pt"))
LAMMPS = ORACLES / "mace/1-lammps.pt"
COMPILED = [path for code in ("nequip", "allegro") for path in sorted((ORACLES / code).glob("[0-9]*.nequip.pth"))]
DEPLOYED = sorted((ORACLES / "nequip_deploy").glob("[0-9]*.pth"))
NEQUIP = [*COMPILED, *DEPLOYED]
Change = Callable[[str, bytes], bytes]
# What PyTorch says about making and loading archives here.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")


def changed(target: Path, change: Change, source: Path = LAMMPS, extra: str = "") -> Path:
    """Write an archive with other contents of its members, and perhaps one more member."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
        if extra:
            new.writestr(extra, b"")
    return target


def same(_name: str, content: bytes) -> bytes:
    return content


def pickle_with(old: bytes, new: bytes) -> Change:
    """Replace a word in the pickle of the module."""

    def change(name: str, content: bytes) -> bytes:
        if not name.endswith("/data.pkl"):
            return content
        assert old in content
        return content.replace(old, new, 1)

    return change


@pytest.mark.parametrize("path", MACE, ids=[path.stem for path in MACE])
def test_an_archive_of_mace_is_the_same_network_as_its_weights(path: Path) -> None:
    """`test_mace` compares those with mace-torch, in PyTorch and in ONNX Runtime."""
    number, kind = path.stem.split("-")
    expected, _ = test_mace.network_of(int(number))
    heads = test_mace.SETTINGS[int(number)]["heads"]
    # A file for LAMMPS or CP2K has chosen a head.
    found, card = load_pretrained(path, modality=heads[-1] if kind == "compiled" and len(heads) > 1 else None)
    assert (found.config, found.statistics, found.elements) == (expected.config, expected.statistics, expected.elements)
    assert card.origin.get("head", heads[-1]) == heads[-1]
    state = found.state_dict()
    assert all(torch.equal(x, state[name]) for name, x in expected.state_dict().items())


def test_every_kind_of_archive_is_there() -> None:
    assert {path.stem.partition("-")[2] for path in MACE} == {"compiled", "lammps", "cp2k"}


def test_another_head_of_a_file_for_lammps() -> None:
    found, card = load_pretrained(LAMMPS, modality="pbe")
    assert card.origin["head"] == "pbe"
    assert found.statistics != load_pretrained(LAMMPS)[0].statistics


@pytest.fixture
def float64_by_default() -> Iterator[None]:
    """MACE multiplies atomic numbers by the constants of the ZBL repulsion in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.slow
@pytest.mark.usefixtures("float64_by_default")
def test_an_archive_is_its_own_oracle() -> None:
    """PyTorch runs the compiled network itself on molecules, which need no neighbour list."""
    module = torch.jit.load(LAMMPS)
    network, expected = load_pretrained(LAMMPS)[0], test_mace.network_of(1)[1]
    with np.load(ORACLES / "mace/structures.npz") as arrays:
        ends = np.cumsum(arrays["atoms"])
        places = [slice(end - count, end) for end, count in zip(ends, arrays["atoms"], strict=True)]
        molecules = [number for number, pbc in enumerate(arrays["pbc"]) if not pbc.any()]
        positions = {number: torch.tensor(arrays["positions"][places[number]]) for number in molecules}
        numbers = {number: arrays["numbers"][places[number]].tolist() for number in molecules}
    assert len(molecules) >= 5
    types = list(test_mace.SETTINGS[1]["atomic_numbers"])
    for number, x in positions.items():
        near = torch.cdist(x, x) < network.cutoff
        edges = torch.nonzero(near & ~torch.eye(len(x), dtype=torch.bool)).T
        data = {
            "positions": x,
            "node_attrs": torch.eye(len(types), dtype=x.dtype)[[types.index(one) for one in numbers[number]]],
            "edge_index": edges,
            "shifts": torch.zeros(edges.shape[1], 3, dtype=x.dtype),
            "unit_shifts": torch.zeros(edges.shape[1], 3, dtype=x.dtype),
            "cell": torch.zeros(3, 3, dtype=x.dtype),
            "batch": torch.zeros(len(x), dtype=torch.int64),
            "ptr": torch.tensor([0, len(x)]),
        }
        energy = float(module(data, torch.ones(len(x), dtype=x.dtype))["total_energy_local"].detach())
        assert abs(energy - expected["energy"][number]) / len(x) < 1e-10


def test_an_archive_is_imported_by_the_command_whatever_its_name(tmp_path: Path) -> None:
    path = tmp_path / "potential.dat"
    path.write_bytes(LAMMPS.read_bytes())
    done = CliRunner().invoke(app, ["import", str(path), "--out", str(tmp_path / "out.ckpt")])
    assert done.exit_code == 0, done.output
    network, card = load_checkpoint(tmp_path / "out.ckpt")
    assert card.origin["head"] == "dft"
    state = load_pretrained(LAMMPS)[0].state_dict()
    assert all(torch.equal(x, state[name]) for name, x in network.state_dict().items())


@pytest.mark.slow
def test_an_archive_is_a_model_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUISCREEN_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "potential.dat"
    path.write_bytes(COMPILED[1].read_bytes())
    potential = OnnxPotential.load(model_file(path), threads=1)
    test_oracles.check(potential, results(COMPILED[1]), torch.float32)


def test_settings_can_be_given(tmp_path: Path) -> None:
    config = tmp_path / "settings.json"
    config.write_text(json.dumps(test_mace.SETTINGS[1]))
    found, _ = load_pretrained(LAMMPS, config=config, modality="dft")
    state = load_pretrained(LAMMPS)[0].state_dict()
    assert all(torch.equal(x, state[name]) for name, x in found.state_dict().items())


def archive_of(path: Path) -> str:
    return f"{path.parent.name}-{path.name[:2]}"


def of_nequip(*quick: str) -> pytest.MarkDecorator:
    """Archives of NequIP and Allegro, of which only some are not slow."""
    marks = {path: () if archive_of(path) in quick else pytest.mark.slow for path in NEQUIP}
    return pytest.mark.parametrize(
        "path", [pytest.param(path, id=archive_of(path), marks=marks[path]) for path in NEQUIP]
    )


def results(path: Path) -> test_oracles.Results:
    """What NequIP predicts."""
    if path in COMPILED:
        return test_oracles.oracle(path.parent.name, path.name[:2]).results
    return dict(np.load(path.with_suffix(".npz")))


@cache
def network(path: Path) -> Network:
    """The network in float64."""
    return nequip_script_network(read_script(path), path)


@test_oracles.DTYPES
@of_nequip("nequip-01", "nequip_deploy-02", "allegro-00")
def test_an_archive_of_nequip_gives_its_numbers(path: Path, dtype: torch.dtype) -> None:
    test_oracles.check(TorchPotential(copy.deepcopy(network(path)).to(dtype)), results(path), dtype)


@test_oracles.DTYPES
@of_nequip()
def test_an_archive_of_nequip_gives_its_numbers_in_onnx(path: Path, dtype: torch.dtype) -> None:
    test_oracles.check(test_oracles.exported(copy.deepcopy(network(path)).to(dtype)), results(path), dtype)


def test_an_archive_is_exported_with_the_numbers_of_nequip() -> None:
    path = COMPILED[1]
    test_oracles.check(test_oracles.exported(copy.deepcopy(network(path))), results(path), torch.float64)


def test_archives_of_both_generations_are_there() -> None:
    assert [archive_of(path) for path in COMPILED] == [
        "nequip-01",
        "nequip-11",
        "nequip-17",
        "allegro-00",
        "allegro-01",
    ]
    assert len(DEPLOYED) == 4


# --- bad input --------------------------------------------------------------------------------------------------------


def test_code_in_an_archive_is_not_run(tmp_path: Path) -> None:
    """An archive writes a file when PyTorch loads it; the same code in a file of MACE is not run."""

    class Writer(torch.nn.Module):
        def __init__(self, place: str) -> None:
            super().__init__()
            self.place = place

        @torch.jit.export
        def __getstate__(self) -> tuple[str, bool]:
            return self.place, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[str, bool]) -> None:
            self.place = state[0]
            self.training = state[1]
            torch.save(torch.ones(1), self.place)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    trace, path = tmp_path / "trace", tmp_path / "writer.pt"
    torch.jit.script(Writer(str(trace))).save(path)
    torch.jit.load(path)
    assert trace.exists()
    trace.unlink()
    for trust in (False, True):
        with pytest.raises(CheckpointError, match=r"a TorchScript archive of .*Writer; only archives of"):
            load_pretrained(path, trust=trust)
    hostile = f"torch.save(torch.ones([1]), {str(trace)!r})\nopen({str(trace)!r}, 'w')\n".encode()
    copy = changed(tmp_path / "copy.pt", lambda name, x: hostile + x + hostile if name.endswith(".py") else x)
    state = load_pretrained(LAMMPS)[0].state_dict()
    assert all(torch.equal(x, state[name]) for name, x in load_pretrained(copy)[0].state_dict().items())
    assert not trace.exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"collections\nOrderedDict", b"posix\nsystem", r"requires posix\.system, which is not allowed"),
        (b"\nMACE\n", b"\nFutureMACE\n", "FutureMACE is not supported; only MACE and ScaleShiftMACE are"),
        (b"\nMACE\n", b"\nAtomicDipolesMACE\n", "predicts dipoles"),
        (b"RealAgnosticDensityI", b"RealAgnosticAttI", "interaction_cls_first: RealAgnosticAttInteractionBlock is not"),
        (b"avg_num_neighbors", b"mean_of_neighbors", "'avg_num_neighbors'; .* give its settings with `--config`"),
    ],
)
def test_what_an_archive_asks_for_and_is_not_there_is_named(
    old: bytes, new: bytes, message: str, tmp_path: Path
) -> None:
    path = changed(tmp_path / "changed.pt", pickle_with(old, new))
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(path)
    assert len(str(error.value).splitlines()) == 1


def test_damaged_and_unsafe_archives_are_refused(tmp_path: Path) -> None:
    cut = tmp_path / "cut.pt"
    cut.write_bytes(LAMMPS.read_bytes()[:60_000])
    outside = changed(tmp_path / "outside.pt", same, extra="archive/../../evil.py")
    short = changed(tmp_path / "short.pt", lambda name, x: x[:3] if "/data/" in name else x)
    empty = changed(tmp_path / "empty.pt", lambda name, x: x[:200] if name.endswith("/data.pkl") else x)
    for path, message in (
        (cut, "damaged"),
        (outside, "which lies outside its folder"),
        (short, "a tensor is larger than the data stored for it"),
        (empty, "damaged"),
    ):
        with pytest.raises(CheckpointError, match=message) as error:
            load_pretrained(path)
        assert len(str(error.value).splitlines()) == 1


def test_a_tensor_that_claims_to_be_huge_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(LAMMPS) as archive:
        content = archive.read("archive/data.pkl")
    # The number of elements of the first tensor, and then its shape.
    place = content.index(b"LongStorage\n")
    piece = content[place : place + 60]
    assert piece.count(b"K\x04") == 2
    first = piece.index(b"K\x04")
    huge = b"J\xff\xff\xff\x7f"
    count, shape = piece[:first] + huge + piece[first + 2 :], huge.join(piece.rsplit(b"K\x04", 1))
    for new in (count, shape):
        with pytest.raises(CheckpointError, match="a tensor is larger than the data stored for it"):
            load_pretrained(changed(tmp_path / "huge.pt", pickle_with(piece, new)))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    def spoil(name: str, content: bytes) -> bytes:
        whole = name.startswith("archive/data/") and len(content) % 8 == 0 and len(content) > 400
        return np.full(len(content) // 8, np.nan).tobytes() if whole else content

    with pytest.raises(CheckpointError, match=r"contain NaN or infinite numbers"):
        load_pretrained(changed(tmp_path / "nan.pt", spoil))


def test_an_archive_of_another_kind_is_named(tmp_path: Path) -> None:
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )
    path = tmp_path / "classifier.pt"
    torch.jit.trace(layers.eval(), torch.zeros(1, 3, 8, 8)).save(path)
    with pytest.raises(CheckpointError, match=r"a TorchScript archive of torch\.nn\..*Sequential; only archives of"):
        load_pretrained(path)


def test_heads_must_be_chosen_and_exist() -> None:
    with pytest.raises(CheckpointError, match="has no head mp; choose `--modality` from pbe, r2scan, dft"):
        load_pretrained(LAMMPS, modality="mp")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, x: b"9.0.0" if name.endswith("/nequip_version") else x, r"from NequIP 9\.0\.0"),
        (pickle_with(b"total_energy_sum", b"total_energy_som"), r"total_energy_som \(.*\) is unknown"),
        (pickle_with(b"BesselBasis", b"Trigonometric"), "basis is Trigonometric"),
    ],
    ids=["version", "module", "basis"],
)
def test_an_archive_of_another_nequip_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "other.pth", change, DEPLOYED[0])
    with pytest.raises(CheckpointError, match=message) as error:
        load_pretrained(path)
    assert len(str(error.value).splitlines()) == 1


def test_an_archive_of_nequip_has_one_fidelity() -> None:
    for path in (COMPILED[0], DEPLOYED[0]):
        with pytest.raises(CheckpointError, match="has only one fidelity"):
            load_pretrained(path, modality="PBE")
