"""MACE checkpoints give the numbers of mace-torch, which tests/oracles/mace.py recorded."""

from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from equiscreen.cli.app import app
from equiscreen.export import OnnxPotential
from equiscreen.export.exporter import lower_and_check
from equiscreen.model import load_checkpoint, load_pretrained
from equiscreen.model.checkpoint import ModelCard, save_checkpoint
from equiscreen.model.data.batches import table_tensors
from equiscreen.model.networks.mace import MaceNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.pretrained.mace import from_mace, read_mace
from equiscreen.model.pretrained.mace_settings import MaceSettings
from equiscreen.model.pretrained.state_files import read_state
from equiscreen.model.pretrained.unopened import UNOPENED
from equiscreen.pipeline import GraphBlock, Structure
from equiscreen.pipeline.errors import CheckpointError
from equiscreen.pipeline.graphs.potential import Potential
from torch import Tensor
from typer.testing import CliRunner

from ...conftest import ROOT, traced_once

ORACLES = ROOT / "tests/oracles/mace"
SETTINGS: list[dict[str, Any]] = json.loads((ORACLES / "settings.json").read_text())
MODULE, MODULE_CASE, HEAD = ORACLES / "module.model", 1, "dft"
NONLINEAR, NONLINEAR_CASE = ORACLES / "nonlinear.model", 20
# eV/atom, eV/angstrom, eV/angstrom^3.
LIMITS = {
    torch.float32: {"energy": 1e-6, "forces": 1e-5, "stress": 1e-7},
    torch.float64: {"energy": 1e-10, "forces": 1e-9, "stress": 1e-10},
}
# This float32 network amplifies rounding errors: evaluated in float64 with the same weights, it differs by
# 3e-8 eV/atom, 1.4e-6 eV/angstrom and 7e-9 eV/angstrom^3, but in float32 by 1.3e-6, 1.3e-5 and 4.8e-7.
ROUNDED = 24
LIMITS_ROUNDED = {"energy": 5e-6, "forces": 5e-5, "stress": 2e-6}
Arrays = dict[str, Any]


def limits_of(number: int, dtype: torch.dtype) -> Mapping[str, float]:
    """Largest differences from mace-torch that a checkpoint may have."""
    return LIMITS_ROUNDED if number == ROUNDED else LIMITS[dtype]


def case(number: int) -> tuple[MaceSettings, dict[str, Tensor], Arrays]:
    """Settings, weights and expected results of a checkpoint."""
    state = read_state(ORACLES / f"{number}.npz")
    expected = {name.partition(".")[2]: state.pop(name).numpy() for name in [*state] if name.startswith("expected.")}
    return MaceSettings.checked(SETTINGS[number], "settings.json"), state, expected


def network_of(number: int) -> tuple[MaceNetwork, Arrays]:
    """The network of a checkpoint for its last head, and the expected results."""
    settings, state, expected = case(number)
    head = settings.heads[-1] if len(settings.heads) > 1 else None
    network, name = from_mace(settings, state, head, "checkpoint")
    assert name == (head or "")
    return network, expected


def structures() -> list[Structure]:
    """The twelve structures."""
    with np.load(ORACLES / "structures.npz") as arrays:
        ends = np.cumsum(arrays["atoms"])[:-1]
        numbers, positions = (np.split(arrays[name], ends) for name in ("numbers", "positions"))
        cells, pbc = arrays["cells"], arrays["pbc"]
    return [
        Structure.from_cartesian(z, x, cell, periodic) if periodic.any() else Structure.from_cartesian(z, x)
        for z, x, cell, periodic in zip(numbers, positions, cells, pbc, strict=True)
    ]


def check(potential: Potential, expected: Arrays, limits: Mapping[str, float]) -> None:
    """Compare a potential with the results of mace-torch."""
    block = GraphBlock.from_structures(structures(), potential.cutoff)
    found = potential.evaluate(block).arrays()
    assert len(block) == 12
    assert np.abs(expected["forces"]).max() > 0.02  # far above the limits
    for name, limit in limits.items():
        difference = np.abs(found[name] - expected[name])
        assert np.array_equal(np.isnan(found[name]), np.isnan(expected[name])), name
        difference = difference / block.n_atoms if name == "energy" else difference
        assert np.nanmax(difference) <= limit, name


QUICK = {0, 1, 2, 10, NONLINEAR_CASE}
QUICK_ONNX = {6, NONLINEAR_CASE}


@pytest.mark.parametrize(
    "number", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in range(len(SETTINGS))]
)
def test_eager_networks_give_the_numbers_of_mace(number: int) -> None:
    network, expected = network_of(number)
    check(TorchPotential(network), expected, limits_of(number, network.dtype))


