"""Labels are mapped, not guessed: where a quantity stands in a record, in which unit, order and sign."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .errors import LabelError

Component = Literal["xx", "yy", "zz", "xy", "xz", "yz", "yx", "zx", "zy"]
# ASE's order of Voigt components.
ASE_VOIGT: tuple[Component, ...] = ("xx", "yy", "zz", "yz", "xz", "xy")
# Labels whose meaning the network knows: their unit in the store and their shape behind the first dim.
ENERGY, FORCES, STRESS = "energy", "forces", "stress"
KNOWN_UNITS = {ENERGY: "eV", FORCES: "eV/angstrom", STRESS: "eV/angstrom**3"}
PER_ATOM_SUFFIX = "/atom"
_INLINE = re.compile(r"^(?P<name>\w+)=(?P<path>[^\[\]]+)(\[(?P<unit>[^\[\]]*)\])?$")
_AXES = {"x": 0, "y": 1, "z": 2}


class LabelRule(BaseModel):
    """Where one label is found, and how it is written there.

    Attributes:
        path: Keys into the record, joined by dots: ``outputs.energy``.
        unit: Unit in the file, in any notation that pint reads; ``eV/atom`` makes a known energy a total.
        sign: -1 for a stress that is positive under compression.
        order: Order of six stress components; ASE's order if absent.
        when: Other fields and the values that they may have for this rule to apply.
        optional: The label may be absent from the whole source.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str
    unit: str = ""
    sign: Literal[1, -1] = 1
    order: tuple[Component, ...] = ASE_VOIGT
    when: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    optional: bool = False

    @field_validator("order")
    @classmethod
    def _six_different(cls, order: tuple[Component, ...]) -> tuple[Component, ...]:
        if {"".join(sorted(component)) for component in order} != set(map("".join, map(sorted, ASE_VOIGT))):
            raise ValueError("order needs each of xx, yy, zz, yz, xz, xy once")
        if len(order) != len(ASE_VOIGT):
            raise ValueError("order needs six components")
        return order

    def applies(self, fields: Mapping[str, Any]) -> bool:
        """Whether the record's other fields are those that this rule is for."""
        return all(str(lookup(fields, key)) in values for key, values in self.when.items())


class LabelMapping(BaseModel):
    """All labels of a source. The first rule that applies to a record and finds a value is used.

    Attributes:
        labels: Name in the store to rules. `energy`, `forces` and `stress` are known to the network; any other name is
            a number per structure, kept in the unit given.
        columns: Other fields to carry along with every structure.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, tuple[LabelRule, ...]] = Field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Read a mapping that ships with equiscreen, by name, or a YAML file.

        Raises:
            LabelError: No such mapping, or a mistake in it.
        """
        shipped = resources.files(__package__) / "mappings" / f"{name_or_path}.yaml"
        if shipped.is_file():
            text = shipped.read_text()
        elif Path(name_or_path).is_file():
            text = Path(name_or_path).read_text(errors="replace")
        else:
            known = sorted(p.name.removesuffix(".yaml") for p in (resources.files(__package__) / "mappings").iterdir())
            raise LabelError(f"{name_or_path}: neither a YAML file nor a shipped mapping ({', '.join(known)})")
        try:
            return cls.model_validate(yaml.safe_load(text) or {})
        except (ValidationError, yaml.YAMLError) as error:
            raise LabelError(f"{name_or_path}: {error}".replace("\n", "; ")) from error

    def with_inline(self, inline: Iterable[str], columns: Iterable[str] = ()) -> Self:
        """Add labels written as ``NAME=KEY.PATH[unit]``, as the command line takes them.

        Raises:
            LabelError: Not of that form.
        """
        labels = dict(self.labels)
        for text in inline:
            match = _INLINE.match(text)
            if match is None:
                raise LabelError(f"label {text!r} is not of the form NAME=KEY.PATH[unit], such as energy=outputs.E[eV]")
            name, unit = match["name"], match["unit"]
            labels[name] = (LabelRule(path=match["path"], unit=KNOWN_UNITS.get(name, "") if unit is None else unit),)
        return self.model_copy(update={"labels": labels, "columns": (*self.columns, *columns)})

    def with_ase_defaults(self) -> Self:
        """Add what ASE's extended XYZ reader delivers, where nothing else is said."""
        return self.model_copy(update={"labels": {**ASE_DEFAULTS, **self.labels}})

    def without_ase_defaults(self) -> Self:
        """What was said, without those defaults: for files of other formats, where nothing is guessed."""
        labels = {name: rules for name, rules in self.labels.items() if rules != ASE_DEFAULTS.get(name)}
        return self.model_copy(update={"labels": labels})

    def unit_in_store(self, name: str) -> str:
        """Unit of a label in the store.

        Raises:
            LabelError: The rules of a label of another name than the known ones differ in unit.
        """
        if name in KNOWN_UNITS:
            return KNOWN_UNITS[name].replace("**", "^")
        units = {rule.unit for rule in self.labels[name]}
        if len(units) != 1:
            raise LabelError(f"label {name!r}: one unit for all its rules, please; found {sorted(units)}")
        return units.pop()

    def check_units(self) -> None:
        """Refuse units that do not fit, before any file is read.

        Raises:
            LabelError: An unknown unit, or one of another dimension.
        """
        for name, rules in self.labels.items():
            self.unit_in_store(name)
            for rule in rules:
                _factor(name, rule.unit)

    def extract(self, fields: Mapping[str, Any], n_atoms: int) -> dict[str, NDArray[np.float64]]:
        """Read all labels of one record; what is absent is left out.

        Args:
            fields: The record.
            n_atoms: Of its structure.

        Returns:
            Label to values in the store's unit: float64[] per structure, float64[n_atoms, 3] forces, float64[3, 3]
            stress.

        Raises:
            LabelError: A value that is there but is no number or has the wrong size.
        """
        found: dict[str, NDArray[np.float64]] = {}
        for name, rules in self.labels.items():
            for rule in rules:
                value = lookup(fields, rule.path) if rule.applies(fields) else None
                if value is not None and not (isinstance(value, str) and not value.strip()):
                    found[name] = _converted(name, rule, value, n_atoms)
                    break
        return found


