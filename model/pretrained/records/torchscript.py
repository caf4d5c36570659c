"""TorchScript archives, which `torch.jit.save` writes, such as MACE's files for LAMMPS and NequIP's deployed models.

A TorchScript archive is a ZIP file of `data.pkl` (a module with its parameters, buffers and attributes, among them the
irreps of e3nn as tuples), `code/` (the text of its classes) and `extra/` (texts that the exporting code added). The
code is never run: its text is only searched for the constants of the classes, and for the functions of e3nn's
activations.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ....pipeline.errors import CheckpointError
from .archive import MAX_TEXT_BYTES, Archive
from .reader import RefusedError
from .record import Record
from .saved_module import read_module

ROOT = "__torch__."
# The classes of a MACE network of two layers have 0.2 MB of text.
MAX_CODE_BYTES = 64 << 20
# The class in which e3nn wraps an activation. Only the text of the class names the activation; a shifted softplus is
# inlined, so the text names softplus.
ACTIVATION = "normalize2mom"
_FUNCTION = re.compile(r"\.(silu|tanh|abs|softplus|ShiftedSoftPlus|relu|sigmoid|elu|gelu|mish)_?\b")
_CONTAINER = "torch.jit._pickle."
_MANGLED = re.compile(r"___torch_mangle_\d+\.")
_CLASS = re.compile(r"^class (\w+)\(", re.MULTILINE)
_CONSTANT = re.compile(r"^  (\w+) : Final\[[^=\n]{1,200}\] = (.{1,500})$", re.MULTILINE)


@dataclass(frozen=True)
class ScriptArchive:
    """Content of a TorchScript archive.

    Attributes:
        module: The module; submodules, tensors and attributes are found as in a pickled module.
        extra: Texts that the exporting code added, by name.
    """

    module: Record
    extra: Mapping[str, str]

    def kinds(self) -> set[str]:
        """Return the dotted names of the classes of all modules, as in the code that made the archive."""
        return {original_name(module.kind) for module in _modules(self.module)}


def original_name(kind: str) -> str:
    """Return the name of a class in the code that made the archive, such as ``mace.modules.models.MACE``."""
    return _MANGLED.sub("", kind).removeprefix(ROOT)


def read_script(path: str | Path) -> ScriptArchive:
    """Read a TorchScript archive.

    Raises:
        CheckpointError: The file is damaged, too large, or names something that no module needs.
    """
    module = read_module(path, ())
    try:
        archive = Archive(Path(path))
        files = _texts(archive, "code", ".py", MAX_CODE_BYTES)
        extra = _texts(archive, "extra", "", MAX_TEXT_BYTES)
    except RefusedError as error:
        raise CheckpointError(f"{path}: {error}") from error
    code = {}
    for name, text in files.items():
        starts = [*_CLASS.finditer(text)]
        ends = [*(match.start() for match in starts[1:]), len(text)]
        for match, end in zip(starts, ends, strict=False):
            code[f"{name.replace('/', '.')}.{match[1]}"] = text[match.start() : end]
    for part in [*_modules(module)]:
        _regroup(part, code.get(part.kind, ""))
    return ScriptArchive(module, extra)


def _texts(archive: Archive, folder: str, suffix: str, limit: int) -> dict[str, str]:
    """Return the texts in a folder of the archive, by their path in this folder without the suffix."""
    begin, out = f"{archive.root}/{folder}/", {}
    for name in archive.names:
        if name.startswith(begin) and name.endswith(suffix):
            data = archive.read(name.removeprefix(f"{archive.root}/"), limit)
            limit -= len(data)
            out[name.removeprefix(begin).removesuffix(suffix)] = data.decode(errors="replace")
    return out


def _modules(module: Record) -> Iterator[Record]:
    """Yield a module and all its submodules, each once."""
    waiting, seen = [module], set()
    while waiting:
        one = waiting.pop()
        if id(one) not in seen:
            seen.add(id(one))
            children = one.fields.get("_modules") or one.fields
            waiting += [x for x in children.values() if isinstance(x, Record) and x.kind.startswith(ROOT)]
            yield one


def _regroup(module: Record, text: str) -> None:
    """Group attributes as in a pickled module, and add constants and activations that only the class's text holds."""
    groups: dict[str, Any] = {"_modules": {}, "_parameters": {}, "_buffers": {}}
    for name, value in module.fields.items():
        plain = _plain(value)
        if isinstance(plain, Record) and plain.kind.startswith(ROOT):
            groups["_modules"][name] = plain
        elif isinstance(plain, Tensor):
            groups["_buffers"][name] = plain
        else:
            groups[name] = plain
    if module.name == ACTIVATION:
        called = _FUNCTION.search(text)
        name = called[1].replace("softplus", "ShiftedSoftPlus") if called else "unknown"
        groups["f"] = type(name, (Record,), {"kind": f"torch.{name}"})()
    for match in _CONSTANT.finditer(text):
        try:
            groups.setdefault(match[1], ast.literal_eval(match[2]))
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue  # not a plain value
    module.fields = groups


def _plain(value: Any) -> Any:
    """Unwrap a list or dictionary, which TorchScript pickles together with its type."""
    while isinstance(value, Record) and value.kind.startswith(_CONTAINER) and value.args:
        value = value.args[0]
    return value
