"""Columns of a scores dataset as variables of a filter."""

from __future__ import annotations

from ...pipeline.errors import ConfigError
from ...pipeline.store.schema import TEXT, ArraySpec
from ...pipeline.suggestions import unknown_name
from ..dataset.reader import ScoresReader, flag_meanings
from .filter_terms import Kind, Variable


def variable_of(spec: ArraySpec) -> Variable:
    """Return an array as a variable of a filter."""
    if len(spec.dims) > 1:
        shape = " x ".join(map(str, spec.inner))
        return Variable(
            Kind.NUMBER, refusal=f"this column holds {shape} numbers per structure, but a single number is needed"
        )
    meanings = flag_meanings(spec.attrs)
    if meanings:
        return Variable(Kind.FLAG, meanings)
    if spec.dtype == TEXT:
        return Variable(Kind.TEXT)
    return Variable(Kind.TRUTH if spec.dtype == "bool" else Kind.NUMBER)


def variables_of(scores: ScoresReader) -> dict[str, Variable]:
    """Return the arrays of a dataset as variables, by name."""
    return {name: variable_of(spec) for name, spec in scores.specs.items()}


def numeric_column(scores: ScoresReader, name: str) -> ArraySpec:
    """Return the spec of the column `name`, which holds one number per structure.

    Raises:
        ConfigError: There is no such column, or it holds something else.
    """
    spec = scores.specs.get(name)
    if spec is None:
        raise ConfigError(f"{scores.path}: {unknown_name('column', name, scores.specs)}")
    variable = variable_of(spec)
    if variable.refusal or variable.kind != Kind.NUMBER:
        problem = variable.refusal or f"expected a numeric column, not {variable.kind}"
        raise ConfigError(f"{scores.path}: {name}: {problem}")
    return spec
