"""Published weights reproduce the results of their own code."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from equiscreen.export import OnnxPotential
from equiscreen.model import load_checkpoint, load_pretrained
from equiscreen.model.equivariance.irreps import Irrep
from equiscreen.model.equivariance.irreps import Path as IrrepPath
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.e3nn_weights import sign_of_3j
from equiscreen.model.pretrained.load import SCHEMES, import_weights
from equiscreen.model.pretrained.registry import REGISTRY, describe_registry
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import CheckpointError, OutputExistsError
from equiscreen.pipeline.graphs.potential import Potential
from numpy.typing import NDArray

from ...conftest import ROOT

sevenn = pytest.importorskip("sevenn", reason="its package contains the weights")

# Differences between two float32 codes: eV/atom, eV/angstrom, eV/angstrom^3.
LIMITS = {"energy": 2e-5, "forces": 1e-4, "stress": 1e-6}
SEVENNET = (
    ("7net-0", None),
    pytest.param("7net-l3i5", None, marks=pytest.mark.slow),
    ("7net-mf-0", "PBE"),
    pytest.param("7net-mf-0", "R2SCAN", marks=pytest.mark.slow),
)


loaded = cache(load_pretrained)


@pytest.fixture(scope="session")
def frames(data: Path) -> list[dict[str, Any]]:
    """Rattled crystals of the Materials Project, with the predictions of Nequix's own code."""
    found: list[dict[str, Any]] = json.loads(
        gzip.decompress((data / "weights/nequix-mp-1.reference.json.gz").read_bytes())
    )["frames"]
    return sorted(found, key=lambda frame: len(frame["numbers"]))


def structure_of(frame: Mapping[str, Any]) -> Structure:
    return Structure.from_cartesian(frame["numbers"], frame["positions"], frame["cell"], pbc=True)


def differences(
    potential: Potential, frames: Sequence[Mapping[str, Any]], expected: Mapping[str, NDArray[np.float64]]
) -> dict[str, float]:
    """Return the largest differences in energy per atom, forces and stress."""
    block = GraphBlock.from_structures([structure_of(frame) for frame in frames], potential.cutoff)
    found = potential.evaluate(block).arrays()
    out = {name: np.abs(found[name] - expected[name]) for name in LIMITS}
    out["energy"] = out["energy"] / block.n_atoms
    return {name: float(values.max()) for name, values in out.items()}