@pytest.mark.parametrize(
    "number", [n if n in QUICK_ONNX else pytest.param(n, marks=pytest.mark.slow) for n in range(len(SETTINGS))]
)
def test_exported_networks_give_the_numbers_of_mace(number: int) -> None:
    network, expected = network_of(number)
    with traced_once():
        model, metadata = lower_and_check([network], ModelCard())
    assert metadata.symmetry == "o3"
    assert f"energy/{metadata.dtype}" in metadata.parity
    assert any(law.startswith("energy/mirrored") for law in metadata.laws)
    check(OnnxPotential(model.SerializeToString()), expected, limits_of(number, network.dtype))


def test_every_value_of_a_setting_is_there() -> None:
    assert len(SETTINGS) >= 12
    for name, count in (
        ("interaction_cls_first", 5),
        ("interaction_cls", 4),
        ("readout_cls", 3),
        ("radial_type", 3),
        ("distance_transform", 3),
        ("max_ell", 3),
    ):
        assert len({settings.get(name) for settings in SETTINGS}) == count, name


@pytest.mark.parametrize(("file", "number", "dtype"), [(MODULE, MODULE_CASE, "64"), (NONLINEAR, NONLINEAR_CASE, "32")])
def test_the_file_of_mace_is_the_same_network_as_its_state_dict(
    file: Path, number: int, dtype: str, tmp_path: Path
) -> None:
    network, fidelity = read_mace(file, HEAD)
    other, _ = network_of(number)
    assert (network.config, network.statistics, fidelity) == (other.config, other.statistics, HEAD)
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in network.state_dict().items())
    save_checkpoint(tmp_path / "mace.ckpt", network, ModelCard())
    again, _ = load_checkpoint(tmp_path / "mace.ckpt")
    assert (again.config, again.dtype) == (network.config, getattr(torch, f"float{dtype}"))
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in network.state_dict().items())


def test_radial_functions_of_older_versions_are_in_another_order() -> None:
    settings, state, _ = case(0)
    network, _ = from_mace(settings, state, None, "x")
    older = dict(state)
    for layer in range(settings.num_interactions):
        convolution = network.interaction(layer).convolution
        order = sorted(range(len(convolution.paths)), key=lambda place: convolution.paths[place].out)
        name = f"interactions.{layer}.conv_tp_weights.layer2.weight"
        columns = torch.split(state[name], [convolution.widths[place] for place in order], dim=1)
        older[name] = torch.cat([columns[order.index(place)] for place in range(len(order))], dim=1)
    assert not torch.equal(older[name], state[name])
    again, _ = from_mace(settings.model_copy(update={"path_order": "created"}), older, None, "x")
    assert all(torch.equal(x, again.state_dict()[key]) for key, x in network.state_dict().items())


@pytest.mark.parametrize("number", [6, NONLINEAR_CASE])
def test_every_weight_is_trained_by_forces(number: int) -> None:
    network = network_of(number)[0].train()
    block = GraphBlock.from_structures(structures()[:7], network.cutoff)
    found = network.predict(*table_tensors(block, network.cutoff, network.dtype))
    assert found.forces is not None
    (found.forces**2).sum().backward()
    still = {name for name, x in network.named_parameters() if x.grad is None or not torch.isfinite(x.grad).all()}
    # The last bias of a readout is a constant energy of every atom.
    assert still == {name for name, _ in network.named_parameters() if re.fullmatch(r"readouts\.\d+\.biases\.1", name)}
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in network.interactions.parameters())


def test_heads_are_different_networks() -> None:
    one, other = (read_mace(MODULE, head)[0] for head in ("pbe", HEAD))
    assert one.statistics != other.statistics
    block = GraphBlock.from_structures(structures(), one.cutoff)
    energies = [TorchPotential(network).evaluate(block).energy for network in (one, other)]
    assert np.abs(energies[0] - energies[1]).min() > 1e-3


