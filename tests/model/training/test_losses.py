"""Loss and learning rate: the penalty of an error, of a missing label, and the schedule."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from equiscreen.model import Config
from equiscreen.model.config.training import LossConfig, TermConfig, TrainingConfig
from equiscreen.model.training.losses import Residual, penalty, term_of, total_loss
from equiscreen.model.training.schedule import RunningMean, Schedule
from equiscreen.pipeline.errors import ConfigError
from hypothesis import given
from hypothesis import strategies as st

ERRORS = st.floats(-1e3, 1e3)
DELTAS = st.floats(1e-3, 1e2)
# Rounding of sums and differences of numbers up to 1e6 in float64.
TOLERANCE = 1e-9


def cost(error: float, **term: object) -> float:
    return float(penalty(torch.tensor([error], dtype=torch.float64), TermConfig.model_validate(term))[0])


def residual(errors: list[float], known: list[bool] | None = None) -> Residual:
    there = torch.tensor([True] * len(errors) if known is None else known)
    return Residual(torch.tensor(errors, dtype=torch.float64) * there, there, per_atom=False)


@given(error=ERRORS, delta=DELTAS)
def test_each_kind_of_penalty_is_its_formula(error: float, delta: float) -> None:
    size = abs(error)
    assert cost(error, kind="squared") == pytest.approx(size**2)
    assert cost(error, kind="absolute") == size
    expected = size**2 if size <= delta else 2 * delta * size - delta**2
    assert cost(error, kind="huber", delta=delta) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    assert cost(error, kind="huber", delta=delta) == cost(-error, kind="huber", delta=delta)
    assert cost(error, kind="huber", delta=delta) <= size**2 * (1 + TOLERANCE) + TOLERANCE


@given(delta=DELTAS)
def test_huber_has_neither_a_jump_nor_a_kink_at_delta(delta: float) -> None:
    near = torch.tensor([delta * (1 - 1e-9), delta * (1 + 1e-9)], dtype=torch.float64, requires_grad=True)
    values = penalty(near, TermConfig(kind="huber", delta=delta))
    (slopes,) = torch.autograd.grad(values.sum(), near)
    below, above = values.tolist()
    assert below == pytest.approx(above, rel=1e-8)
    assert slopes.tolist() == pytest.approx([2 * delta] * 2, rel=1e-8)


@given(errors=st.lists(st.tuples(ERRORS, st.booleans()), min_size=1, max_size=8), weight=st.floats(0, 100))
def test_a_term_is_its_weight_times_the_mean_over_what_is_labelled(
    errors: list[tuple[float, bool]], weight: float
) -> None:
    found = {"energy": residual([x for x, _ in errors], [known for _, known in errors])}
    counts = {"energy": torch.tensor(sum(known for _, known in errors))}
    loss = total_loss(found, LossConfig.model_validate({"energy": weight}), counts)
    labelled = [x**2 for x, known in errors if known]
    expected = weight * float(np.mean(labelled)) if labelled else 0.0
    assert float(loss) == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)


def test_terms_add_up_and_a_head_without_a_word_has_the_weight_one() -> None:
    found = {"energy": residual([2.0]), "gap": residual([3.0, 1.0]), "charge": residual([5.0])}
    counts = {name: torch.tensor(len(x.error)) for name, x in found.items()}
    loss = LossConfig.model_validate({"energy": 0.5, "heads": {"charge": {"weight": 2, "kind": "absolute"}}})
    assert term_of(loss, "gap") == TermConfig()
    assert float(total_loss(found, loss, counts)) == 0.5 * 4 + (9 + 1) / 2 + 2 * 5


def test_a_term_without_weight_does_not_count_but_leaves_gradients() -> None:
    error = torch.tensor([1e200], dtype=torch.float64, requires_grad=True)
    found = {"forces": Residual(error, torch.ones(1, dtype=torch.bool), per_atom=True)}
    loss = total_loss(found, LossConfig.model_validate({"forces": 0}), {"forces": torch.tensor(1)})
    (gradient,) = torch.autograd.grad(loss, error)
    assert float(loss) == float(gradient[0]) == 0.0


def test_in_yaml_a_number_alone_is_a_weight() -> None:
    text = {"loss": {"energy": 3, "forces": {"kind": "huber", "delta": 0.1}, "heads": {"gap": 0.25}}}
    config = Config.parse({"network": {"heads": {"gap": {}}}, "training": text}, "test")
    assert config.training.loss.energy == TermConfig(weight=3)
    assert config.training.loss.forces == TermConfig(kind="huber", delta=0.1)
    assert config.training.loss.stress == LossConfig().stress
    assert config.training.loss.heads == {"gap": TermConfig(weight=0.25)}


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ({"energy": -1}, r"training\.loss\.energy\.weight"),
        ({"energy": True}, r"training\.loss\.energy"),
        ({"energy": {"kind": "hubber"}}, r"training\.loss\.energy\.kind: .*'huber'"),
        ({"energy": {"delta": 0}}, r"training\.loss\.energy\.delta"),
        ({"heads": {"gap": {"wieght": 1}}}, r"training\.loss\.heads\.gap: unknown key 'wieght'; did you mean 'weight'"),
    ],
)
def test_a_mistake_in_the_loss_is_named(loss: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse({"network": {"heads": {"gap": {}}}, "training": {"loss": loss}}, "test")


@given(total=st.integers(1, 2000), warmup=st.integers(0, 300))
def test_the_cosine_rises_to_one_once_and_ends_near_nothing(total: int, warmup: int) -> None:
    schedule = Schedule(TrainingConfig(warmup_steps=warmup), total)
    rates = [schedule(step) for step in range(total + 1)]
    top = min(warmup, total // 10)
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[top] == 1
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[0] == pytest.approx(1 / (top + 1))
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[-1] == pytest.approx(0, abs=1e-12)
    # The last step that is taken is one step before the end.
    assert rates[-2] <= (math.pi / 2 / max(1, total - top)) ** 2 + 1e-12


@given(losses=st.lists(st.floats(0, 10), max_size=60), patience=st.integers(1, 5), factor=st.floats(0.1, 0.9))
def test_the_plateau_lowers_the_rate_after_so_many_epochs_without_a_better_one(
    losses: list[float], patience: int, factor: float
) -> None:
    config = TrainingConfig(schedule="plateau", plateau_epochs=patience, plateau_factor=factor, warmup_steps=0)
    schedule = Schedule(config, 100)
    best, since, drops = math.inf, 0, 0
    for loss in losses:
        schedule.validated(loss)
        since = 0 if loss < best else since + 1
        best = min(best, loss)
        if since == patience:
            since, drops = 0, drops + 1
        assert schedule(50) == pytest.approx(factor**drops)


@given(values=st.lists(st.floats(-10, 10), min_size=1, max_size=50), decay=st.floats(0, 0.999))
def test_the_running_mean_stays_among_its_values(values: list[float], decay: float) -> None:
    mean = torch.tensor(values[0], dtype=torch.float64)
    average = RunningMean(decay)
    for count, value in enumerate(values):
        mean = average(mean, torch.tensor(value, dtype=torch.float64), torch.tensor(count))
    assert min(values) - 1e-9 <= float(mean) <= max(values) + 1e-9