def sevennet(name: str, modality: str | None, structures: Sequence[Atoms]) -> dict[str, NDArray[np.float64]]:
    """Evaluate structures with SevenNet's own calculator."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415 - imported where its warnings are silenced

        calculator = SevenNetCalculator(name, device="cpu", **({"modal": modality} if modality else {}))
    energies, forces, stresses = [], [], []
    for atoms in structures:
        atoms.calc = calculator
        energies.append(atoms.get_potential_energy())
        forces.append(atoms.get_forces())
        stresses.append(atoms.get_stress(voigt=False) if atoms.pbc.all() else np.full((3, 3), np.nan))
    return {"energy": np.array(energies), "forces": np.concatenate(forces), "stress": np.array(stresses)}


@pytest.mark.parametrize(("name", "modality"), SEVENNET)
def test_sevennet_gives_the_numbers_of_its_own_code(
    name: str, modality: str | None, frames: list[dict[str, Any]]
) -> None:
    network, card = loaded(name, modality=modality) if modality else loaded(name)
    potential = TorchPotential(network)
    chosen = frames[::12]
    expected = sevennet(name, modality, [structure_of(frame).to_ase() for frame in chosen])
    assert np.abs(expected["forces"]).max() > 0.1
    for output, difference in differences(potential, chosen, expected).items():
        assert difference <= LIMITS[output], output
    assert card.energy_scheme == ("r2scan" if modality == "R2SCAN" else "mp-uncorrected")
    assert card.origin["licence"] == "MIT"
    # The model does not track parity; the effect is small, but not zero.
    assert 1e-7 < card.mirror_violation["energy eV/atom"] < 1e-2


def test_atoms_alone_have_the_energy_of_sevennet() -> None:
    network, _ = loaded("7net-0")
    atoms = [Atoms([number], [[0, 0, 0]]) for number in (1, 8, 26, 92)]
    block = GraphBlock.from_structures(
        [Structure.from_cartesian(a.numbers, a.positions) for a in atoms], network.cutoff
    )
    expected = sevennet("7net-0", None, atoms)["energy"]
    assert np.abs(TorchPotential(network).evaluate(block).energy - expected).max() <= LIMITS["energy"]


@pytest.mark.parametrize("suffix", ["pt", "nqx"])
def test_nequix_gives_the_numbers_of_its_own_code(suffix: str, frames: list[dict[str, Any]], data: Path) -> None:
    network, card = load_pretrained(data / f"weights/nequix-mp-1.{suffix}")
    chosen = frames[::6]
    expected = {
        "energy": np.array([frame["energy"] for frame in chosen]),
        "forces": np.concatenate([frame["forces"] for frame in chosen]),
        "stress": np.array([frame["stress"] for frame in chosen]),
    }
    for output, difference in differences(TorchPotential(network), chosen, expected).items():
        assert difference <= LIMITS[output], output
    assert (card.symmetry, card.energy_scheme) == ("o3", "mp-uncorrected")
    assert not card.mirror_violation


def test_both_files_of_nequix_are_the_same_network(data: Path) -> None:
    """One file is from PyTorch, with 3j symbols, the other from JAX, without."""
    first, second = (load_pretrained(data / f"weights/nequix-mp-1.{suffix}")[0] for suffix in ("pt", "nqx"))
    for name, value in first.state_dict().items():
        assert torch.allclose(value, second.state_dict()[name], rtol=1e-5, atol=1e-6), name


def npy(value: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, value)
    return stream.getvalue()


@pytest.mark.parametrize("among", [False, True], ids=["behind", "among"])
def test_the_scalars_of_a_nequix_file_are_no_weights(data: Path, tmp_path: Path, among: bool) -> None:
    """Equinox writes Python numbers in modules as leaves, too; where depends on the versions of its libraries."""
    whole = (data / "weights/nequix-mp-1.nqx").read_bytes()
    settings, _, rest = whole.partition(b"\n")
    scalars = [npy(value) for value in [*np.linspace(0.1, 2, 106), *range(99), *[True] * 4]]
    head, mark, tail = rest[:-1].partition(b"\x93NUMPY")
    arrays = [mark + array for array in tail.split(mark)]
    assert (head, len(arrays)) == (b"", 63)
    leaves = [leaf for pair in zip(scalars, arrays, strict=False) for leaf in pair] if among else [*arrays, *scalars]
    path = tmp_path / "oam.nqx"
    path.write_bytes(b"".join([settings, b"\n", *leaves]))
    network, plain = load_pretrained(path)[0], loaded(data / "weights/nequix-mp-1.nqx")[0]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in network.state_dict().items())
    for wrong in (scalars[0][:-1], npy("text"), npy(np.zeros(3)), b"0.5"):
        path.write_bytes(b"".join([settings, b"\n", *leaves, wrong]))
        with pytest.raises(CheckpointError, match="damaged"):
            load_pretrained(path)


def test_an_imported_checkpoint_is_read_back_as_it_was(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "nequix.ckpt"
    source = data / "weights/nequix-mp-1.nqx"
    line = import_weights(source, target)
    assert "89 elements, cutoff 6 angstrom" in line
    assert "energies mp-uncorrected" in line
    network, card = load_pretrained(source)
    again, card_again = load_checkpoint(target)
    assert card == card_again
    assert network.state_dict().keys() == again.state_dict().keys()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    with pytest.raises(OutputExistsError, match="use `--overwrite`"):
        import_weights(source, target)
    copied = tmp_path / "nequix-mp-1.nqx"
    content = source.read_bytes()
    copied.write_bytes(content.replace(b'"batch_size": 256', b'"batch_size": 512').replace(b"{", b"{ ", 1))
    assert "set `--scheme`" in import_weights(copied, target, overwrite=True)
    assert "energies omat24" in import_weights(copied, target, scheme="omat24", overwrite=True)


def sevennet_file(path: Path, **settings: Any) -> Path:
    """Write 7net-0 with other settings."""
    packaged = Path(sevenn.__file__).parent / REGISTRY["7net-0"].file
    content = torch.load(packaged, map_location="cpu", weights_only=False)
    content["config"] |= settings
    torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"is_parity": True}, "damaged, or was written by an unsupported version"),
        ({"self_connection_type": ["nequip"] * 5}, "damaged, or was written by an unsupported version"),
        ({"self_connection_type": "none"}, "self_connection_type is 'none', not one of 'nequip', 'linear'"),
        ({"readout_as_fcn": True}, "damaged, or was written by an unsupported version"),
        ({"act_gate": {"e": "gelu", "o": "tanh"}}, "act_gate e is 'gelu', not one of 'silu', 'ssp'"),
        ({"act_radial": "mish"}, "act_radial is 'mish'"),
        ({"interaction_type": "mace"}, "interaction_type is 'mace'"),
        ({"version": "0.14.0"}, "from SevenNet 0.14.0, but only versions up to 0.13 are supported"),
        ({"radial_basis": {"radial_basis_name": "bessel", "width": 2}}, "unknown setting width"),
        ({"_type_map": {500: 0}}, "damaged, or was written by an unsupported version"),
        ({"lmax": float("inf")}, "damaged, or was written by an unsupported version"),
        ({"radial_basis": {"radial_basis_name": "chebyshev"}}, "radial_basis_name is 'chebyshev'"),
        ({"num_convolution_layer": 6, "irreps_manual": False}, "damaged, or was written by an unsupported version"),
        ({"num_convolution_layer": 10**9, "irreps_manual": False}, "at most 32 items"),
        ({"lmax": 10**9, "irreps_manual": False}, "and degree 6 are|less than or equal to 6"),
        ({"channel": 10**9, "irreps_manual": False}, "less than or equal to 4096"),
        ({"weight_nn_hidden_neurons": [10**9]}, "less than or equal to 4096"),
    ],
)
def test_an_unknown_architecture_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(sevennet_file(tmp_path / "other.pth", **settings))


def test_a_file_of_todays_sevennet_is_the_same_network(tmp_path: Path) -> None:
    """Version 0.11 changed the order of the radial functions; SevenNet itself converts 7net-0 to it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from sevenn.util import load_checkpoint as load_theirs  # noqa: PLC0415 - imported where its warnings are silenced

        theirs = load_theirs("7net-0")
        state = theirs.build_model().state_dict()
    assert tuple(map(int, sevenn.__version__.split(".")[:2])) >= (0, 11)
    radial = "1_convolution.weight_nn.layer2.weight"
    assert not torch.equal(state[radial], theirs.model_state_dict[radial])
    settings = {**theirs.config, "version": sevenn.__version__}
    torch.save({"config": settings, "model_state_dict": state}, tmp_path / "new.pth")
    ours, again = (loaded(source)[0].state_dict() for source in ("7net-0", tmp_path / "new.pth"))
    assert all(torch.equal(value, again[name]) for name, value in ours.items())