@pytest.mark.parametrize("suffix", [".npz", ".pt", ".safetensors"])
def test_a_state_dict_is_imported_by_the_command_line(suffix: str, tmp_path: Path) -> None:
    settings, state, _ = case(MODULE_CASE)
    weights, config = tmp_path / f"weights{suffix}", tmp_path / "settings.json"
    config.write_text(json.dumps(SETTINGS[MODULE_CASE]))
    writers: dict[str, Callable[[], object]] = {
        ".npz": lambda: np.savez(weights, **{name: x.numpy() for name, x in state.items()}),
        ".pt": lambda: torch.save(state, weights),
        ".safetensors": lambda: weights.write_bytes(safetensors(state)),
    }
    writers[suffix]()
    words = ["import", str(weights), "--config", str(config), "--modality", HEAD, "--out", str(tmp_path / "out.ckpt")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "SHA-256" in done.stdout
    network, card = load_checkpoint(tmp_path / "out.ckpt")
    done = CliRunner().invoke(app, [*words, "--overwrite", "--float32"])
    assert done.exit_code == 0, done.output
    assert load_checkpoint(tmp_path / "out.ckpt")[0].dtype == torch.float32
    assert card.origin["head"] == HEAD
    assert all(
        torch.equal(x, network.state_dict()[name]) for name, x in read_mace(MODULE, HEAD)[0].state_dict().items()
    )
    assert settings.heads[-1] == HEAD


def safetensors(state: Mapping[str, Tensor]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    kinds, content = (
        {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"},
        b"",
    )
    for name, x in state.items():
        data = x.contiguous().numpy().tobytes()
        places = [len(content), len(content) + len(data)]
        header[name] = {"dtype": kinds[x.dtype], "shape": list(x.shape), "data_offsets": places}
        content += data
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


# --- bad input --------------------------------------------------------------------------------------------------------


def changed(target: Path, old: bytes, new: bytes, extra: str = "") -> Path:
    """Write the module file with other words in its pickle, and perhaps one more entry in the archive."""
    with zipfile.ZipFile(MODULE) as source, zipfile.ZipFile(target, "w") as archive:
        for info in source.infolist():
            content = source.read(info)
            if info.filename.endswith("/data.pkl") and info.filename.count("/") == 1:
                assert old in content
                content = content.replace(old, new)
            archive.writestr(info.filename, content)
        if extra:
            archive.writestr(extra, b"")
    return target


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"ctorch.nn.functional\nsilu\n", b"cposix\nsystem\n", r"requires posix\.system, which is not allowed$"),
        (b"ctorch.nn.functional\nsilu\n", b"cbuiltins\neval\n", r"requires builtins\.eval, which is not allowed$"),
        (b"\nMACE\n", b"\nAtomicDipolesMACE\n", "AtomicDipolesMACE is not supported; .* predicts dipoles"),
        (b"\nMACE\n", b"\nFutureMACE\n", "FutureMACE is not supported; only MACE and ScaleShiftMACE are$"),
        (b"RealAgnosticDensityI", b"RealAgnosticAttI", "interaction_cls_first: RealAgnosticAttInteractionBlock is not"),
        (b"GaussianBasis", b"SplineBasis", "radial_type: input should be 'bessel', 'gaussian' or 'chebyshev'"),
        (b"NonLinearReadoutBlock", b"GeneralNonLinearReadoutBlock", "unsupported architecture: readouts"),
        (b"\nMACE\n", b"\nLAMMPS_MLIAP_MACE\n", r"ML-IAP, .* cuEquivariance; import the .model file"),
        (b"\x80\x02c", b"\x80\x02r\xff\xff\xff\xffc", "SevenNet, Nequix, NequIP, Allegro or MACE|damaged"),
        (b"q\x01", b"r\xff\xff\xff\x7f", "its pickle is damaged"),
    ],
)
def test_what_a_file_asks_for_and_is_not_there_is_named(old: bytes, new: bytes, message: str, tmp_path: Path) -> None:
    path = changed(tmp_path / "changed.model", old, new)
    for trust in (False, True):
        if trust and "MACE|" in message:
            continue
        with pytest.raises(CheckpointError, match=message) as error:
            load_pretrained(path, modality=HEAD, trust=trust)
        assert len(str(error.value).splitlines()) == 1


def test_a_pickle_that_wants_a_shell_is_refused(tmp_path: Path) -> None:
    class Shell:
        def __reduce__(self) -> tuple[Any, ...]:
            import os  # noqa: PLC0415 - only its name is pickled

            return os.system, ("true",)

    path = tmp_path / "shell.model"
    torch.save({"model": Shell()}, path)
    with pytest.raises(CheckpointError, match=r"would run posix\.system"):
        load_pretrained(path)


def test_archives_that_are_damaged_or_unsafe_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "damaged.model"
    path.write_bytes(MODULE.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="damaged"):
        load_pretrained(path)
    outside = changed(tmp_path / "outside.model", b"\nMACE\n", b"\nMACE\n", extra="../evil.py")
    with pytest.raises(CheckpointError, match=r"lies outside its folder"):
        load_pretrained(outside, modality=HEAD)


