"""Settings of a campaign: as arguments, and as a YAML file that repeats it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..pipeline.atomic import write_text_atomically
from ..pipeline.bounded_yaml import load_yaml
from ..pipeline.energy_schemes import SCHEMES
from ..pipeline.errors import DISK_FULL, ConfigError, detail
from ..pipeline.redaction import redact_urls
from ..pipeline.sources.discovery import OPTIMADE_PREFIX
from ..pipeline.suggestions import unknown_name
from ..screening.relaxation.batched import RelaxSettings
from .models.catalog import is_known
from .references.fetch import MP

DEFAULT_MODEL = "7net-0"
# Endings of a campaign file.
SUFFIXES = (".yaml", ".yml")
_PATHS = ("sources", "references")
# Largest number of structures: that of 64 bits.
_MOST = 2**63 - 1
# What pydantic calls by the names of Python's types.
_EXPECTED = {
    "tuple_type": "must be a list of texts",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "dataclass_type": "must hold settings, such as `fmax: 0.05`",
}


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

    sources: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    model: str = DEFAULT_MODEL
    references: tuple[str, ...] = ()
    scheme: str | None = None
    relax: bool = True
    relaxation: RelaxSettings = RelaxSettings()
    where: str | None = None
    top: int = Field(default=100, ge=1, le=_MOST)
    limit: int | None = Field(default=None, ge=1, le=_MOST)
    device: str = "cpu"

    @field_validator(*_PATHS, mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (str(value),) if isinstance(value, str | Path) else value

    @field_validator("scheme")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in SCHEMES:
            raise ValueError(unknown_name("energy scheme", value, SCHEMES))
        return value

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
        paths = {name: _moved(name, getattr(settings, name), lambda p: folder / p) for name in _PATHS}
        model = settings.model
        is_file = not is_known(model) and (folder / model).exists()
        return settings.model_copy(update={**paths, "model": str(folder / model) if is_file else model})

    def save(self, path: Path) -> None:
        """Write a campaign file, with paths relative to its folder and without secrets in URLs.

        Raises:
            ConfigError: The folder of the file does not exist or cannot be written.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        folder = path.parent.resolve()
        for name in _PATHS:
            if name in content:
                content[name] = [*_moved(name, content[name], lambda p: os.path.relpath(p, folder))]
        if not is_known(self.model) and Path(self.model).exists():
            content["model"] = os.path.relpath(self.model, folder)
        try:
            write_text_atomically(path, yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


def _moved(setting: str, sources: Sequence[str], move: Callable[[str], Path | str]) -> tuple[str, ...]:
    """Sources or references, with relative paths made relative to another folder and no secrets in URLs."""

    def moved(source: str) -> str:
        if "://" in source or source.startswith(OPTIMADE_PREFIX):
            return redact_urls(source)
        is_fixed = Path(source).is_absolute() or (setting == "references" and source == MP)
        return source if is_fixed else str(move(source))

    return tuple(map(moved, sources))


def _words(problem: Any, known: Mapping[str, Any]) -> str:
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        return unknown_name("setting", name, known)
    if problem["type"] == "unexpected_keyword_argument":
        section, key = problem["loc"]
        return f"{section}: {unknown_name('setting', str(key), [one.name for one in fields(RelaxSettings)])}"
    if problem["type"] in _EXPECTED:
        return f"{name}: {_EXPECTED[problem['type']]}"
    text = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {text[:1].lower()}{text[1:]}" if name else text
