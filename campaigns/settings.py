"""Settings of a campaign: as arguments, and as a YAML file that repeats it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..pipeline.atomic import write_text_atomically
from ..pipeline.bounded_yaml import load_yaml
from ..pipeline.errors import ConfigError, OutputExistsError, detail
from ..pipeline.redaction import redact_urls
from ..pipeline.suggestions import unknown_name
from ..screening.relaxation.batched import RelaxSettings

DEFAULT_MODEL = "7net-0"
# Endings of a campaign file.
SUFFIXES = (".yaml", ".yml")
_PATHS = ("sources", "references")


class RankSettings(BaseModel):
    """What a campaign ranks, with what, and against what.

    Example:
        >>> RankSettings(sources=["candidates.extxyz"]).model
        '7net-0'

    Attributes:
        sources: Structure files, as for `equiscreen.pipeline.featurize`; or one graph store.
        model: Name of published weights, ONNX file, checkpoint or run folder, see `campaigns.models`.
        references: Reference phases of the hull, as for `equiscreen.screening.hull`; without any, structures are ranked
            by their formation energy.
        scheme: Energy scheme of references that state none.
        relax: Whether to relax the structures, or to score them as they are.
        relaxation: Settings of the relaxation.
        where: Filter of the selection, see `equiscreen.screening.select`.
        top: Number of structures to select.
        limit: Read only the first `limit` records; None reads all.
        device: Device that evaluates the model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[str, ...] = Field(min_length=1)
    model: str = DEFAULT_MODEL
    references: tuple[str, ...] = ()
    scheme: str | None = None
    relax: bool = True
    relaxation: RelaxSettings = RelaxSettings()
    where: str | None = None
    top: int = Field(default=100, ge=1)
    limit: int | None = Field(default=None, ge=1)
    device: str = "cpu"

    @field_validator(*_PATHS, mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Make settings from arguments or from the content of a file.

        Raises:
            ConfigError: A value is invalid, or there is no such setting.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError("; ".join(_words(problem, cls.model_fields) for problem in error.errors())) from error

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a campaign file. Relative paths in it are relative to its folder.

        Raises:
            ConfigError: The file cannot be read, or a setting is invalid.
        """
        try:
            content = load_yaml(Path(path))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: cannot be read as YAML: {detail(error)}") from error
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path}: not a campaign file; it needs at least `sources:`")
        try:
            settings = cls.of(**{str(name): value for name, value in content.items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        folder = Path(path).parent
        paths = {name: tuple(_moved(one, lambda p: folder / p) for one in getattr(settings, name)) for name in _PATHS}
        model = settings.model
        moved = str(folder / model) if not Path(model).is_absolute() and (folder / model).exists() else model
        return settings.model_copy(update={**paths, "model": moved})

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Write a campaign file, with paths relative to its folder and without secrets in URLs.

        Args:
            path: File to write.
            overwrite: Whether to replace a file with another content.

        Raises:
            OutputExistsError: The file exists, has another content, and may not be overwritten; or it cannot be
                written.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        folder = path.parent.resolve()
        for name in _PATHS:
            if name in content:
                content[name] = [_moved(one, lambda p: Path(os.path.relpath(p, folder))) for one in content[name]]
        if Path(self.model).exists():
            content["model"] = os.path.relpath(self.model, folder)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        try:
            if not overwrite and path.exists() and path.read_bytes() != text.encode():
                raise OutputExistsError(f"{path}: already exists and holds something else; choose another file")
            write_text_atomically(path, text)
        except OSError as error:
            raise OutputExistsError(f"{path}: cannot be written ({error.strerror})") from error


def _moved(source: str, move: Any) -> str:
    """A source; if it is a relative path, relative to another folder."""
    if "://" in source or source.startswith("optimade:"):
        return redact_urls(source)
    return source if Path(source).is_absolute() else str(move(source))


def _words(problem: Any, known: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return unknown_name("setting", name, known)
    return f"{name}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
