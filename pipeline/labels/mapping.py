"""Label mappings: where a record holds a quantity, and the unit, order and sign of its values."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterable, Mapping
from functools import cache, cached_property, lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ..bounded_yaml import load_yaml, parse_yaml
from ..errors import LabelError
from ..field_path import lookup
from ..structures.structure import Structure
from ..structures.symmetry import point_group, symmetry_violation
from ..suggestions import unknown_name
from .quantities import ASE_VOIGT, AXES, ENERGY, FORCES, KNOWN_QUANTITIES, PER_ATOM_SUFFIX, STRESS, Component, Quantity
from .stated_units import stated_units, unit_of

# Stresses weaker than this (eV/angstrom^3; 0.8 GPa) are mostly noise, and noise has no symmetry.
WEAK_STRESS = 5e-3
# A tensor with a larger symmetry violation belongs to a different crystal, or is given in a different frame from its
# crystal. Of 1,056 published dielectric tensors, 0.1 % exceed this value in the frame in which they were computed, and
# 11 % in a different frame.
SYMMETRY_TOLERANCE = 0.05
_INLINE = re.compile(r"^(?P<name>\w+)(:(?P<shape>(atom|\d+)(x\d+)*))?=(?P<path>[^\[\]]+)(\[(?P<unit>[^\[\]]*)\])?$")
_AXES = {"x": 0, "y": 1, "z": 2}
# Two fields whose values differ by less than this (as a fraction, or in the store's unit) hold the same label: files
# give stresses and volumes to only a few digits.
_PRINTED = 1e-4


class LabelRule(BaseModel):
    """Path of one label in a record, and the unit, sign and order used there.

    Example:
        >>> from equiscreen.pipeline import LabelRule
        >>> LabelRule(path="outputs.stress", unit="kbar", sign=-1).path
        'outputs.stress'

    Attributes:
        path: Keys into the record, joined by dots: ``outputs.energy``.
        unit: Unit in the file, in any notation that pint reads; empty for the store's unit. ``eV/atom`` converts
            `energy` to a total energy. A `stress` in units of energy is a virial, -volume * stress, as GPUMD, QUIP and
            NequIP write it.
        sign: 1, or -1 for a stress that is positive under compression.
        order: Order of the six components of a stress, or of an axis in Voigt notation; by default ASE's: xx, yy, zz,
            yz, xz, xy.
        when: Conditions on other fields: for each field, the values for which this rule applies, as text.
        optional: Whether the label may be absent from the whole source.
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
            raise ValueError("order must contain each of xx, yy, zz, yz, xz, xy once")
        if len(order) != len(ASE_VOIGT):
            raise ValueError("order must have six components")
        return order

    def applies(self, fields: Mapping[str, Any]) -> bool:
        """Whether the record satisfies the conditions of `when`."""
        return all(str(lookup(fields, key)) in values for key, values in self.when.items())