def test_the_exported_file_gives_the_numbers_of_sevennet(frames: list[dict[str, Any]], sevennet_model: Path) -> None:
    """`sevennet_model` makes the file with the command line."""
    potential = OnnxPotential.load(sevennet_model, threads=1)
    chosen = frames[::12]
    expected = sevennet("7net-0", None, [structure_of(frame).to_ase() for frame in chosen])
    for output, difference in differences(potential, chosen, expected).items():
        assert difference <= LIMITS[output], output
    assert potential.metadata.energy_scheme == "mp-uncorrected"
    assert potential.metadata.origin["licence"] == "MIT"
    assert potential.metadata.mirror_violation
    assert sevennet_model.stat().st_size < 20e6


def test_the_first_seven_net_gives_the_numbers_of_its_own_code(frames: list[dict[str, Any]]) -> None:
    """Its harmonics use vectors that are not normalised, a setting that is missing from its old format."""
    path = Path(sevenn.__file__).parent / "pretrained_potentials/SevenNet_0__22May2024/checkpoint_sevennet_0.pth"
    network, card = load_pretrained(path)
    assert not network.config.unit_vectors
    assert (card.energy_scheme, card.origin) == ("own", {"file": path.name})
    expected = sevennet(str(path), None, [structure_of(frame).to_ase() for frame in frames[:3]])
    for output, difference in differences(TorchPotential(network), frames[:3], expected).items():
        assert difference <= LIMITS[output], output


