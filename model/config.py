"""The configuration of a network and of its training: one YAML file, every key with a default."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..pipeline.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class NetworkConfig(_Section):
    """The architecture.

    Attributes:
        cutoff: Angstrom; None takes the store's.
        hidden_irreps: Features of an atom between interactions, in e3nn's notation: multiplicity, l, parity.
        l_max: Highest degree of the spherical harmonics.
        n_interactions: How often atoms look at their neighbours.
        n_basis: Radial basis functions that the learned ones are made from.
        n_radial: Learned radial functions that the sum over neighbours keeps apart.
        radial_hidden: Width of the perceptron that makes them.
        correlation: Highest order of products of an atom's density with itself (body order minus one).
        readout_hidden: Width of the last readout.
    """

    cutoff: float | None = Field(default=None, gt=0)
    hidden_irreps: str = "32x0e + 16x1o + 8x2e"
    l_max: int = Field(default=2, ge=0, le=6)
    n_interactions: int = Field(default=2, ge=1)
    n_basis: int = Field(default=8, ge=1)
    n_radial: int = Field(default=8, ge=1)
    radial_hidden: int = Field(default=32, ge=1)
    correlation: int = Field(default=3, ge=1, le=3)
    readout_hidden: int = Field(default=16, ge=1)

    @field_validator("hidden_irreps")
    @classmethod
    def _irreps(cls, value: str) -> str:
        from e3nn import o3  # noqa: PLC0415 - a second to import, and only needed here

        try:
            irreps = o3.Irreps(value)
        except Exception as error:
            raise ValueError(f"{value!r} are no irreps; write them as 32x0e + 16x1o + 8x2e") from error
        if irreps.count("0e") == 0:
            raise ValueError("needs scalars (0e), since the energy is one")
        if len({(ir.l, ir.p) for _, ir in irreps}) != len(irreps):
            raise ValueError("each irrep once, please")
        return str(irreps)


class LossConfig(_Section):
    """Weights of the squared errors; a label that is absent does not count.

    The errors are those of the energy per atom in eV, of the force components in eV/angstrom and of the stress
    components in eV/angstrom^3.
    """

    energy: float = Field(default=4.0, ge=0)
    forces: float = Field(default=1.0, ge=0)
    stress: float = Field(default=200.0, ge=0)


class TrainingConfig(_Section):
    """How the network is trained.

    Attributes:
        seed: Of weights, split and order.
        max_epochs, max_minutes: Training ends at whichever comes first; None sets no limit of time.
        batch_size: Structures in a step.
        learning_rate: Highest; it warms up over the first `warmup_steps` and falls with a cosine to nothing.
        validation_fraction: Of the structures.
        ema_decay: Of the running mean of the weights that is validated and kept.
        gradient_clip: Largest norm of the gradient.
        loss: Weights.
        dtype: Of weights and features; energies are summed in float64 in any case.
        threads: Of PyTorch; None takes all cores.
        early_stop_epochs: Stop after so many epochs without improvement; None goes on.
    """

    seed: int = 0
    max_epochs: int = Field(default=200, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, ge=1)
    learning_rate: float = Field(default=1e-2, gt=0)
    warmup_steps: int = Field(default=100, ge=0)
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    ema_decay: float = Field(default=0.99, ge=0, lt=1)
    gradient_clip: float = Field(default=10.0, gt=0)
    loss: LossConfig = LossConfig()
    dtype: Literal["float32", "float64"] = "float32"
    threads: int | None = Field(default=None, ge=1)
    early_stop_epochs: int | None = Field(default=None, ge=1)


class Config(_Section):
    """All of it."""

    network: NetworkConfig = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a YAML file.

        Raises:
            ConfigError: Missing, not YAML, or with a key or value that does not exist.
        """
        try:
            content = yaml.safe_load(Path(path).read_text(errors="replace"))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file") from error
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
        except yaml.YAMLError as error:
            raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
        return cls.parse(content or {}, str(path))

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
        """Check a configuration given as plain values; `where` is named in errors.

        Raises:
            ConfigError: A key or value that does not exist.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(_problem(cls, item["loc"], item["type"], item["msg"]) for item in error.errors())
            raise ConfigError(f"{where}: {problems}") from error


def _problem(model: type[BaseModel], place: tuple[int | str, ...], kind: str, message: str) -> str:
    """One mistake; a key that does not exist is told with the one that was probably meant."""
    name = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{name}: {message}"
    for key in place[:-1]:
        section = model.model_fields[str(key)].annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return f"{name}: no such key"
        model = section
    near = get_close_matches(str(place[-1]), model.model_fields, 1)
    known = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(model.model_fields)}"
    return f"{name}: no such key; {known}"