class LabelMapping(BaseModel):
    """All labels of a source. For each label, the first rule that applies to a record and finds a value is used.

    Example:
        >>> from equiscreen.pipeline import LabelMapping, LabelRule
        >>> mapping = LabelMapping(labels={"energy": (LabelRule(path="outputs.energy", unit="kcal/mol"),)})
        >>> mapping.with_inline(["gap=band_gap[eV]"]).labels["gap"][0].path
        'band_gap'

    Attributes:
        labels: Rules by name of the label in the store.
        quantities: Shape and unit of labels. `energy`, `forces` and `stress` are predefined; any other label is one
            number per structure unless defined here.
        columns: Other fields to keep for every structure, as text.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    labels: dict[str, tuple[LabelRule, ...]] = Field(default_factory=dict)
    quantities: dict[str, Quantity] = Field(default_factory=dict)
    columns: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _known_stay_known(self) -> Self:
        for name in self.quantities:
            if name in KNOWN_QUANTITIES:
                raise ValueError(f"{name!r} is predefined and cannot be redefined; choose another name")
            if name not in self.labels:
                raise ValueError(f"quantity {name!r} has no label of the same name; add one to `labels`")
        return self

    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Load a mapping from a YAML file, or by its name if it is shipped with equiscreen.

        Raises:
            LabelError: The mapping does not exist or is invalid.
        """
        shipped = resources.files(__package__) / "mappings" / f"{name_or_path}.yaml"
        if not shipped.is_file() and not Path(name_or_path).is_file():
            known = sorted(p.name.removesuffix(".yaml") for p in (resources.files(__package__) / "mappings").iterdir())
            raise LabelError(
                f"{name_or_path} is neither a file nor a shipped mapping; choose a YAML file, or the name of a shipped "
                f"mapping ({', '.join(known)})"
            )
        try:
            content = parse_yaml(shipped.read_text()) if shipped.is_file() else load_yaml(Path(name_or_path))
            return cls.model_validate(content or {})
        except ValidationError as error:
            raise LabelError(f"{name_or_path}: {_problems(error)}") from error
        except (OSError, ValueError) as error:
            raise LabelError(f"{name_or_path}: {' '.join(str(error).split())[:1000]}") from error

    def save(self, path: str | Path) -> None:
        """Write the mapping to a YAML file, which `load` can read.

        Raises:
            OSError: The file cannot be written.
        """
        content = self.model_dump(mode="json", exclude_defaults=True)
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def with_inline(self, inline: Iterable[str], columns: Iterable[str] = ()) -> Self:
        """Add labels written as ``NAME=KEY.PATH[unit]``, the syntax of the command line.

        A shape may follow the name: ``dielectric:3x3=e_total``, ``charge:atom=charges[e]``,
        ``born:atomx3x3=born_charges[e]``.

        Args:
            inline: Labels in this syntax.
            columns: Further fields to keep for every structure, as text.

        Raises:
            LabelError: A label does not have that form, or gives a shape for a predefined quantity.
        """
        labels = dict(self.labels)
        quantities: dict[str, Any] = dict(self.quantities)
        for text in inline:
            match = _INLINE.match(text)
            if match is None:
                raise LabelError(
                    f"label {text!r} must have the form NAME[:SHAPE]=KEY.PATH[unit], such as energy=outputs.E[eV] or "
                    "dielectric:3x3=e_total"
                )
            name, unit = match["name"], match["unit"]
            if match["shape"]:
                first, *rest = match["shape"].split("x")
                per, sizes = ("atom", rest) if first == "atom" else ("structure", [first, *rest])
                quantities[name] = {"per": per, "shape": sizes}
            known = KNOWN_QUANTITIES.get(name, Quantity()).unit or ""
            labels[name] = (LabelRule(path=match["path"], unit=known if unit is None else unit),)
        content = {"labels": labels, "quantities": quantities, "columns": (*self.columns, *columns)}
        try:
            return type(self).model_validate(content)
        except ValidationError as error:
            raise LabelError(_problems(error)) from error

    def with_ase_defaults(self) -> Self:
        """Add the labels that ASE's readers return, unless they are already defined."""
        return self._with_labels({**ASE_DEFAULTS, **self.labels})

    def without_ase_defaults(self) -> Self:
        """Remove the defaults of `with_ase_defaults`, which apply only to formats that ASE reads."""
        labels = {name: rules for name, rules in self.labels.items() if rules != ASE_DEFAULTS.get(name)}
        return self._with_labels(labels)

    def only(self, names: Collection[str]) -> Self:
        """Keep only the labels with these names."""
        return self._with_labels({name: rules for name, rules in self.labels.items() if name in names})

    def _with_labels(self, labels: dict[str, tuple[LabelRule, ...]]) -> Self:
        quantities = {name: quantity for name, quantity in self.quantities.items() if name in labels}
        return type(self)(labels=labels, quantities=quantities, columns=self.columns)

    def quantity(self, name: str) -> Quantity:
        """Return the quantity of a label, with its unit in the store."""
        return self._all_quantities[name]

    @cached_property
    def _all_quantities(self) -> dict[str, Quantity]:
        known = {**self.quantities, **KNOWN_QUANTITIES}
        found = {name: known.get(name, Quantity()) for name in self.labels}
        return {
            name: quantity if quantity.unit is not None else quantity.model_copy(update={"unit": rules[0].unit})
            for (name, quantity), rules in zip(found.items(), self.labels.values(), strict=True)
        }

    def check_units(self) -> None:
        """Check all units before any file is read.

        Raises:
            LabelError: A unit is unknown or cannot be converted to the store's unit, or a tensor has a rank above 4.
        """
        for name, rules in self.labels.items():
            if self.quantity(name).turns:
                symmetry_violation(
                    np.zeros(self.quantity(name).shape), np.eye(3)[None]
                )  # raises if the rank is too high
            for rule in rules:
                _factor(name, rule.unit, self.quantity(name).unit or "")

    def breaks_symmetry(self, structure: Structure, labels: Mapping[str, NDArray[np.float64]]) -> bool:
        """Whether the symmetry of a crystal forbids the values of one of its tensor labels."""
        tensors = [name for name in labels if self.quantity(name).turns]
        if not tensors:
            return False
        rotations = point_group(structure)
        if len(rotations) == 1:
            return False
        for name in tensors:
            tensor = labels[name]
            axes = tuple(AXES[size] for size in self.quantity(name).shape)
            violation = symmetry_violation(tensor, rotations, axes)
            size = float(np.linalg.norm(tensor))
            weak = WEAK_STRESS if name == STRESS else 0.0
            if violation * size > SYMMETRY_TOLERANCE * max(size, weak):
                return True
        return False

    def unread(
        self, fields: Mapping[str, Any], n_atoms: int, found: Mapping[str, NDArray[np.float64]], volume: float
    ) -> dict[str, str]:
        """List the fields that look like labels but are not used, each with the name of the label that it resembles.

        A field is listed if no rule reads it, or if its value contradicts the label that was read from another field.

        Args:
            fields: Fields of the record.
            n_atoms: Number of atoms of the structure.
            found: The labels that were read.
            volume: Volume of the cell, by which virials are divided (angstrom^3).
        """
        sizes = {ENERGY: {1}, FORCES: {3 * n_atoms}, STRESS: {6, 9}}
        read = {rule.path for rules in self.labels.values() for rule in rules}
        unknown = {
            key: label
            for label, like in _LOOKS_LIKE.items()
            if label not in found
            for key, value in fields.items()
            if key not in read and like.fullmatch(str(key)) and np.size(value) in sizes[label]
        }
        return unknown | {
            rule.path: name
            for name, rules in self.labels.items()
            if name in found and len(rules) > 1
            for rule in rules
            if rule.path in fields and np.size(fields[rule.path]) in sizes[name]
            if not self._agrees(name, rule, fields, n_atoms, found[name], volume)
        }

    def _agrees(
        self,
        name: str,
        rule: LabelRule,
        fields: Mapping[str, Any],
        n_atoms: int,
        label: NDArray[np.float64],
        volume: float,
    ) -> bool:
        """Whether the value of a field equals, to the printed digits, a label that was read from another field."""
        try:
            value = self._value(name, rule, fields, n_atoms, volume, stated_units(fields))
        except LabelError:
            return False
        if name == STRESS and value is not None:
            value = (value + value.T) / 2  # symmetric, as in the store
        return value is None or bool(np.allclose(value, label, rtol=_PRINTED, atol=_PRINTED))

    def extract(
        self, fields: Mapping[str, Any], n_atoms: int, volume: float = math.nan
    ) -> dict[str, NDArray[np.float64]]:
        """Read all labels of one record, except labels that are absent or entirely NaN.

        Labels that ASE's readers return have ASE's units, unless the record states other units:
        ``energy_unit=Hartree``.

        Args:
            fields: Fields of the record.
            n_atoms: Number of atoms of the structure.
            volume: Volume of the cell, by which virials are divided (angstrom^3).

        Returns:
            Values by label, in the store's unit and order: float64[*shape] for labels of the structure and
            float64[n_atoms, *shape] for labels of its atoms.

        Raises:
            LabelError: A value is present but is not numeric, is infinite or has the wrong shape, or the record states
                a unit that is unknown or differs from the unit in the mapping.
        """
        found: dict[str, NDArray[np.float64]] = {}
        stated = stated_units(fields)
        for name, rules in self.labels.items():
            for rule in rules:
                numbers = self._value(name, rule, fields, n_atoms, volume, stated)
                if numbers is not None:
                    if not np.isnan(numbers).all():
                        found[name] = numbers
                    break
        return found

    def _value(
        self,
        name: str,
        rule: LabelRule,
        fields: Mapping[str, Any],
        n_atoms: int,
        volume: float,
        stated: Mapping[str, str],
    ) -> NDArray[np.float64] | None:
        """Return the value that a rule finds, in the store's unit; None if the rule does not apply or finds none."""
        value = lookup(fields, rule.path) if rule.applies(fields) else None
        if value is None or (isinstance(value, str) and not value.strip()):
            return None
        unit = unit_of(rule.path, stated) if name in KNOWN_QUANTITIES else None
        if unit is not None:
            rule = self._in_stated_unit(name, rule, unit)
        numbers = _converted(name, self.quantity(name), rule, value, n_atoms)
        return -numbers / volume if is_virial(name, rule.unit) else numbers

    def _in_stated_unit(self, name: str, rule: LabelRule, unit: str) -> LabelRule:
        """Return the rule with the unit that a record states, or unchanged if the user gave the rule and its unit.

        Raises:
            LabelError: The unit is unknown, or differs from the unit that the user gave.
        """
        wanted = self.quantity(name).unit or ""
        stated = rule.model_copy(update={"unit": unit})
        scale = _factor(name, unit, wanted), unit.endswith(PER_ATOM_SUFFIX), is_virial(name, unit)
        if rule in ASE_DEFAULTS[name]:
            return stated
        if scale != (_factor(name, rule.unit, wanted), rule.unit.endswith(PER_ATOM_SUFFIX), is_virial(name, rule.unit)):
            raise LabelError(
                f"label {name!r}: {rule.path} is in {unit} in the record, but in {rule.unit} in the mapping; correct "
                "the one that is wrong"
            )
        return rule