def test_a_file_is_known_by_its_content_and_not_by_its_name(tmp_path: Path) -> None:
    packaged = Path(sevenn.__file__).parent / REGISTRY["7net-0"].file
    same, other = tmp_path / "nequix-omat-1.pth", tmp_path / "7net-mf-0.pth"
    same.write_bytes(packaged.read_bytes())
    _, card = load_pretrained(same)
    assert (card.origin["name"], card.energy_scheme) == ("7net-0", "mp-uncorrected")
    _, card = load_pretrained(sevennet_file(other, epoch=1))
    assert (card.origin, card.energy_scheme) == ({"file": "7net-mf-0.pth"}, "own")


def test_symbols_of_another_convention_are_refused() -> None:
    path = IrrepPath(Irrep("1e"), Irrep("1e"), Irrep("2e"))
    stored = {"tp._compiled_main_left_right._w3j_1_1_2": torch.ones(3, 3, 5)}
    with pytest.raises(ValueError, match="3j symbols"):
        sign_of_3j(stored, "tp", path)


def test_a_small_file_that_unpacks_to_a_huge_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("equiscreen.model.pretrained.load.MAX_FILE_BYTES", 1 << 20)
    path = tmp_path / "bomb.pth"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(2 << 20))
    assert path.stat().st_size < 1 << 20
    with pytest.raises(CheckpointError, match="larger than"):
        load_pretrained(path)


def test_a_pickle_that_wants_to_run_something_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"config": {"x": zipfile.ZipFile}, "model_state_dict": {}}, path)
    with pytest.raises(CheckpointError, match=r"would run zipfile\.ZipFile; .* use `--trust`"):
        load_pretrained(path)
    with pytest.raises(CheckpointError, match="unsupported version of SevenNet"):
        load_pretrained(path, trust=True)