def test_a_tensor_beyond_its_storage_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(MODULE) as archive:
        content = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    # The number of elements of the first tensor, and then its shape.
    place = content.index(b"ctorch\n")
    for new in (b"M\xff\xff", b"J\xff\xff\xff\x7f"):
        old = content[place : place + 200]
        marked = old.replace(b"K\x04t", new + b"t", 1)
        if marked != old:
            with pytest.raises(CheckpointError, match=r"larger than the data stored|damaged"):
                load_pretrained(changed(tmp_path / "large.model", old, marked), modality=HEAD)


def test_heads_must_be_chosen_and_exist() -> None:
    with pytest.raises(CheckpointError, match="has several heads; choose `--modality` from pbe, r2scan, dft"):
        load_pretrained(MODULE)
    with pytest.raises(CheckpointError, match="has no head mp; choose `--modality` from pbe, r2scan, dft"):
        load_pretrained(MODULE, modality="mp")
    settings, state, _ = case(0)
    with pytest.raises(CheckpointError, match="has no head mp; choose `--modality` from Default"):
        from_mace(settings, state, "mp", "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"atomic_numbers": [1, 8, 13]}, "the weights do not fit the settings"),
        ({"atomic_numbers": [1, 8, 13, 13]}, "atomic_numbers: contains duplicates"),
        ({"max_ell": 3}, "instead of|do not fit"),
        ({"max_ell": 9}, "max_ell: input should be less than or equal to 4"),
        ({"num_besel": 8}, "unknown setting 'num_besel'; did you mean 'num_bessel'"),
        ({"correlation": 4}, "correlation"),
        ({"gate": "tanh"}, "gate: tanh is not supported"),
        ({"use_so3": True}, "use_so3: input should be False"),
        ({"lmax": 2}, "unknown setting 'lmax'"),
        ({"hidden_irreps": "4x0e + 2x1o"}, "hidden_irreps has different numbers of channels"),
        ({"hidden_irreps": "4x0e + 4x0o"}, r"pseudoscalars \(0o\) are not supported"),
        ({"radial_MLP": [10**9]}, "less than or equal to 4096"),
        ({"pair_repulsion": True}, r"the weights 'pair_repulsion_fn\.\w+' are missing"),
    ],
)
def test_settings_that_do_not_fit_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    config, weights = tmp_path / "settings.yaml", tmp_path / "weights.npz"
    config.write_text(json.dumps(SETTINGS[0] | change))
    np.savez(weights, **{name: x.numpy() for name, x in case(0)[1].items()})
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(weights, config=config)


def test_weights_that_are_not_finite_are_refused() -> None:
    settings, state, _ = case(0)
    name = "interactions.1.linear_up.weight"
    wrong = {**state, name: state[name] * float("nan")}
    with pytest.raises(CheckpointError, match=rf"{name} contain NaN or infinite numbers"):
        from_mace(settings, wrong, None, "x")


def test_couplings_of_another_convention_are_refused() -> None:
    settings, state, _ = case(0)
    name = "products.0.symmetric_contractions.contractions.1.U_matrix_2"
    with pytest.raises(CheckpointError, match="the coupling matrices of 0e x 1o to 1o follow another convention"):
        from_mace(settings, {**state, name: state[name].flip(0)}, None, "x")
    without = {key: x for key, x in state.items() if "_w3j_" not in key}
    with pytest.raises(CheckpointError, match=r"the 3j symbols of .* are missing"):
        from_mace(settings, without, None, "x")


def test_files_of_weights_that_are_damaged_are_told(tmp_path: Path) -> None:
    files = {
        "short.safetensors": b'\x08\x00\x00\x00\x00\x00\x00\x00{"a":',
        "large.safetensors": b"\xff" * 64,
        "list.pt": b"",
        "text.npz": b"nothing",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged, or is not a weights file"):
            read_state(tmp_path / name)
    stream = io.BytesIO()
    torch.save({"epoch": 3}, stream)
    (tmp_path / "other.pt").write_bytes(stream.getvalue())
    with pytest.raises(CheckpointError, match="not a state dict"):
        read_state(tmp_path / "other.pt")
    shutil.copy(MODULE, tmp_path / "module.pt")
    with pytest.raises(CheckpointError, match="damaged, or is not a weights file"):
        read_state(tmp_path / "module.pt")
    assert pickle.HIGHEST_PROTOCOL >= 4


def test_published_models_are_named_but_not_downloaded() -> None:
    for name in UNOPENED:
        with pytest.raises(CheckpointError, match=rf"{name}: equiscreen was never tested with .* download https://"):
            load_pretrained(name)
    assert {model.licence for model in UNOPENED.values()} == {"MIT", "ASL (academic use only)", "CC BY 4.0"}
    page = (ROOT / "docs/pretrained.md").read_text()
    assert all(f"`{name}`" in page for name in UNOPENED)
