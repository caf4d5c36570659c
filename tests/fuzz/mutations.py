"""Random damage to files: what a bad disk, a broken download, a careless script or an attacker does to them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

# Values that readers meet in real files and that few of them expect.
HOSTILE = (
    *("", "?", ".", "-", "nan", "NaN", "inf", "-inf", "1e400", "-1e308", "1e-320", "0", "-1", "0.0", "1,5", "1.2(3)"),
    *("true", "null", "None", "{}", "[]", "[[", '"', "'", ";", "#", "\x00", "\x1b[31m", "\ufeff", "é", "Xx", "X", "D"),
    *("Na1+", "Fe0.5Ni0.5", "65536", "2147483648", "9223372036854775808", "9" * 400, "../../up", "%s", "${HOME}", "\\"),
)
SEPARATORS = b" \t\n,:;()[]{}\"'=|"


class Mutator:
    """Source of random damage.

    Args:
        rng: Random numbers; the same ones give the same damage.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def below(self, stop: int) -> int:
        """A random integer from 0 up to `stop`."""
        return int(self.rng.integers(max(stop, 1)))

    def binary(self, content: bytes) -> tuple[bytes, str]:
        """Damage the bytes of a file; also says how."""
        at, length = self.below(len(content)), 1 + self.below(64)
        kind = ("bit", "byte", "cut", "delete", "repeat", "zeros", "insert")[self.below(7)]
        piece = content[at : at + length]
        damaged = {
            "bit": lambda: _replaced(content, at, bytes([piece[0] ^ 1 << self.below(8)]) if piece else b""),
            "byte": lambda: _replaced(content, at, self.rng.bytes(1)),
            "cut": lambda: content[:at],
            "delete": lambda: content[:at] + content[at + length :],
            "repeat": lambda: content[:at] + piece + content[at:],
            "zeros": lambda: _replaced(content, at, bytes(len(piece))),
            "insert": lambda: content[:at] + self.rng.bytes(length) + content[at:],
        }[kind]()
        return damaged, f"{kind} at byte {at}"

    def text(self, content: bytes) -> tuple[bytes, str]:
        """Damage words or lines of a text file; also says how. A tenth of the damage is to single bytes."""
        kind = ("word", "word", "word", "word", "swap", "drop", "double", "move", "header", "bytes")[self.below(10)]
        if kind == "bytes":
            return self.binary(content)
        if kind in {"word", "swap"}:
            spans = _words(content)
            if not spans:
                return self.binary(content)
            start, stop = spans[self.below(len(spans))]
            other_start, other_stop = spans[self.below(len(spans))]
            hostile = HOSTILE[self.below(len(HOSTILE))].encode()
            new = hostile if kind == "word" else content[other_start:other_stop]
            return content[:start] + new + content[stop:], f"{content[start:stop][:40]!r} -> {new[:40]!r}"
        lines = content.splitlines(keepends=True)
        at = self.below(min(len(lines), 12) if kind == "header" else len(lines))
        line = lines[at : at + 1]
        if kind == "move":
            rest = lines[:at] + lines[at + 1 :]
            to = self.below(len(rest) + 1)
            lines = rest[:to] + line + rest[to:]
        else:
            lines = lines[:at] + (line * 2 if kind == "double" else []) + lines[at + 1 :]
        return b"".join(lines), f"{kind} line {at}"

    def folder(self, folder: Path, *, swap: bool = False) -> str:
        """Damage or remove one file of a folder; also says how. With `swap`, it may get the content of another one."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        path = files[self.below(len(files))]
        name = path.relative_to(folder)
        kinds = ("content", "content", "content", "content", "delete", "empty", "directory", "other")
        kind = kinds[self.below(8 if swap else 7)]
        if kind == "content":
            content, how = (self.text if path.suffix == ".json" else self.binary)(path.read_bytes())
            path.write_bytes(content)
            return f"{name}: {how}"
        if kind == "delete":
            path.unlink()
        elif kind == "empty":
            path.write_bytes(b"")
        elif kind == "other":
            other = files[self.below(len(files))]
            if other != path:
                shutil.copyfile(other, path)
            kind = f"content of {other.relative_to(folder)}"
        else:
            path.unlink()
            path.mkdir()
        return f"{name}: {kind}"


def _replaced(content: bytes, at: int, piece: bytes) -> bytes:
    return content[:at] + piece + content[at + len(piece) :]


def _words(content: bytes) -> list[tuple[int, int]]:
    """Start and end of every run of bytes between separators."""
    spans, start = [], 0
    for at, byte in enumerate(content):
        if byte in SEPARATORS:
            if at > start:
                spans.append((start, at))
            start = at + 1
    return [*spans, (start, len(content))] if start < len(content) else spans
