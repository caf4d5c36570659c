"""Configuration of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from .head import Section


class TermConfig(Section):
    """One term of the loss; in YAML a number alone is its weight.

    Attributes:
        weight: Of the mean over all labelled components.
        kind: ``squared``; ``absolute``; ``huber``, squared below `delta` and absolute beyond.
        delta: In the unit of the term.
    """

    weight: float = Field(default=1.0, ge=0)
    kind: Literal["squared", "absolute", "huber"] = "squared"
    delta: float = Field(default=0.01, gt=0)


def _term(value: Any) -> Any:
    return {"weight": value} if isinstance(value, int | float) and not isinstance(value, bool) else value


Term = Annotated[TermConfig, BeforeValidator(_term)]


class LossConfig(Section):
    """Terms of the loss; a label that is absent does not count.

    The errors are those of the energy per atom in eV, of the force components in eV/angstrom and of the stress
    components in eV/angstrom^3; those of a head are the components of its irreps in units of their spread in the
    training set (of the logarithm, where it is transformed).

    Attributes:
        heads: By name; a head that is not named has the weight 1.
    """

    energy: Term = TermConfig(weight=4.0)
    forces: Term = TermConfig(weight=1.0)
    stress: Term = TermConfig(weight=200.0)
    heads: dict[str, Term] = Field(default_factory=dict)


class SplitConfig(Section):
    """Which structures are held out.

    Attributes:
        by: ``structure``: at random. ``composition``: whole reduced formulas at random. ``group``: whole groups with
            one value of the column `key` at random. ``stratified``: at random within each group. ``time``: the latest
            by the column `key`.
        key: A column of the stores (`featurize --column`).
        validation: Share of the structures that are validated on while training.
        test: Share that is looked at once, at the end.
        seed: Of the random numbers; members of an ensemble share it.
    """

    by: Literal["structure", "composition", "group", "stratified", "time"] = "structure"
    key: str | None = None
    validation: float = Field(default=0.1, gt=0, lt=1)
    test: float = Field(default=0.0, ge=0, lt=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if (self.key is None) != (self.by in ("structure", "composition")):
            raise ValueError("`key`, a column of the stores, belongs to group, stratified and time, and they need it")
        if self.validation + self.test >= 1:
            raise ValueError("validation and test leave nothing to train on")
        return self


class FineTuneConfig(Section):
    """From where weights are taken instead of at random.

    Attributes:
        checkpoint: A model.ckpt, or a run folder; its architecture replaces `network`, but for new heads.
        freeze: Beginnings of names of parameters that do not change: ``embedding``, ``radial``, ``interactions.0``, ...
        references: ``fit`` fits the reference energies anew, to what the checkpoint leaves of the new labels; ``keep``.
    """

    checkpoint: Path | None = None
    freeze: tuple[str, ...] = ()
    references: Literal["fit", "keep"] = "fit"


class TrainingConfig(Section):
    """How the network is trained.

    Attributes:
        seed: Of weights and order.
        max_epochs, max_minutes: Training ends at whichever comes first; None sets no limit of time.
        batch_size: Structures in a step, of all processes together.
        learning_rate: Highest; it warms up over the first `warmup_steps`.
        schedule: ``cosine`` to nothing, or ``plateau``: times `plateau_factor` after `plateau_epochs` without a better
            validation.
        weight_decay: Of AdamW; 0 is Adam.
        ema_decay: Of the running mean of the weights that is validated and kept.
        gradient_clip: Largest norm of the gradient.
        loss: Terms and weights.
        split: What is held out.
        fine_tune: From a checkpoint.
        dtype: Of weights and features; energies are summed in float64 in any case.
        threads: Of PyTorch, in each process; None takes all cores.
        devices: Processes that share each batch: GPUs, or processes of the CPU.
        accelerator: ``auto`` takes a GPU if there is one.
        energy_scale: ``global``, or one for each ``element``.
        checkpoint_minutes: At least so often the state is saved; a killed run repeats no more.
        early_stop_epochs: Stop after so many epochs without improvement; None goes on.
    """

    seed: int = Field(default=0, ge=0, lt=2**31)
    max_epochs: int = Field(default=200, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
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