# Names of labels in files that ASE reads, in ASE's units, order and sign. They come from ASE, from GPUMD and QUIP
# (force, virial) and from MACE (REF_...); the first one that a record contains is used.
_ASE_NAMES = {
    ENERGY: {"energy": "eV", "REF_energy": "eV"},
    FORCES: dict.fromkeys(("forces", "force", "REF_forces"), "eV/angstrom"),
    STRESS: {"stress": "eV/angstrom**3", "virial": "eV", "virials": "eV", "REF_stress": "eV/angstrom**3"}
    | dict.fromkeys(("REF_virial", "REF_virials"), "eV"),
}
ASE_DEFAULTS: dict[str, tuple[LabelRule, ...]] = {
    name: tuple(LabelRule(path=path, unit=unit, optional=True) for path, unit in _ASE_NAMES[name].items())
    for name in KNOWN_QUANTITIES
}
_LOOKS_LIKE = {
    ENERGY: re.compile(r"(?i)(\w+_)?energy(_\w+)?"),
    FORCES: re.compile(r"(?i)(\w+_)?forces?(_\w+)?"),
    STRESS: re.compile(r"(?i)(\w+_)?(stress(es)?|virials?)(_\w+)?"),
}


@cache
def _units() -> Any:
    """Make pint's registry of units; pint takes 0.3 s to import, and only units other than the store's need it."""
    import pint  # noqa: PLC0415 - see above

    return pint.UnitRegistry()


