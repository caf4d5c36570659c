"""Settings of a campaign, given as arguments or in a YAML file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..pipeline.atomic import write_text_atomically
from ..pipeline.bounded_yaml import load_yaml
from ..pipeline.energy_schemes import DISPERSIONS, NO_DISPERSION, SCHEMES
from ..pipeline.errors import DISK_FULL, ConfigError, OutputExistsError, detail
from ..pipeline.redaction import redact_urls
from ..pipeline.sources.discovery import OPTIMADE_PREFIX, path_names
from ..pipeline.suggestions import problem_text, unknown_name
from ..screening.convex_hull.hull import NEAR
from ..screening.relaxation.batched import RelaxSettings
from .models.catalog import is_known
from .references.fetch import MP

DEFAULT_MODEL = "7net-0"
# Suffixes of a campaign file.
SUFFIXES = (".yaml", ".yml")
# Settings that hold paths, each with the values that name a server instead of a path.
_PATHS: Mapping[str, frozenset[str]] = {"sources": frozenset(), "references": frozenset({MP})}
# Maximum number of structures: the largest signed 64-bit integer.
_MOST = 2**63 - 1
# Replacements for messages of pydantic, which name Python types.
_EXPECTED = {
    "tuple_type": "must be a list of strings",
    "string_type": "must be a string",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "dataclass_type": "must hold settings, such as `fmax: 0.05`",
}


class RankSettings(BaseModel):
    """Settings of a campaign: what it ranks, with which model, and relative to which references.

    Example:
        >>> from equiscreen.campaigns import RankSettings
        >>> RankSettings(sources=["candidates.extxyz"], top=10).model
        '7net-0'

    Attributes:
        sources: Structure files, as for `equiscreen.pipeline.featurize`; or one graph store or scores dataset.
        model: Name of published weights, ONNX file, checkpoint or run folder; see `campaigns.models`.
        dispersion: Dispersion correction that is added to the model: ``none``, ``d3`` or ``d3-atm``. References other
            than datasets with the same correction then need `relax_references`, and the hull is made of the relaxed
            references alone.
        references: Reference phases of the hull, as for `equiscreen.screening.hull`; without any, structures are ranked
            by their formation energy.
        scheme: Energy scheme of references that do not state one.
        relax_references: Whether to relax the structures of the references with the model too, for a second hull with
            all energies computed by the model.
        within: Structures at most this far above the hull (eV/atom) count as near the hull. If the model's error is
            known, references are given and the structures are relaxed, the result includes the probability that a
            structure is near the hull.
        relax: Whether to relax the structures; otherwise, they are scored as given.
        relaxation: Settings of the relaxation.
        where: Filter of the selection; see `equiscreen.screening.select`.
        top: Largest number of structures to select.
        limit: Read only the first `limit` records; None reads all.
        device: Device on which the model runs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sources: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    model: str = DEFAULT_MODEL
    dispersion: str = NO_DISPERSION
    references: tuple[str, ...] = ()
    scheme: str | None = None
    relax_references: bool = False
    within: float = Field(default=NEAR, ge=0, allow_inf_nan=False)
    relax: bool = True
    relaxation: RelaxSettings = RelaxSettings()
    where: str | None = None
    top: int = Field(default=100, ge=1, le=_MOST)
    limit: int | None = Field(default=None, ge=1, le=_MOST)
    device: str = "cpu"

    @field_validator(*_PATHS, mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        if isinstance(value, str | Path):
            return path_names(value)
        is_list = isinstance(value, list | tuple)
        return tuple(str(one) if isinstance(one, Path) else one for one in value) if is_list else value

    @model_validator(mode="after")
    def _has_references(self) -> Self:
        if self.relax_references and not self.references:
            raise ValueError("relax_references needs references; add some, or leave out relax_references")
        return self

    @field_validator("dispersion")
    @classmethod
    def _known_dispersion(cls, value: str) -> str:
        if value not in (known := (NO_DISPERSION, *DISPERSIONS)):
            raise ValueError(unknown_name("dispersion", value, known))
        return value

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
            raise ConfigError(f"{path} cannot be read: {detail(error)}; give a readable YAML file") from error
        if not isinstance(content, Mapping):
            raise ConfigError(f"{path} is not a campaign file; it needs at least `sources:`")
        try:
            settings = cls.of(**{str(name): value for name, value in content.items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        folder = Path(path).parent
        paths = {
            name: tuple(_moved(one, partial(_joined, folder), servers) for one in getattr(settings, name))
            for name, servers in _PATHS.items()
        }
        model = settings.model
        moved = str(folder / model) if not is_known(model) and (folder / model).exists() else model
        return settings.model_copy(update={**paths, "model": moved})

    def save(self, path: Path, *, overwrite: bool = True) -> None:
        """Write a campaign file, with paths relative to its folder and without secrets in URLs.

        Args:
            path: File to write.
            overwrite: Whether to replace a file with different content.

        Raises:
            OutputExistsError: The file exists with different content and may not be overwritten; or it cannot be
                written.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        folder = path.parent.resolve()
        relative = partial(os.path.relpath, start=folder)
        for name, servers in _PATHS.items():
            if name in content:
                content[name] = [_moved(one, relative, servers) for one in content[name]]
        if not is_known(self.model) and Path(self.model).exists():
            content["model"] = os.path.relpath(self.model, folder)
        text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
        try:
            if not overwrite and path.exists() and path.read_bytes() != text.encode():
                raise OutputExistsError(f"{path} already exists with different content; choose another file")
            write_text_atomically(path, text)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            raise OutputExistsError(f"{path} cannot be written ({error.strerror}); choose another file") from error


def _joined(folder: Path, path: str) -> str:
    """Join a path to a folder and remove ``..``, so that sources have the same names as on the command line."""
    joined = str(folder / path)
    plain = os.path.normpath(joined)
    # After a symbolic link, `..` may lead to a different folder.
    return plain if os.path.realpath(plain) == os.path.realpath(joined) else joined


def _moved(source: str, move: Callable[[str], str | Path], servers: frozenset[str]) -> str:
    """Change the path of a source with `move`; names of servers and URLs are unchanged."""
    if "://" in source or source.startswith(OPTIMADE_PREFIX):
        return redact_urls(source)
    return source if source in servers else str(move(source))


def _words(problem: Any, known: Mapping[str, Any]) -> str:
    if problem["type"] == "unexpected_keyword_argument":
        section, key = problem["loc"]
        return f"{section}: {unknown_name('setting', str(key), [one.name for one in fields(RelaxSettings)])}"
    return problem_text(problem, "setting", known, _EXPECTED)
