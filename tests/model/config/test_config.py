"""The configuration: the documentation lists every key with its true default, and mistakes are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from equiscreen.model import Config
from equiscreen.model.config.head import HeadConfig
from equiscreen.model.config.network import IMPORTED, PRESETS, RESERVED_HEADS, NetworkConfig
from equiscreen.model.config.training import (
    FINE_TUNING_DEFAULTS,
    REPLAY_DEFAULTS,
    FineTuneConfig,
    LossConfig,
    SplitConfig,
    TermConfig,
    TrainingConfig,
)
from equiscreen.pipeline.errors import ConfigError
from pydantic import BaseModel

from ...conftest import ROOT

PAGE = (ROOT / "docs" / "training.md").read_text()
# Headings of the page, with the sections of the configuration that their tables describe, in order.
HEADINGS: dict[str, list[type[BaseModel]]] = {
    "network": [NetworkConfig],
    "network.heads": [HeadConfig],
    "training": [TrainingConfig],
    "training.loss": [LossConfig, TermConfig],
    "training.split": [SplitConfig],
    "training.fine_tune": [FineTuneConfig],
}
PLACES = {model: heading for heading, models in HEADINGS.items() for model in models}
# Wording on the page for defaults that are None or come from elsewhere.
IN_WORDS = {"", "none", "all cores", "the store's", "the label's", "the head's name", "1 each"}
FOUND_ELSEWHERE = {"by preset and symmetry"}


def tables(heading: str) -> list[dict[str, str]]:
    """Return the tables under a heading, each mapping a key to the text of its default; a row may hold several keys."""
    match = re.search(rf"^##+ {re.escape(heading)}\n(.*?)(?=^##+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match, f"docs/training.md has no section {heading}"
    found = []
    for table in re.findall(r"(?:^\|.*\n)+", match[1], re.MULTILINE):
        rows: dict[str, str] = {}
        for line in table.splitlines()[2:]:
            cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
            keys = re.findall(r"`([^`]+)`", cells[0])
            values = cells[1].split(", ") if len(keys) > 1 else [cells[1]]
            rows.update(zip(keys, values, strict=True))
        found.append(rows)
    return found


def table_of(model: type[BaseModel]) -> dict[str, str]:
    return tables(PLACES[model])[HEADINGS[PLACES[model]].index(model)]


def sections(model: type[BaseModel] = Config) -> Iterator[type[BaseModel]]:
    """Yield a section and all sections below it, from the annotations of its fields."""
    yield model
    for field in model.model_fields.values():
        for part in annotated(field.annotation):
            yield from sections(part)


def annotated(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        # Read from files of weights, not written by people.
        return [] if annotation in IMPORTED.values() else [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in annotated(part)]


def keys(model: type[BaseModel] = Config, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of all keys; entries of dictionaries of sections are called ``x``."""
    for name, field in model.model_fields.items():
        yield (*place, name)
        for part in annotated(field.annotation):
            entry = ("x",) if "dict" in str(field.annotation) else ()
            yield from keys(part, (*place, name, *entry))


def same(text: str, value: Any) -> bool:
    """Whether a default stated on the page equals the real one."""
    if text in IN_WORDS:
        return value is None or value in ("", (), {})
    value = value.weight if isinstance(value, TermConfig) else value
    return bool(yaml.safe_load(text.strip("`")) == value)


def test_every_section_has_its_place_on_the_page() -> None:
    assert set(sections()) == {Config, *PLACES}


@pytest.mark.parametrize("model", list(PLACES), ids=lambda model: model.__name__)
def test_every_key_is_on_the_page_and_none_that_does_not_exist(model: type[BaseModel]) -> None:
    own = {name for name, field in model.model_fields.items() if f"{PLACES[model]}.{name}" not in HEADINGS}
    table = table_of(model)
    headings = {name for name in model.model_fields if f"{PLACES[model]}.{name}" in HEADINGS}
    assert own <= set(table) <= own | headings


@pytest.mark.parametrize("model", list(PLACES), ids=lambda model: model.__name__)
def test_every_default_on_the_page_is_the_real_one(model: type[BaseModel]) -> None:
    for key, text in table_of(model).items():
        if text in FOUND_ELSEWHERE:
            continue
        stated, _, others = text.partition(" (")
        assert same(stated, getattr(model(), key)), f"{PLACES[model]}.{key}: {stated} is not {getattr(model(), key)!r}"
        for preset, number in re.findall(r"(\w+): ([^,)]+)", others):
            assert same(number, getattr(NetworkConfig(preset=preset), key)), f"{key} of {preset}"
        named = {preset for preset, _ in re.findall(r"(\w+): ([^,)]+)", others)}
        if model is NetworkConfig and key != "preset":
            unnamed = {str(getattr(NetworkConfig(preset=preset), key)) for preset in PRESETS.keys() - named}
            assert len(unnamed) == 1, f"the page does not mention that {key} depends on the preset"


