"""Reading of YAML with limits on its size and depth, and without aliases: with them, a few lines could exhaust memory.

Duplicate keys are rejected, because YAML parsers silently keep only the last value of a key.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 20
MAX_VALUES = 20_000  # parsing this many takes about a second
_MERGE = "tag:yaml.org,2002:merge"


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader that rejects duplicate keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make a dictionary from a node.

        Raises:
            ValueError: A key is given twice.
        """
        seen = set()
        for key_node, _ in node.value:
            key = key_node.value if key_node.tag == _MERGE else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # rejected by the base class
            if key in seen:
                raise ValueError(f"the key {key!r} is given twice (line {key_node.start_mark.line + 1}); keep only one")
            seen.add(key)
        found: dict[Any, Any] = super().construct_mapping(node, deep)
        return found


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is too large or too deeply nested, has aliases, duplicate keys or too many values, or is
            not YAML; the message gives the reason on one line.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES >> 20} MiB, too large for a settings file")
    return parse_yaml(content.decode(errors="replace"))


def parse_yaml(text: str) -> Any:
    """Parse YAML text; see `load_yaml`.

    Raises:
        ValueError: The text is too deeply nested, has aliases, duplicate keys or too many values, or is not YAML.
    """
    depth = 0
    try:
        for count, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            if count > MAX_VALUES:
                raise ValueError(
                    f"the file has more than {MAX_VALUES:,} keys, values and brackets, too many for a settings file"
                )
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"the file contains an alias (*{event.anchor}); write the value out")  # noqa: TRY004
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(
                    f"the values are nested more than {MAX_DEPTH} levels deep, too deep for a settings file"
                )
        return yaml.load(text, Loader=_UniqueKeys)  # noqa: S506 - a safe loader
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:300]}") from error
