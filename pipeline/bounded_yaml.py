"""YAML with limits on size and depth and without aliases; otherwise a file of a few lines could exhaust the memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1 << 20
MAX_DEPTH = 20


class _Loader(yaml.SafeLoader):
    """A loader that refuses a key given twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Make the dictionary of a mapping.

        Raises:
            ValueError: A key is given twice.
        """
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in keys:
                    raise ValueError(f"line {key.start_mark.line + 1}: {key.value!r} is given twice")
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """Read a YAML file.

    Raises:
        OSError: The file cannot be read.
        ValueError: The file is too large, too deep, has aliases or a key twice, or is not YAML; the message says which,
            on one line.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"more than {MAX_BYTES >> 20} MB, too large for a settings file")
    return parse_yaml(content.decode(errors="replace"))


def parse_yaml(text: str) -> Any:
    """Parse YAML text; see `load_yaml`.

    Raises:
        ValueError: The text is too deep, has aliases or a key twice, or is not YAML.
    """
    depth = 0
    try:
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"contains an alias (*{event.anchor}); write the value out")  # noqa: TRY004
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
    except (yaml.YAMLError, RecursionError, OverflowError) as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())[:300]}") from error