# What ASE's extended XYZ reader delivers under these names is in ASE's units, order and sign.
ASE_DEFAULTS: dict[str, tuple[LabelRule, ...]] = {
    name: (LabelRule(path=name, unit=unit, optional=True),) for name, unit in KNOWN_UNITS.items()
}


def lookup(fields: Mapping[str, Any], path: str) -> Any:
    """The value at a dotted path, or None. A key that itself holds dots is tried first."""
    if path in fields:
        return fields[path]
    value: Any = fields
    for key in path.split("."):
        if isinstance(value, Mapping) and key in value:
            value = value[key]
        elif isinstance(value, Sequence) and not isinstance(value, str) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value


def key_paths(fields: Mapping[str, Any], prefix: str = "") -> list[str]:
    """All dotted paths that hold a value, for messages."""
    paths: list[str] = []
    for key, value in fields.items():
        inner = key_paths(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
        paths.extend(inner)
    return paths


def _converted(name: str, rule: LabelRule, value: Any, n_atoms: int) -> NDArray[np.float64]:
    try:
        numbers = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"label {name!r}: {rule.path} holds no numbers but {str(value)[:40]!r}") from error
    numbers = numbers * (rule.sign * _factor(name, rule.unit))
    if name == STRESS:
        return _stress_matrix(numbers, rule.order)
    shape = (n_atoms, 3) if name == FORCES else ()
    if numbers.size != math.prod(shape) or (numbers.ndim > 1 and numbers.shape != shape):
        raise LabelError(f"label {name!r}: {rule.path} has shape {numbers.shape}, not {shape}")
    if name == ENERGY and rule.unit.endswith(PER_ATOM_SUFFIX):
        numbers = numbers * n_atoms
    return numbers.reshape(shape)


def _stress_matrix(numbers: NDArray[np.float64], order: tuple[Component, ...]) -> NDArray[np.float64]:
    if numbers.size == 9:
        return numbers.reshape(3, 3)
    if numbers.size != len(order):
        raise LabelError(f"label 'stress' has shape {numbers.shape}; 6 or 3x3 numbers are wanted")
    matrix = np.zeros((3, 3))
    for component, number in zip(order, numbers.reshape(-1), strict=True):
        row, column = _AXES[component[0]], _AXES[component[1]]
        matrix[row, column] = matrix[column, row] = number
    return matrix


@lru_cache(maxsize=256)
def _factor(name: str, unit: str) -> float:
    """What a number in `unit` is multiplied by to be in the store's unit."""
    target = KNOWN_UNITS.get(name)
    if target is None:
        return 1.0
    import pint  # noqa: PLC0415 - 0.3 s, and only needed where labels are read

    given = unit.removesuffix(PER_ATOM_SUFFIX) if name == ENERGY else unit
    try:
        return float(pint.UnitRegistry().Quantity(1.0, given or target).to(target).magnitude)
    except Exception as error:  # pint raises many kinds, from its parser too
        raise LabelError(f"label {name!r}: unit {unit!r} does not convert to {target}") from error