def test_the_page_lists_the_defaults_of_fine_tuning() -> None:
    stated = re.search(r"^\| key \| when training from scratch.*\n(?:\|.*\n)+", PAGE, re.MULTILINE)
    assert stated
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in stated[0].splitlines()[2:]]
    assert {key: yaml.safe_load(tuned) for key, _, tuned, _ in rows} == FINE_TUNING_DEFAULTS
    assert {key: yaml.safe_load(replay) for key, *_, replay in rows} == {**FINE_TUNING_DEFAULTS, **REPLAY_DEFAULTS}
    assert all(yaml.safe_load(scratch) == getattr(TrainingConfig(), key) for key, scratch, *_ in rows)


def test_defaults_of_features_follow_preset_and_symmetry() -> None:
    found = {(p, s): NetworkConfig(preset=p, symmetry=s).hidden_irreps for p in PRESETS for s in ("natural", "o3")}
    assert len(set(found.values())) == len(found)
    for (preset, _), irreps in found.items():
        assert irreps.startswith(f"{PRESETS[preset]['channels']}x0e")


def test_the_examples_of_the_page_are_configurations() -> None:
    examples = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) >= 2
    parsed = [Config.parse(yaml.safe_load(text), "docs/training.md") for text in examples]
    assert parsed[0].network.preset == "small"
    assert parsed[0].training.split.by == "composition"
    assert {head.tensor for config in parsed for head in config.network.heads.values()} >= {"symmetric", "elastic"}


@pytest.mark.parametrize("place", list(keys()), ids=".".join)
def test_a_key_with_a_slip_is_told_with_the_right_one(place: tuple[str, ...]) -> None:
    *parents, key = place
    content: dict[str, Any] = {f"{key}{key[-1]}": None}
    for name in reversed(parents):
        content = {name: content}
    expected = rf"{re.escape('.'.join(parents))}(: )?unknown key '{key}{key[-1]}'; did you mean '{key}'"
    with pytest.raises(ConfigError, match=expected):
        Config.parse(content, "c.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"network": {"hidden_irreps": "8x0e + 4x1e"}}, "1e"),
        ({"network": {"hidden_irreps": "8x0e + 4x0e"}}, "each irrep only once"),
        ({"network": {"heads": {"x": {"tensor": "pseudoscalar"}}}}, "0o"),
        ({"network": {"heads": {"x": {"tensor": "elastic"}}}}, "l_max"),
        ({"network": {"heads": {"x": {"tensor": "ij=-ij=ij=k"}}}}, r"heads\.x: .* is not a valid index formula"),
        ({"network": {"heads": {"x": {"irreps": "2x7z"}}}}, r"heads\.x: .* are not valid irreps"),
        ({"network": {"heads": {"x": {"tensor": "vector", "transform": "log"}}}}, "log"),
        ({"network": {"energy": False}}, "the network predicts nothing"),
        ({"network": {"symmetry": "so3", "heads": {"x": {"tensor": "pseudoscalar"}}}}, r"heads\.x: .*`symmetry: o3`"),
        ({"network": {"heads": {"x": {"tensor": "elastic", "shape": [3, 3]}}, "l_max": 4}}, r"heads\.x: .* shape"),
        ({"network": {"preset": "tiny"}}, r"network\.preset: .*'small'"),
        ({"training": {"split": {"by": "group"}}}, "`key`"),
        ({"training": {"split": {"key": "family"}}}, "`key`"),
        ({"training": {"split": {"validation": 0.6, "test": 0.4}}}, "no structures to train on"),
        ({"training": {"max_epochs": 0}}, r"training\.max_epochs"),
        ([1, 2], "c.yaml"),
        ("network", "c.yaml"),
    ],
)
def test_what_cannot_be_is_refused(content: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Config.parse(content, "c.yaml")


@pytest.mark.parametrize("name", [*sorted(RESERVED_HEADS), "gap_std", "2d", "a-b", ""])
def test_heads_do_not_take_the_names_of_other_things(name: str) -> None:
    with pytest.raises(ConfigError, match="a head cannot be named"):
        Config.parse({"network": {"heads": {name: {}}}}, "c.yaml")


def test_several_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError, match=r"c\.yaml: .*'cut_off'.*; .*'max_epoch'"):
        Config.parse({"training": {"max_epoch": 1}, "network": {"cut_off": 1}}, "c.yaml")


@pytest.mark.parametrize("text", ["", "# nothing\n", "network: {}\ntraining: {}\n"])
def test_an_empty_file_is_the_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    assert Config.load(tmp_path / "c.yaml") == Config()


def test_what_is_written_reads_back() -> None:
    content = {
        "network": {
            "preset": "large",
            "symmetry": "o3",
            "cutoff": 4.2,
            "heads": {"x": {"tensor": "symmetric", "shape": [6]}, "y": {"irreps": "0o + 1e", "per": "atom"}},
        },
        "training": {"fine_tune": {"checkpoint": "run", "freeze": ["radial"]}, "loss": {"heads": {"x": 2}}},
    }
    config = Config.parse(content, "test")
    again = Config.parse(yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json"))), "again")
    assert again == config
    assert again.starting_from("other").training.fine_tune.checkpoint == Path("other")
