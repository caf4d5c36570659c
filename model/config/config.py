"""The configuration of a network and of its training: one YAML file, in which every key has a default.

docs/training.md documents every key, and a test checks that none is missing there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import BaseModel, Discriminator, Tag, ValidationError

from ...pipeline.bounded_yaml import load_yaml
from ...pipeline.errors import ConfigError
from ...pipeline.suggestions import unknown_name
from .head import Section
from .network import IMPORTED, AllegroConfig, MaceConfig, NequipConfig, NetworkConfig
from .training import TrainingConfig


def _family(network: Any) -> str:
    family = network.get("family") if isinstance(network, dict) else getattr(network, "family", None)
    return family if family in IMPORTED else "own"


class Config(Section):
    """The complete configuration.

    Example:
        >>> from equiscreen.model import Config
        >>> config = Config.parse({"network": {"preset": "small"}, "training": {"max_epochs": 50}}, "my settings")
        >>> config.training.max_epochs
        50

    Attributes:
        network: Settings of the architecture. Only run folders of networks fine-tuned from imported weights hold a
            class of `IMPORTED`.
        training: Settings of the training.
    """

    network: Annotated[
        Annotated[NetworkConfig, Tag("own")]
        | Annotated[NequipConfig, Tag("nequip")]
        | Annotated[MaceConfig, Tag("mace")]
        | Annotated[AllegroConfig, Tag("allegro")],
        Discriminator(_family),
    ] = NetworkConfig()
    training: TrainingConfig = TrainingConfig()

    def starting_from(self, checkpoint: str | Path) -> Self:
        """Return a copy that fine-tunes a checkpoint or the model of a run folder."""
        return self._fine_tuning(checkpoint=Path(checkpoint))

    def replaying(self, store: str | Path) -> Self:
        """Return a copy that replays structures of a graph store while it fine-tunes."""
        return self._fine_tuning(replay=str(store))

    def _fine_tuning(self, **keys: Any) -> Self:
        fine_tune = self.training.fine_tune.model_copy(update=keys)
        training = self.training.model_copy(update={"fine_tune": fine_tune})
        return self.model_copy(update={"training": training})

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a configuration from a YAML file.

        Raises:
            ConfigError: The file cannot be read, is not YAML, or holds an unknown key or an invalid value.
        """
        try:
            content = load_yaml(Path(path))
        except FileNotFoundError as error:
            raise ConfigError(f"{path}: no such file; check the path") from error
        except OSError as error:
            raise ConfigError(f"{path} cannot be read ({error.strerror}); give a readable YAML file") from error
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from error
        return cls.parse(content or {}, str(path))

    @classmethod
    def parse(cls, content: Any, where: str) -> Self:
        """Validate a configuration given as plain values.

        Args:
            content: The sections `network` and `training`, both optional.
            where: Source of the values, which error messages name.

        Raises:
            ConfigError: There is an unknown key or an invalid value.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            problems = "; ".join(_problem(cls, item["loc"], item["type"], item["msg"]) for item in error.errors())
            raise ConfigError(f"{where}: {problems}") from error


def _problem(model: type[BaseModel], place: tuple[int | str, ...], kind: str, message: str) -> str:
    """Describe a mistake in one line; for an unknown key, suggest the most similar valid key."""
    if place[:1] == ("network",) and place[1:2] in {(tag,) for tag in ("own", *IMPORTED)}:
        place = (*place[:1], *place[2:])  # leave out the kind of network, which is not a key
    name = ".".join(map(str, place))
    if kind != "extra_forbidden":
        return f"{name}: {message.removeprefix('Value error, ')}" if name else message.removeprefix("Value error, ")
    for key in place[:-1]:
        field = model.model_fields.get(str(key))  # None if the key is the name of a head
        if field is not None and (section := _section(field.annotation)) is not None:
            model = section
    parent = ".".join(map(str, place[:-1]))
    return (f"{parent}: " if parent else "") + unknown_name("key", str(place[-1]), model.model_fields)


def _section(annotation: Any) -> type[BaseModel] | None:
    """Return the section class in an annotation, which may be the type of a dictionary's values; None without one."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section(part)) is not None), None)
