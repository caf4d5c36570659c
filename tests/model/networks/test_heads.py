"""Heads: valid configurations, tensors as irreps, and the shapes of their values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from equiscreen.conformance.laws import evaluate
from equiscreen.model.config.config import Config
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.config.network import NetworkConfig
from equiscreen.model.equivariance.rotation import rotate_property
from equiscreen.model.equivariance.tensors import TENSORS, default_shape, presentation, tensor_basis
from equiscreen.model.layers.heads import Head
from equiscreen.model.networks.equivariant import EquivariantNetwork
from equiscreen.model.networks.torch_potential import TorchPotential
from equiscreen.model.statistics import DataStatistics
from equiscreen.pipeline import Structure
from equiscreen.pipeline.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from ...conformance.networks import EVERY_HEAD, EVERY_KIND, NATURAL_HEADS, head, network_of
from ...conformance.tensors import cartesian, turned, wigner
from ...conftest import ELEMENTS

# --- invalid configurations -------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "0o under natural": ({}, {"tensor": "pseudoscalar"}, "`symmetry: natural` has no 0o; use `symmetry: o3`"),
    "1e under natural": ({}, {"tensor": "axial_vector"}, "`symmetry: natural` has no 1e"),
    "2o under natural": ({}, {"tensor": "ij=ji", "pseudo": True}, "`symmetry: natural` has no .*2o"),
    "antisymmetric under natural": ({}, {"tensor": "matrix"}, "`symmetry: natural` has no 1e"),
    "irreps under natural": ({}, {"irreps": "0e + 1e"}, "`symmetry: natural` has no 1e"),
    "pseudo under so3": ({"symmetry": "so3"}, {"tensor": "pseudoscalar"}, "which `symmetry: so3` does not track"),
    "axial under so3": ({"symmetry": "so3"}, {"tensor": "axial_vector"}, "which `symmetry: so3` does not track"),
    "pseudo irreps under so3": ({"symmetry": "so3"}, {"irreps": "2o"}, "which `symmetry: so3` does not track"),
    "elastic, l = 3": ({"symmetry": "o3", "l_max": 3}, {"tensor": "elastic"}, "set `l_max: 4`"),
    "piezoelectric, l = 2": ({"symmetry": "o3", "l_max": 2}, {"tensor": "piezoelectric"}, "set `l_max: 3`"),
    "no tensor": ({}, {"tensor": "tensor"}, "unknown tensor 'tensor'; choose one of scalar, .*formula"),
    "no formula": ({}, {"tensor": "ij=kl"}, "'ij=kl' is not a valid index formula"),
    "no irreps": ({}, {"irreps": "2x"}, "'2x' are not valid irreps; write them like"),
    "zero irreps": ({}, {"irreps": "0x0e"}, "contains no irreps"),
    "a shape too small": ({}, {"tensor": "symmetric", "shape": (3,)}, "a tensor of rank 2 does not have shape"),
    "a shape with no meaning": ({}, {"tensor": "symmetric", "shape": (9,)}, "a tensor of rank 2 does not have shape"),
    "a shape of irreps": ({}, {"irreps": "0e + 2e", "shape": (3, 3)}, "irreps with 6 components need the shape"),
    "a shape that loses": ({"symmetry": "o3"}, {"tensor": "matrix", "shape": (6,)}, "drops components"),
    "logarithm of a vector": (
        {},
        {"tensor": "vector", "transform": "log"},
        "`transform: log` requires a positive scalar",
    ),
    "logarithm of irreps": ({}, {"irreps": "2e", "transform": "log"}, "`transform: log` requires a positive scalar"),
    "logarithm of a sum": (
        {},
        {"transform": "log", "extensive": True},
        r"requires a true \(not pseudo\), intensive tensor",
    ),
    "logarithm of a pseudoscalar": (
        {"symmetry": "o3"},
        {"tensor": "pseudoscalar", "transform": "log"},
        r"requires a true \(not pseudo\), intensive tensor",
    ),
    "a sum of atoms": ({}, {"per": "atom", "extensive": True}, "properties of structures, not of atoms"),
    "a key that does not exist": ({}, {"tenser": "vector"}, "did you mean 'tensor'"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_heads_that_cannot_be_are_refused(case: str) -> None:
    network, kind, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as caught:
        Config.parse({"network": {**network, "heads": {"property": kind}}}, "network.yaml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("network.yaml: ")


@pytest.mark.parametrize("name", ["energy", "forces", "stress", "formula", "two words", "gap_std", "1st", ""])
def test_names_that_mean_something_else_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="a head cannot be named"):
        Config.parse({"network": {"heads": {name: {}}}}, "network.yaml")


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"hidden_irreps": "4x0e + 2x1x"}, "are not valid irreps"),
        ({"hidden_irreps": "4x0e + 2x1e"}, "`symmetry: natural` has no 1e"),
        ({"hidden_irreps": "4x0o + 2x1o", "symmetry": "o3"}, "are required"),
        ({"hidden_irreps": "4x0e + 2x1o + 3x1o"}, "each irrep only once"),
        ({"hidden_irreps": "4x0e + 2x1o + 3x1e", "symmetry": "so3"}, "each irrep only once"),
        ({"energy": False}, "the network predicts nothing"),
    ],
    ids=str,
)
def test_networks_that_cannot_be_are_refused(network: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse({"network": network}, "network.yaml")


def test_a_head_that_the_network_never_reaches_is_refused() -> None:
    # One interaction without products has only the harmonics, and none of them is axial.
    heads = {"spin": head(tensor="axial_vector")}
    config = NetworkConfig(
        cutoff=4.5, symmetry="o3", hidden_irreps="2x0e + 2x1o", n_interactions=1, correlation=1, heads=heads
    )
    with pytest.raises(ConfigError, match=r"heads.spin: this network never produces 1e; raise `correlation`"):
        EquivariantNetwork(config, ELEMENTS, DataStatistics((0.0,) * 3, (1.0,) * 3))


# --- tensors as irreps ------------------------------------------------------------------------------------------------

FORMULAS = [*TENSORS, "ij=ji", "ij=-ji", "ijk", "ijk=jki=-jik", "ijkl=jikl=ijlk"]


@pytest.mark.parametrize("tensor", FORMULAS)
def test_the_basis_of_a_tensor_is_orthonormal(tensor: str) -> None:
    basis = tensor_basis(HeadConfig(tensor=tensor))
    assert basis.rank is not None
    assert basis.matrix.shape == (3**basis.rank, basis.dim)
    assert basis.matrix.dtype == torch.float64
    assert torch.allclose(basis.matrix.T @ basis.matrix, torch.eye(basis.dim, dtype=torch.float64), atol=1e-13)


@pytest.mark.parametrize("pseudo", [False, True])
@pytest.mark.parametrize("tensor", FORMULAS)
def test_components_turn_as_irreps_where_the_tensor_turns_by_its_indices(tensor: str, pseudo: bool) -> None:
    kind = HeadConfig(tensor=tensor, pseudo=pseudo)
    basis = tensor_basis(kind)
    rng = np.random.default_rng(4)
    components = rng.normal(size=(5, basis.dim))
    for sign in (1, -1):
        turn = sign * Rotation.random(rng=rng).as_matrix()
        blocks = [wigner(ir.l, ir.p, turn) for mul, ir in basis.irreps for _ in range(mul)]
        matrix = scipy.linalg.block_diag(*blocks)
        shape = default_shape(basis)
        before = (components @ basis.matrix.numpy().T).reshape(5, *shape)
        after = (components @ matrix.T @ basis.matrix.numpy().T).reshape(5, *shape)
        assert np.abs(turned(before, kind, turn) - after).max() < 1e-12


def test_irreps_of_the_named_tensors() -> None:
    found = {
        name: sorted(str(ir) for mul, ir in tensor_basis(HeadConfig(tensor=name)).irreps for _ in range(mul))
        for name in TENSORS
    }
    assert found == {
        "scalar": ["0e"],
        "pseudoscalar": ["0o"],
        "vector": ["1o"],
        "axial_vector": ["1e"],
        "dipole": ["1o"],
        "matrix": ["0e", "1e", "2e"],
        "symmetric": ["0e", "2e"],
        "piezoelectric": ["1o", "1o", "2o", "3o"],
        "elastic": ["0e", "0e", "2e", "2e", "4e"],
    }


@given(st.booleans())
def test_pseudo_takes_the_other_parity(pseudo: bool) -> None:
    for name in TENSORS:
        one = tensor_basis(HeadConfig(tensor=name, pseudo=pseudo))
        other = tensor_basis(HeadConfig(tensor=name, pseudo=not pseudo))
        assert [(mul, ir.l, ir.p) for mul, ir in one.irreps] == [(mul, ir.l, -ir.p) for mul, ir in other.irreps]
        assert torch.equal(one.matrix, other.matrix)


# --- shapes of values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [
        ("symmetric", (6,)),
        ("piezoelectric", (3, 6)),
        ("elastic", (6, 6)),
        ("elastic", (3, 3, 6)),
        ("elastic", (6, 3, 3)),
    ],
)
def test_voigt_components_are_those_of_the_tensor(tensor: str, shape: tuple[int, ...]) -> None:
    basis = tensor_basis(HeadConfig(tensor=tensor))
    components = torch.randn(4, basis.dim, dtype=torch.float64)
    full = (components @ basis.matrix.T).view(4, *default_shape(basis)).numpy()
    written = (components @ presentation(basis, shape).T).view(4, *shape).numpy()
    assert np.allclose(cartesian(written), full, atol=1e-13)


def test_voigt_order_is_ases() -> None:
    basis = tensor_basis(HeadConfig(tensor="symmetric"))
    matrix = torch.tensor([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]], dtype=torch.float64)
    components = matrix.reshape(-1) @ basis.matrix
    assert torch.allclose(presentation(basis, (6,)) @ components, torch.arange(1.0, 7.0, dtype=torch.float64))


def written(name: str) -> Head:
    """Return a head of a network that has every kind of head."""
    found = network_of(EVERY_KIND).heads[name]
    assert isinstance(found, Head)
    return found


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 30))
def test_the_exponential_is_that_of_scipy(seed: int, size: float) -> None:
    made, rng = PERMITTIVITY, np.random.default_rng(seed)
    matrix = rng.normal(size=(3, 3))
    matrix = (matrix + matrix.T) * size / np.linalg.norm(matrix + matrix.T, 2)
    components = torch.from_numpy(matrix.reshape(1, 9)) @ made.cartesian.T
    expected = scipy.linalg.expm(matrix)
    # Six squarings amplify the rounding of norms up to 30 by 2^6.
    assert np.abs(made.present(components)[0].numpy() - expected).max() <= 1e-11 * np.abs(expected).max()


PERMITTIVITY = written("permittivity")


def test_logarithms_are_predicted_as_positive_tensors() -> None:
    for name in ("permittivity", "hardness"):
        made = written(name)
        values = made.present(torch.randn(50, made.basis.dim, dtype=torch.float64))
        least = torch.linalg.eigvalsh(values)[:, 0] if values.ndim == 3 else values
        assert (least > 0).all()


# --- isolated atoms ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [EVERY_KIND, {"heads": NATURAL_HEADS}], ids=["o3", "natural"])
def test_atoms_alone_have_the_shift_of_their_element_and_nothing_else(settings: dict[str, Any]) -> None:
    network = network_of(settings)
    atoms = [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in ELEMENTS]
    found = evaluate(TorchPotential(network), atoms).properties
    for name, kind in settings["heads"].items():
        basis, statistics = tensor_basis(kind), network.statistics.heads[name]
        shape = statistics.shape
        shifts = np.array(statistics.shifts).reshape(len(ELEMENTS), -1)
        components, column, shift = np.zeros((len(ELEMENTS), basis.dim)), 0, 0
        for mul, ir in basis.irreps:
            for _ in range(mul):
                if str(ir) == "0e":
                    components[:, column] = shifts[:, shift]
                    shift += 1
                column += ir.dim
        assert shift == shifts.shape[1]
        if kind.transform == "log":
            # Shifts apply to the logarithm: of the number itself, or of each eigenvalue times the square root of three.
            scalar = np.exp(shifts if basis.rank == 0 else shifts / np.sqrt(3)).reshape(-1)
            expected = scalar.reshape(-1, *[1] * len(shape)) * (np.eye(3) if shape else 1.0)
        else:
            expected = (components @ presentation(basis, shape).numpy().T).reshape(-1, *shape)
        # A single product of constants in float64.
        assert np.allclose(found[name], expected, rtol=0, atol=1e-13), name
        assert np.abs(expected).any() == bool(shifts.size), name


def test_an_extensive_head_is_the_sum_and_an_intensive_one_the_mean_of_its_atoms() -> None:
    alone = [Structure.from_cartesian([number], [[0.0, 0.0, 0.0]]) for number in ELEMENTS]
    apart = Structure.from_cartesian(ELEMENTS, [[0.0, 0.0, 0.0], [50.0, 0.0, 0.0], [100.0, 0.0, 0.0]])
    potential = TorchPotential(network_of({"heads": {name: EVERY_HEAD[name] for name in ("gap", "total", "charge")}}))
    single, together = (evaluate(potential, some).properties for some in (alone, [apart]))
    assert together["total"][0] == pytest.approx(single["total"].sum(), abs=1e-13)
    assert together["gap"][0] == pytest.approx(single["gap"].mean(), abs=1e-13)
    assert together["charge"] == pytest.approx(single["charge"], abs=1e-13)


@pytest.mark.parametrize("name", EVERY_HEAD)
@pytest.mark.parametrize("mirror", [1, -1])
def test_the_package_turns_heads_as_the_laws_do(name: str, mirror: int) -> None:
    """Two implementations agree: through irreps, and index by index."""
    kind = EVERY_HEAD[name]
    rng = np.random.default_rng(4)
    basis = tensor_basis(kind)
    shape = kind.shape or default_shape(basis)
    values = (rng.normal(size=(5, basis.dim)) @ presentation(basis, shape).numpy().T).reshape(5, *shape)
    turn = mirror * Rotation.random(rng=rng).as_matrix()
    assert np.allclose(rotate_property(values, kind, shape, turn), turned(values, kind, turn), atol=1e-12)
