# ruff: noqa: ARG005 - all functions take the same arguments
"""Every operation gives the same result in ONNX as in PyTorch, also for sizes that were not traced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from equiscreen.export.aten_translation import translate
from equiscreen.pipeline.errors import ExportError
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

INPUTS = {"x": ("rows",), "y": ("rows", "columns"), "index": ("count",)}
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def example(rows: int, columns: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors of shape [rows, 6] and [rows, columns], and `count` random row indices."""
    rng = torch.Generator().manual_seed(rows)
    x = torch.rand(rows, 6, generator=rng, dtype=torch.float64) + 0.5
    y = torch.rand(rows, columns, generator=rng, dtype=torch.float64) - 0.5
    return x, y, torch.randint(rows, (count,), generator=rng)


def translated(function: Function) -> onnx.ModelProto:
    def fixed(x: Tensor, y: Tensor, index: Tensor) -> tuple[Tensor]:
        assert x.shape[1] == 6  # tells the tracer that this size is fixed
        return (function(x, y, index),)

    traced = make_fx(fixed, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*example(5, 7, 3))
    return translate(traced, INPUTS, ["out"])


def kinds(model: onnx.ModelProto) -> Counter[str]:
    """Number of nodes of each operator."""
    return Counter(node.op_type for node in model.graph.node)


