"""Configuration of the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .head import Section


class TermConfig(Section):
    """One term of the loss; in YAML, a plain number sets its weight.

    Attributes:
        weight: Weight of the mean over all labelled components.
        kind: ``squared``, ``absolute`` or ``huber`` (squared up to `delta`, linear beyond).
        delta: Threshold of the Huber loss, in the units of the error.
    """

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["squared", "absolute", "huber"] = "squared"
    delta: float = Field(default=0.01, gt=0)


def _term(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


Term = Annotated[TermConfig, BeforeValidator(_term)]


class LossConfig(Section):
    """Terms of the loss; missing labels are ignored.

    The terms measure errors of the energy per atom (eV), the force components (eV/angstrom), the stress components
    (eV/angstrom^3) and the irrep components of heads (in units of their spread in the training set). Components of an
    extensive head are per atom; with `transform: log`, they are components of the logarithm.

    Attributes:
        energy: Term of the energy per atom.
        forces: Term of the forces.
        stress: Term of the stress.
        heads: Terms of the heads, by name; a head that is not listed has weight 1.
    """

    energy: Term = TermConfig(weight=4.0)
    forces: Term = TermConfig(weight=1.0)
    stress: Term = TermConfig(weight=200.0)
    heads: dict[str, Term] = Field(default_factory=dict)


class SplitConfig(Section):
    """Settings of the split into training, validation and test structures.

    Attributes:
        by: How structures are held out. ``structure``: at random. ``composition``: all structures of randomly chosen
            reduced formulas. ``group``: all structures with randomly chosen values of the column `key`.
            ``stratified``: at random, the same fraction for each value of the column `key`. ``time``: the structures
            with the latest values in the column `key`.
        key: Column of the stores (`featurize --column` keeps it); required if `by` is ``group``, ``stratified`` or
            ``time``.
        validation: Fraction of the structures used for validation during training.
        test: Fraction of the structures evaluated once, at the end.
        seed: Random seed of the split; all members of an ensemble share it.
    """

    by: Literal["structure", "composition", "group", "stratified", "time"] = "structure"
    key: str | None = None
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.key is None) != (self.by in ("structure", "composition")):
            raise ValueError(
                "`key` (a column of the stores) is required if `by` is group, stratified or time, and not allowed "
                "otherwise"
            )
        if self.validation + self.test >= 1:
            raise ValueError(
                "`validation` and `test` add up to 1 or more, which leaves no structures to train on; lower them"
            )
        return self


class FineTuneConfig(Section):
    """Settings of fine-tuning: the weights to start from, and the parts that stay unchanged.

    Attributes:
        checkpoint: Path of a model.ckpt or a run folder; its architecture replaces `network`, except for new heads.
        freeze: Name prefixes of the parameters to freeze, such as ``embedding``, ``radial`` or ``interactions.0``.
        references: ``fit`` refits the reference energies to the residuals of the checkpoint on the new labels; ``keep``
            keeps the reference energies of the checkpoint's elements.
        replay: Path or URL of a graph store of structures for which the predictions should not change. A sample of
            them, labelled by the network before its first step, is trained on together with the new data.
        replay_fraction: Number of replayed structures to train on, relative to the number of new ones.
        replay_rattle: Standard deviation of the random displacements of replayed atoms along each axis (angstrom).
    """

    checkpoint: Path | None = None
    freeze: tuple[str, ...] = ()
    references: Literal["fit", "keep"] = "fit"
    replay: str | None = None
    replay_fraction: float = Field(default=5.5, gt=0)
    replay_rattle: float = Field(default=0.05, ge=0)


# Defaults that differ when a checkpoint is fine-tuned. With the defaults of training from scratch, the first steps
# destroy what the checkpoint has learned (tests/benchmarks/fine_tune_mlearn.py).
FINE_TUNING_DEFAULTS: Mapping[str, Any] = {
    "max_epochs": 8,
    "batch_size": 2,
    "learning_rate": 2e-3,
    "relative_rate": True,
}
# Defaults that differ further with replay: a batch then holds about 2 new structures and 11 replayed ones, since few
# replayed structures and large steps make a network forget more than no replay at all.
REPLAY_DEFAULTS: Mapping[str, Any] = {"batch_size": 13, "learning_rate": 5e-4}


class TrainingConfig(Section):
    """Settings of the training.

    When a checkpoint is fine-tuned, keys that are not set have the values of `FINE_TUNING_DEFAULTS` and, with replay,
    `REPLAY_DEFAULTS` instead of the defaults below; see `with_defaults_of_task`.

    Attributes:
        seed: Random seed of the initial weights and the order of the structures.
        max_epochs, max_minutes: Training ends when the first of these limits is reached; None sets no time limit.
        batch_size: Structures per step, over all processes; with one process, a batch that does not fit into memory is
            processed in parts, with equal results.
        learning_rate: Peak learning rate, reached after `warmup_steps` or, if that is earlier, a tenth of all steps.
        relative_rate: Whether the learning rate of each array of weights is `learning_rate` times the root mean square
            of its numbers before the first step (times 1 if all are zero). AdamW's steps do not depend on the size of
            gradients, and arrays of one network may differ in size by a factor of 200, as in 7net-0.
        schedule: ``cosine`` decays the learning rate to zero; ``plateau`` multiplies it by `plateau_factor` after
            `plateau_epochs` epochs without a better validation loss.
        weight_decay: Weight decay of AdamW.
        ema_decay: Decay of the exponential moving average of the weights, which is validated and saved.
        gradient_clip: Maximum norm of the gradient; larger gradients are scaled down to it.
        loss: Terms of the loss and their weights.
        split: Settings of the split into training, validation and test structures.
        fine_tune: Settings of fine-tuning; without a checkpoint, the network starts from random weights.
        dtype: Data type of weights and features; energies are always summed in float64.
        threads: Number of PyTorch threads per process; None uses PyTorch's default, usually one per core.
        devices: Number of processes that share each batch; with GPUs, each process uses one GPU.
        accelerator: ``cpu``, ``cuda``, or ``auto``, which uses a GPU if there is one.
        energy_scale: ``global`` for one scale of all atomic energies, or ``element`` for one scale per element.
        checkpoint_minutes: Minutes between two saves of the state within an epoch; the state is also saved at the end
            of each epoch.
        early_stop_epochs: Stop after this many epochs without a better validation loss; None never stops early.
    """

    seed: int = Field(default=0, ge=0, lt=2**31)
    max_epochs: int = Field(default=200, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    relative_rate: bool = False
    warmup_steps: int = Field(default=100, ge=0)
    schedule: Literal["cosine", "plateau"] = "cosine"
    plateau_factor: float = Field(default=0.5, gt=0, lt=1)
    plateau_epochs: int = Field(default=20, ge=1)
    weight_decay: float = Field(default=0.0, ge=0)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    gradient_clip: float = Field(default=10.0, gt=0)
    loss: LossConfig = LossConfig()
    split: SplitConfig = SplitConfig()
    fine_tune: FineTuneConfig = FineTuneConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int | None = Field(default=None, ge=1)
    devices: int = Field(default=1, ge=1)
    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    energy_scale: Literal["global", "element"] = "global"
    checkpoint_minutes: float = Field(default=10.0, gt=0)
    early_stop_epochs: int | None = Field(default=None, ge=1)

    def with_defaults_of_task(self) -> Self:
        """Return the settings with the defaults of fine-tuning for keys that are not set, if there is a checkpoint.

        If `learning_rate` is set but `relative_rate` is not, the rate is not relative. The keys count as set in the
        result, so that settings read from a run folder stay as they are.
        """
        if self.fine_tune.checkpoint is None:
            return self
        given = self.model_fields_set | ({"relative_rate"} if "learning_rate" in self.model_fields_set else set())
        defaults = {**FINE_TUNING_DEFAULTS, **({} if self.fine_tune.replay is None else REPLAY_DEFAULTS)}
        return self.model_copy(update={name: value for name, value in defaults.items() if name not in given})