@lru_cache(maxsize=256)
def is_virial(name: str, unit: str) -> bool:
    """Whether a label is given as a virial: a stress in units of energy."""
    if name != STRESS or not unit or unit == KNOWN_QUANTITIES[STRESS].unit:
        return False
    if unit == KNOWN_QUANTITIES[ENERGY].unit:
        return True
    try:
        return bool(_units().Quantity(1.0, unit).check("[energy]"))
    except Exception:  # noqa: BLE001 - an unknown unit, which `_factor` reports
        return False


def _problems(error: ValidationError) -> str:
    """Describe the mistakes in a mapping in one line."""
    found = []
    for problem in error.errors():
        place, text = ".".join(map(str, problem["loc"])), problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            *parents, name = problem["loc"]
            nested: dict[str, type[BaseModel]] = {"labels": LabelRule, "quantities": Quantity}
            known = nested[str(parents[0])] if parents else LabelMapping
            place, text = ".".join(map(str, parents)), unknown_name("key", str(name), known.model_fields)
        found.append(f"{place}: {text}" if place else text)
    return "; ".join(found)[:1000]


def _converted(name: str, quantity: Quantity, rule: LabelRule, value: Any, n_atoms: int) -> NDArray[np.float64]:
    try:
        # CSV tables hold tensors as JSON.
        numbers = np.array(json.loads(value) if isinstance(value, str) else value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise LabelError(f"label {name!r}: {rule.path} is not numeric ({str(value)[:40]!r}); check the path") from error
    if np.isinf(numbers).any():
        raise LabelError(f"label {name!r}: {rule.path} has an infinite value")
    numbers = numbers * (rule.sign * _factor(name, rule.unit, quantity.unit or ""))
    shape = (n_atoms, *quantity.shape) if quantity.per == "atom" else quantity.shape
    if quantity.shape == (3, 3) and quantity.per == "structure" and numbers.size == 6:
        return _symmetric_matrix(numbers.reshape(6), rule.order)
    # A flat list of all components is accepted, as well as a nested one.
    if numbers.size != math.prod(shape) or (numbers.ndim > 1 and numbers.shape != shape):
        raise LabelError(
            f"label {name!r}: {rule.path} has shape {numbers.shape} instead of {shape}; check the path, and the shape "
            "that the mapping states"
        )
    if name == ENERGY and rule.unit.endswith(PER_ATOM_SUFFIX):
        numbers = numbers * n_atoms
    numbers = numbers.reshape(shape)
    if quantity.tensor:
        for axis in (axis for axis, size in enumerate(quantity.shape, len(shape) - len(quantity.shape)) if size == 6):
            numbers = np.take(numbers, _ase_places(rule.order), axis=axis)
    return numbers


def _ase_places(order: tuple[Component, ...]) -> list[int]:
    """Return the index of each of ASE's Voigt components in the given order."""
    names = ["".join(sorted(component)) for component in order]
    return [names.index("".join(sorted(component))) for component in ASE_VOIGT]


def _symmetric_matrix(numbers: NDArray[np.float64], order: tuple[Component, ...]) -> NDArray[np.float64]:
    matrix = np.zeros((3, 3))
    for component, number in zip(order, numbers, strict=True):
        row, column = _AXES[component[0]], _AXES[component[1]]
        matrix[row, column] = matrix[column, row] = number
    return matrix


@lru_cache(maxsize=256)
def _factor(name: str, unit: str, target: str) -> float:
    """Return the factor that converts a number from `unit` to the store's unit `target`."""
    given = unit.removesuffix(PER_ATOM_SUFFIX) if name == ENERGY else unit
    if is_virial(name, unit):
        target = KNOWN_QUANTITIES[ENERGY].unit or ""
    if given in ("", target):
        return 1.0
    try:
        quantity = _units().Quantity
        zero, one = (float(quantity(value, given).to(target).magnitude) for value in (0.0, 1.0))
    except Exception as error:  # pint raises many kinds of errors, some from its parser
        raise LabelError(
            f"label {name!r}: cannot convert unit {unit!r} to {target or 'a dimensionless number'}; check the spelling "
            "of the unit, and that it measures the same quantity"
        ) from error
    if zero != 0.0:
        raise LabelError(
            f"label {name!r}: {unit!r} and {target!r} have different zero points; convert the values first"
        )
    return one