WEIGHT = torch.linspace(-1, 1, 12, dtype=torch.float64).view(6, 2)
FUNCTIONS: dict[str, Function] = {
    "arithmetic": lambda x, y, i: (x * 0.7 + 1 / x - x / 3).exp() * torch.sqrt(x) - (-x),
    "a number less a tensor": lambda x, y, i: 0.3 - x,
    "types": lambda x, y, i: x.float() * x + (x < 1).double(),
    "activations": lambda x, y, i: torch.nn.functional.silu(x) * torch.sigmoid(x),
    "powers": lambda x, y, i: torch.pow(x, 0.9) + torch.tanh(y[:, :1]),
    "gradient of a hyperbolic tangent": lambda x, y, i: torch.ops.aten.tanh_backward(x, torch.tanh(y[:, :1])),
    "gradient of a sigmoid": lambda x, y, i: torch.ops.aten.sigmoid_backward(x, torch.sigmoid(y[:, :1])),
    "choice": lambda x, y, i: torch.where(x < 1, x, torch.zeros_like(x)),
    "matrices": lambda x, y, i: x.t() @ y @ y.t() @ x @ WEIGHT,
    "a matrix and a vector": lambda x, y, i: torch.mv(y, y.sum(0)),
    "constant matrix, many tensors": lambda x, y, i: torch.matmul(WEIGHT.t(), x.view(-1, 6, 1)),
    "batches": lambda x, y, i: torch.bmm(x.unsqueeze(2), y.unsqueeze(1)),
    "sums": lambda x, y, i: x.sum() + x.sum(0).sum() + y.sum(-1, keepdim=True),
    "shapes": lambda x, y, i: x.view(-1, 2, 3).transpose(1, 2).reshape(-1, 2).squeeze(-1),
    "two open sizes": lambda x, y, i: (x.unsqueeze(1) * y.unsqueeze(2)).reshape(-1, 6).view(x.shape[0], y.shape[1], 6),
    "order of axes": lambda x, y, i: (x.view(-1, 2, 3) * 2).permute(2, 0, 1),
    "order of an axis of one": lambda x, y, i: x.view(-1, 1, 6).permute(1, 0, 2),
    "spool": lambda x, y, i: torch.cat([p * k for k, p in enumerate(torch.split(x, [1, 2, 3], 1))], 1),
    "slices that make up the whole": lambda x, y, i: x.narrow(1, 0, 2).exp() @ x.narrow(1, 2, 4).t().narrow(0, 0, 2),
    "a slice": lambda x, y, i: y[1:, 2:5:2],
    "rows": lambda x, y, i: x[i] * x.index_select(0, i) + torch.nn.functional.embedding(i, x),
    "columns": lambda x, y, i: WEIGHT.index_select(1, i * 0),
    "expanded, added": lambda x, y, i: y.sum(1, keepdim=True).expand(-1, 6) + x,
    "expanded, alone": lambda x, y, i: y.sum(1, keepdim=True).expand(-1, 6),
    "expanded, in a new shape": lambda x, y, i: y.sum(1).view(-1, 1, 1).expand(-1, 2, 3).reshape(-1, 6) * x,
    "expanded, split up": lambda x, y, i: y.sum(1).view(1, -1).expand(6, -1).reshape(-1),
    "expanded, summed": lambda x, y, i: y.sum(1, keepdim=True).expand(-1, 6).sum(1),
    "filled": lambda x, y, i: torch.cat([x, torch.zeros(x.shape[0], 2), torch.full((x.shape[0], 1), 2.5)], 1),
    "ones": lambda x, y, i: torch.ones_like(x) * 3 + torch.ones_like(y).sum(1, keepdim=True),
    "numbers in a row": lambda x, y, i: torch.arange(y.shape[0]).unsqueeze(1) == i.unsqueeze(0),
    "sizes as numbers": lambda x, y, i: x.reshape(-1).view(3, (x.shape[0] * 6) // 3),
    "numbers of another type": lambda x, y, i: (i < 1.5) * (1.5 - i),
    "large whole numbers": lambda x, y, i: i + 9007199254740993,
    "rows by zeros": lambda x, y, i: x[torch.zeros_like(i)] + x.index_select(0, torch.zeros_like(i)),
    "ones below a number": lambda x, y, i: torch.where(torch.zeros_like(x) < 1, x, torch.ones_like(x) * 3.0),
    "a range of floats": lambda x, y, i: torch.arange(y.shape[0], dtype=torch.float64) @ x,
    "constants": lambda x, y, i: x @ (WEIGHT @ WEIGHT.t() * 2 + torch.eye(6, dtype=torch.float64)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_results_are_those_of_torch_for_other_sizes(name: str) -> None:
    function = FUNCTIONS[name]
    model = translated(function)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = {value.name for value in session.get_inputs()}
    for sizes in ((5, 7, 3), (9, 6, 4), (6, 1, 1)):
        inputs = example(*sizes) if name != "a slice" else example(sizes[0], 5 + sizes[1], sizes[2])
        given = {key: x.numpy() for key, x in zip(INPUTS, inputs, strict=True) if key in wanted}
        expected = function(*inputs).numpy()
        (found,) = session.run(None, given)
        assert found.shape == expected.shape
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-13, atol=1e-13)


def test_what_depends_on_weights_alone_is_computed_at_once() -> None:
    assert kinds(translated(FUNCTIONS["constants"])) == {"MatMul": 1, "Identity": 1}


def test_nothing_is_computed_twice() -> None:
    model = translated(lambda x, y, i: (x * 2).exp() + (x * 2).exp())
    assert kinds(model) == {"Mul": 1, "Exp": 1, "Add": 1, "Identity": 1}


def test_what_no_output_needs_is_left_out() -> None:
    model = translated(lambda x, y, i: (x * torch.ones_like(x), y.exp() @ y.t())[0])
    assert kinds(model) == {"Identity": 1}
    assert not model.graph.initializer


def test_what_is_broadcast_is_not_copied() -> None:
    for name in ("expanded, added", "constant matrix, many tensors"):
        assert "Expand" not in kinds(translated(FUNCTIONS[name]))


def test_slices_that_make_up_the_whole_are_one_split() -> None:
    assert kinds(translated(lambda x, y, i: torch.cat([x.narrow(1, 2, 4), x.narrow(1, 0, 2)], 1))) == {
        "Split": 1,
        "Concat": 1,
        "Identity": 1,
    }


def test_an_unknown_operation_is_named() -> None:
    with pytest.raises(ExportError, match=r"aten\.atan2\.default has no translation"):
        translated(lambda x, y, i: torch.atan2(x, x))
    with pytest.raises(ExportError, match=r"^torch\.int32 has no translation to ONNX; use float32, "):
        translated(lambda x, y, i: i.to(torch.int32) * 2)


def test_numbers_keep_their_precision() -> None:
    """PyTorch 2.13's own exporter writes them as float32."""
    model = translated(lambda x, y, i: x * 0.7)
    (number,) = (onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer)
    assert number == np.float64(0.7)
