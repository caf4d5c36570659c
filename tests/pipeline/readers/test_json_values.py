"""JSON in which an object gives a key twice is rejected with the name of the key, wherever it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from equiscreen.pipeline import featurize
from equiscreen.pipeline.bounded_yaml import parse_yaml
from equiscreen.pipeline.readers.json_values import RepeatedKeyError, parse_json
from equiscreen.pipeline.structures.random_crystals import probe_structures
from hypothesis import given
from hypothesis import strategies as st

from ...conftest import ELEMENTS, pymatgen_dict, write_json

SCALARS = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


@given(VALUES, st.booleans())
def test_json_is_read_as_python_reads_it(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode(errors="surrogatepass")) == value


@given(st.dictionaries(st.text(), VALUES, min_size=1), st.data())
def test_a_repeated_key_is_named(content: dict[str, Any], data: st.DataObject) -> None:
    key = data.draw(st.sampled_from(sorted(content)))
    members = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in content.items()]
    escaped = "".join(f"\\u{ord(c):04x}" if ord(c) < 1 << 16 else c for c in key)
    again = f'"{escaped}": 0' if data.draw(st.booleans()) else f"{json.dumps(key)}: 0"
    members.insert(data.draw(st.integers(0, len(members))), again)
    text = "{" + ", ".join(members) + "}"
    for level in data.draw(
        st.lists(st.sampled_from(['[1, %s, {"a": 2}]', '{"x": {"y": %s}, "a": 1}', "%s"]), max_size=3)
    ):
        text = level.replace("%s", text)
    with pytest.raises(RepeatedKeyError) as error:
        parse_json(text.encode(errors="surrogatepass"))
    assert repr(key[:80]) in str(error.value) or "http" in key  # of which secrets are hidden


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_a_record_with_a_repeated_key_is_a_failure(kind: str, tmp_path: Path) -> None:
    first, second = (
        json.dumps({"id": f"x{n}", "s": pymatgen_dict(s)}) for n, s in enumerate(probe_structures(ELEMENTS, 2, seed=4))
    )
    second = second.replace('"lattice":', '"lattice": {"matrix": [[9, 0, 0], [0, 9, 0], [0, 0, 9]]}, "lattice":')
    text = f"{first}\n{second}\n" if kind == "lines" else f"[{first}, {second}]"
    (tmp_path / "s.json").write_text(text)
    report = featurize(tmp_path / "s.json", tmp_path / "g.zarr", scheduler="threads")
    assert (report.read, report.stored, report.failed) == (2, 1, 1)
    assert report.reasons == {"the key 'lattice' is given twice": 1}


def test_repeated_keys_of_yaml_are_refused() -> None:
    assert parse_yaml("a: {b: 1, c: 2}\nd: [{b: 1}, {b: 2}]") == {"a": {"b": 1, "c": 2}, "d": [{"b": 1}, {"b": 2}]}
    for text in ("a: 1\na: 2", "a: {b: 1, 'b': 2}", "- {yes: 1, true: 2}"):
        with pytest.raises(ValueError, match="given twice"):
            parse_yaml(text)


def test_the_number_of_values_in_yaml_is_bounded() -> None:
    assert len(parse_yaml("[" + "1," * 9_000 + "1]")) == 9_001
    for text in ("[" + "1," * 300_000 + "1]", "".join(f"k{n}: {n}\n" for n in range(60_000)), "- a\n" * 200_000):
        with pytest.raises(ValueError, match=r"more than 20,000 keys, values and brackets"):
            parse_yaml(text)


def test_an_object_may_hold_many_keys(tmp_path: Path) -> None:
    content = {str(number): number for number in range(100_000)}
    assert parse_json(write_json(tmp_path / "a.json", content).read_bytes()) == content