def test_what_is_no_checkpoint_is_told(data: Path, tmp_path: Path) -> None:
    whole = (data / "weights/nequix-mp-1.nqx").read_bytes()
    settings = json.loads(whole[: whole.index(b"\n")])
    stream = io.BytesIO()
    torch.save({"weights": torch.zeros(2)}, stream)
    cases: dict[str, tuple[bytes, str]] = {
        "text.pth": (b"not a checkpoint at all", "not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE"),
        "empty.pth": (b"", "not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE"),
        "pickle.pth": (pickle.dumps([1, 2]), "not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE"),
        "other.pth": (stream.getvalue(), "not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE"),
        "cut.nqx": (whole[: len(whole) // 2], "damaged"),
        "longer.nqx": (whole + whole[-1000:], "damaged"),
        "settings.nqx": (b'{"cutoff": 6.0}\n', "the setting atomic_numbers is missing"),
        "indexed.nqx": (
            json.dumps(settings | {"index_weights": True}).encode() + b"\n",
            "unsupported architecture: index_weights",
        ),
        "json.nqx": (b"{nothing\n", "not a Nequix file"),
        "nested.nqx": (b'{"a":' * 100_000 + b"\n", "not a Nequix file"),
        "layers.nqx": (json.dumps(settings | {"n_layers": 10**9}).encode() + b"\n", "at most 32 items"),
        "deep.nqx": (json.dumps(settings | {"radial_mlp_layers": 10**9}).encode() + b"\n", "at most 32 items"),
        "wide.nqx": (json.dumps(settings | {"radial_mlp_size": 10**9}).encode() + b"\n", "less than or equal to 4096"),
        "channels.nqx": (
            json.dumps(settings | {"hidden_irreps": "1000000000x0e"}).encode() + b"\n",
            "at most 4096 channels",
        ),
        "degree.nqx": (json.dumps(settings | {"lmax": 9}).encode() + b"\n" + b"x", "damaged"),
        "twice.nqx": (
            json.dumps(settings | {"atomic_numbers": [1] * 89}).encode() + whole[whole.index(b"\n") :],
            "atomic_numbers: contains duplicates",
        ),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            load_pretrained(path)


def test_a_torch_file_that_is_cut_is_told(tmp_path: Path) -> None:
    path = sevennet_file(tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:1_000_000])
    with pytest.raises(CheckpointError, match="not a checkpoint of SevenNet, Nequix, NequIP, Allegro or MACE"):
        load_pretrained(path)


def test_wrong_words_are_told(data: Path) -> None:
    with pytest.raises(
        CheckpointError, match="no such file, and no published model of that name; choose one of 7net-0"
    ):
        load_pretrained("7net-9")
    with pytest.raises(CheckpointError, match=r"download https://\S+/nequix-omat-1\.nqx and pass the path of the file"):
        load_pretrained("nequix-omat-1")
    with pytest.raises(CheckpointError, match="unknown --scheme pbe; choose one of mp-uncorrected"):
        load_pretrained("7net-0", scheme="pbe")
    with pytest.raises(CheckpointError, match="has no fidelity X; choose `--modality` from PBE, R2SCAN"):
        load_pretrained("7net-mf-0", modality="X")
    for source in ("7net-0", data / "weights/nequix-mp-1.nqx"):
        with pytest.raises(CheckpointError, match="has only one fidelity"):
            load_pretrained(source, modality="PBE")


def test_the_registry_says_what_matters() -> None:
    for model in REGISTRY.values():
        assert set(model.schemes.values()) <= set(SCHEMES)
        assert model.schemes.keys() == model.functionals.keys()
        assert model.name in describe_registry()


def test_the_page_lists_the_registry() -> None:
    page = (ROOT / "docs/pretrained.md").read_text()
    registry = page.partition("| name | source |")[2].partition("\n\n")[0]
    rows = {line.split("`")[1]: line for line in registry.splitlines() if line.startswith("| `")}
    assert rows.keys() == REGISTRY.keys()
    for model in REGISTRY.values():
        words = (
            model.training_data,
            model.licence,
            model.citation,
            *model.schemes.values(),
            *model.functionals.values(),
        )
        assert all(word in rows[model.name] for word in words), model.name


def test_the_page_says_cutoffs_and_elements_of_the_files(data: Path) -> None:
    page = (ROOT / "docs/pretrained.md").read_text()
    sources = {"7net-0": "7net-0", "7net-l3i5": "7net-l3i5", "7net-mf-0": "7net-mf-0"}
    for name, source in {**sources, "nequix-mp-1": data / "weights/nequix-mp-1.nqx"}.items():
        network, _ = loaded(source)
        (row,) = (line for line in page.splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {network.cutoff:g} Å | {len(network.elements)} |" in row
        assert ("SO(3)" in row) == (network.config.symmetry == "so3")
