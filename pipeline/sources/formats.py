"""File formats, and their detection from the first bytes of a file rather than from its name."""

from __future__ import annotations

import re
from enum import StrEnum

HEAD_BYTES = 1 << 16


class Format(StrEnum):
    """Supported file formats."""

    CIF = "cif"
    POSCAR = "poscar"
    VASPRUN = "vasprun"
    OUTCAR = "outcar"
    EXTXYZ = "extxyz"
    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"
    ASE_DB = "ase-db"
    ZIP = "zip"
    TAR = "tar"


# Formats that need random access rather than a stream.
RANDOM_ACCESS = frozenset({Format.PARQUET, Format.ASE_DB, Format.ZIP})
ARCHIVES = frozenset({Format.ZIP, Format.TAR})
# Formats whose records are split from a stream.
TEXTS = frozenset(Format) - RANDOM_ACCESS - ARCHIVES
# Names of structure files in a folder or archive; other files are ignored.
_STRUCTURE_NAME = re.compile(
    r"\.(cif|mcif|vasp|poscar|xyz|extxyz|csv|tsv|json|jsonl|ndjson|parquet|db|aselmdb|lmdb|zip|tar|tgz|tbz|txz)"
    r"(\.(gz|bz2|xz|zst))?$|(^|/)(POSCAR|CONTCAR|XDATCAR)[^/]*$",
    re.IGNORECASE,
)
_ZIP_MAGIC, _TAR_MAGIC, _TAR_MAGIC_AT = (b"PK\x03\x04", b"PK\x05\x06"), b"ustar", 257
_LMDB_MAGIC, _LMDB_MAGIC_AT = b"\xde\xc0\xef\xbe", 16
_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_POSCAR = re.compile(rf"[^\n]*\n\s*{_NUMBER}[^\n]*\n(\s*{_NUMBER}\s+{_NUMBER}\s+{_NUMBER}[^\n]*\n){{3}}")
_CIF = re.compile(r"(?:[ \t\r]*(?:#[^\n]*)?\n)*[ \t]*data_", re.IGNORECASE)
_EXTXYZ = re.compile(r"\s*\d+\s*\n")
_OUTCAR = re.compile(r"\s*(running on\b[^\n]*\n|distrk:|distr:|vasp\.\d)", re.IGNORECASE)
_JSON_LINES = re.compile(r"\s*\{[^\n]*\}[ \t\r]*\n\s*\{")


def detect(head: bytes) -> Format | None:  # noqa: PLR0911 - one return per format
    """Detect the format of a (decompressed) file from its first bytes.

    Args:
        head: The first `HEAD_BYTES` bytes, or all if the file is shorter.

    Returns:
        The format; None if it is unknown.
    """
    binary = detect_binary(head)
    if binary is not None:
        return binary
    text = head.decode("utf-8-sig", errors="replace").replace("\r\n", "\n")
    stripped = text.lstrip()
    if not stripped or "\0" in text:
        return None
    if _POSCAR.match(text if text.endswith("\n") else f"{text}\n"):  # checked first: its comment line may be anything
        return Format.POSCAR
    if stripped[0] in "[{":
        return Format.JSONL if _JSON_LINES.match(text) else Format.JSON
    if _OUTCAR.match(text):
        return Format.OUTCAR
    if stripped.startswith("<") and "<modeling" in text[:1000]:
        return Format.VASPRUN
    if is_cif(text):
        return Format.CIF
    if _EXTXYZ.match(text):
        return Format.EXTXYZ
    return Format.CSV if _looks_like_a_table(stripped) else None


def is_cif(text: str) -> bool:
    """Whether a text begins like a CIF: comments, then a data block."""
    return _CIF.match(text) is not None


def holds_structures(name: str) -> bool:
    """Whether a file in a folder or archive is a structure file, according to its name."""
    return _STRUCTURE_NAME.search(name) is not None


def detect_binary(head: bytes) -> Format | None:
    """Detect a binary format from the first bytes of a file; None for text."""
    if head.startswith(b"PAR1"):
        return Format.PARQUET
    if head.startswith(b"SQLite format 3\0") or head[_LMDB_MAGIC_AT:].startswith(_LMDB_MAGIC):
        return Format.ASE_DB
    if head.startswith(_ZIP_MAGIC):
        return Format.ZIP
    return Format.TAR if head[_TAR_MAGIC_AT:].startswith(_TAR_MAGIC) else None


def _looks_like_a_table(text: str) -> bool:
    """Whether a text begins with a line of column names (or a single one) that other lines follow."""
    lines = [line for line in text.split("\n") if line.strip() and not line.startswith("#")]
    if len(lines) < 2:
        return False
    return any(separator in lines[0] for separator in ",;\t") or re.fullmatch(r'"?\w+"?', lines[0].strip()) is not None
