"""Bad input: reported in one line that names the file, or as a failure, without affecting other records."""

from __future__ import annotations

import bz2
import gc
import gzip
import http.server
import io
import json
import lzma
import os
import socket
import sqlite3
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import ase
import ase.db
import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import FeaturizeReport, GraphStore, LabelMapping, ReadOptions, featurize
from equiscreen.pipeline.errors import SourceError
from equiscreen.pipeline.readers import archives as archives_module
from equiscreen.pipeline.readers.records import read_document
from equiscreen.pipeline.readers.splitting import Document
from equiscreen.pipeline.sources import files as files_module
from equiscreen.pipeline.sources.formats import Format
from equiscreen.pipeline.store.schema import STATUS_ISOLATED_ATOMS, STATUS_REPEATED_ID
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, cif_text, pymatgen_dict

STRUCTURES = probe_structures(ELEMENTS, 6, seed=51)
CIFS = [cif_text(s) for s in STRUCTURES]
DICTS = [pymatgen_dict(s) for s in STRUCTURES]


def run(sources: object, out: Path, **settings: object) -> FeaturizeReport:
    report = featurize(sources, out, cutoff=4.0, scheduler="threads", **settings)
    assert report.read == report.stored + report.failed + report.duplicate
    return report


def failures(store: Path) -> list[tuple[str, int, str]]:
    """File name without folders, index and reason of each failure."""
    rows = pq.read_table(store / "failures.parquet").to_pylist()
    return [(row["source"].rsplit("/", 1)[-1], row["source_index"], row["reason"]) for row in rows]


def refusal(source: object, folder: Path, **settings: object) -> str:
    """The one-line error for a source; checks that no store is left."""
    with pytest.raises(SourceError) as caught:
        run(source, folder / "refused.zarr", **settings)
    assert not (folder / "refused.zarr").exists()
    message = str(caught.value)
    assert "\n" not in message
    named = source.name if isinstance(source, Path) else str(source)
    assert named in message
    return message


def beside(bad: Path, folder: Path, **settings: object) -> tuple[FeaturizeReport, list[tuple[str, int, str]]]:
    """Read a bad file between two good ones, and check that these are stored."""
    first, last = folder / "first.json", folder / "last.json"
    first.write_text(json.dumps(DICTS[4]))
    last.write_text(json.dumps(DICTS[5]))
    report = run([first, bad, last], folder / "g.zarr", **settings)
    ids = GraphStore(folder / "g.zarr").column("structure_id").tolist()
    assert (ids[0], ids[-1]) == ("first:0", "last:0")
    return report, failures(folder / "g.zarr")


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("suffix", list(COMPRESSORS))
def test_a_file_that_breaks_off(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    text = "".join(json.dumps({**DICTS[i], "noise": rng.bytes(400_000).hex()}) + "\n" for i in range(3)).encode()
    whole = COMPRESSORS[suffix](text)
    large, small = tmp_path / f"large.jsonl.{suffix}", tmp_path / f"small.json.{suffix}"
    large.write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(large, tmp_path)
    small.write_bytes(COMPRESSORS[suffix](json.dumps(DICTS[0]).encode())[:-9])
    report, rows = beside(small, tmp_path)
    assert (report.stored, report.failed) == (2, 1)
    assert rows[0][0] == small.name
    assert "cannot be read" in rows[0][2]


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def test_a_zip_that_breaks_off_and_one_with_a_damaged_member(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "s.zip", {f"{i}.cif": cif.encode() for i, cif in enumerate(CIFS[:3])})
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path / "cut.zip", tmp_path)
    assert "cannot be reached" in refusal(f"zip://*.cif::{tmp_path / 'cut.zip'}", tmp_path)
    with zipfile.ZipFile(path) as archive:
        second = archive.getinfo("1.cif")
    damaged = bytearray(whole)
    damaged[second.header_offset + 60 : second.header_offset + 90] = b"\xff" * 30
    path.write_bytes(damaged)
    report, rows = beside(path, tmp_path)
    assert (report.stored, report.failed) == (4, 1)
    assert rows[0][:2] == ("s.zip::1.cif", 0)
    assert "damaged archive member" in rows[0][2]


@pytest.mark.parametrize("suffix", ["gz", "bz2", "xz"])
def test_a_damaged_member_of_an_archive_costs_no_other(tmp_path: Path, suffix: str) -> None:
    whole = COMPRESSORS[suffix](CIFS[1].encode())
    members = {"a.cif": CIFS[0].encode(), f"b.cif.{suffix}": whole[: len(whole) // 2], "c.cif": CIFS[2].encode()}
    members["d.json"] = b"[]"
    report, rows = beside(write_zip(tmp_path / "s.zip", members), tmp_path)
    assert (report.stored, report.failed) == (4, 2)
    assert rows[0][0] == f"s.zip::b.cif.{suffix}"
    assert "damaged archive member" in rows[0][2]
    assert rows[1] == ("s.zip::d.json", 0, "no record in the file")


def test_names_that_lead_out_of_an_archive_and_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside.cif"
    outside.write_text(CIFS[5])
    names = ["../up.cif", "/absolute.cif", "C:\\windows.cif", "a/../../b.cif"]
    path = write_zip(tmp_path / "s.zip", {**{name: CIFS[0].encode() for name in names}, "good.cif": CIFS[1].encode()})
    with tarfile.open(tmp_path / "t.tar.gz", "w:gz") as archive:
        for name, kind in (
            ("link.cif", tarfile.SYMTYPE),
            ("hard.cif", tarfile.LNKTYPE),
            ("pipe.cif", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(outside)
            archive.addfile(info)
        for name, content in (("../up.cif", CIFS[0]), ("good.cif", CIFS[2])):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content.encode()))
    before = sorted(tmp_path.rglob("*"))
    report = run([path, tmp_path / "t.tar.gz"], tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (2, 8)
    reasons = [reason for _, _, reason in failures(tmp_path / "g.zarr")]
    assert sum("path leads out of the archive" in reason for reason in reasons) == 5
    assert sum("a link" in reason for reason in reasons) == 2
    assert sum("not a regular file" in reason for reason in reasons) == 3
    assert [name for name in sorted(tmp_path.rglob("*")) if tmp_path / "g.zarr" not in (name, *name.parents)] == before


def tar_of(folder: Path, names: str) -> bytearray:
    """A tar archive with one CIF for each letter."""
    path = folder / f"{names}.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, cif in zip(names, CIFS, strict=False):
            info = tarfile.TarInfo(f"{name}.cif")
            info.size = len(cif)
            archive.addfile(info, io.BytesIO(cif.encode()))
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
@pytest.mark.parametrize("damage", ["none", "a bit", "cut at a member", "cut in a header", "no end", "two of them"])
def test_members_of_a_tar_do_not_vanish(tmp_path: Path, suffix: str, damage: str) -> None:
    content = tar_of(tmp_path, "abcdef")
    fourth = content.index(b"d.cif")
    if damage == "a bit":
        content[fourth + 130] ^= 4
    elif damage.startswith("cut"):
        del content[fourth + (200 if damage == "cut in a header" else 0) :]
    elif damage == "no end":
        del content[len(content.rstrip(b"\0")) // 512 * 512 + 512 :]
    elif damage == "two of them":
        content += tar_of(tmp_path, "xyz")
    path = tmp_path / f"s.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "tar.gz" else content)
    report, message = stored_or_refused(path, tmp_path)
    assert report in (None, 3 if damage in ("a bit", "cut at a member", "cut in a header") else 6)
    assert ("cannot be read" in message) == (damage != "none")
    assert ("data after the end of the archive" in message) == (damage == "two of them")


def stored_or_refused(path: Path, folder: Path) -> tuple[int | None, str]:
    """Number of stored structures and the reason why others are missing; large files raise, small ones are failures."""
    try:
        report = run(path, folder / "g.zarr")
    except SourceError as error:
        return None, str(error)
    reasons = [reason for _, _, reason in failures(folder / "g.zarr")]
    assert len(reasons) < 2
    return report.stored, "".join(reasons)


def test_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (files_module, archives_module):
        monkeypatch.setattr(module, "BOMB_BYTES", 8 << 20)
    bomb = b'[{"a": "' + b" " * (32 << 20)
    path = write_zip(tmp_path / "s.zip", {"bomb.json": bomb, "good.cif": CIFS[0].encode()})
    (tmp_path / "bomb.json.gz").write_bytes(gzip.compress(bomb))
    (tmp_path / "inner.zip").write_bytes(b"")
    write_zip(tmp_path / "gz in.zip", {"bomb.json.gz": gzip.compress(bomb), "good.cif": CIFS[1].encode()})
    with tarfile.open(tmp_path / "s.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("bomb.json")
        info.size = len(bomb)
        archive.addfile(info, io.BytesIO(bomb))
    assert max(file.stat().st_size for file in tmp_path.iterdir()) < 100_000
    report = run([path, tmp_path / "bomb.json.gz", tmp_path / "gz in.zip"], tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (2, 3)
    assert all("-fold" in reason for _, _, reason in failures(tmp_path / "g.zarr"))
    assert "-fold" in refusal(tmp_path / "s.tar.gz", tmp_path)


def test_an_archive_within_an_archive_and_an_encrypted_one(tmp_path: Path) -> None:
    inner = write_zip(tmp_path / "inner.zip", {"x.cif": CIFS[3].encode()}).read_bytes()
    members = {"inner.zip": inner, "good.cif": CIFS[0].encode(), "secret.cif": CIFS[1].encode()}
    path = write_zip(tmp_path / "s.zip", members)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        header = archive.getinfo("secret.cif").header_offset
    content[header + 6] |= 1  # the flag of encryption, here and in the directory at the end
    content[content.rindex(b"secret.cif") - 46 + 8] |= 1
    path.write_bytes(content)
    report, rows = beside(path, tmp_path)
    assert (report.stored, report.failed) == (3, 2)
    assert [(name, reason) for name, _, reason in rows] == [
        ("s.zip::inner.zip", "zip inside an archive (unpack the archive first)"),
        ("s.zip::secret.cif", "encrypted archive member"),
    ]


def csv_text(rows: list[str], header: str = "name,cif,gap") -> str:
    return "\n".join([header, *rows]) + "\n"


def quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


ROWS = [f"n{i},{quoted(cif)},{i}" for i, cif in enumerate(CIFS)]
LABELS = LabelMapping().with_inline(["gap=gap[eV]"])


def test_a_table_without_structures(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text("a,b\n1,2\n")
    reason = "no structure in any field (fields: a, b); choose a field with `equiscreen featurize --structure-field`"
    assert reason in refusal(tmp_path / "s.csv", tmp_path)
    (tmp_path / "t.csv").write_text(csv_text(ROWS))
    options = ReadOptions(structure_field="structure")
    assert "no value in field 'structure'" in refusal(tmp_path / "t.csv", tmp_path, options=options)
    pq.write_table(pa.table({"a": [1, 2], "b": ["x", "y"]}), tmp_path / "s.parquet")
    assert "(fields: a, b)" in refusal(tmp_path / "s.parquet", tmp_path)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (f"n9,{quoted(CIFS[5])}", "the row has 2 fields, but the table has 3 columns"),
        (f"n9,1,5,{quoted(CIFS[5])},2", "the row has 5 fields, but the table has 3 columns"),
        ('n9,"data_x', "unclosed quote"),
        (f"n9,{quoted(CIFS[5])[:-1]},7", "unclosed quote"),
        ("n9,,7", "no structure in any field"),
    ],
    ids=["short", "long", "open", "open to the end", "empty"],
)
@pytest.mark.parametrize("place", [1, 3])
def test_a_bad_row_costs_only_itself(tmp_path: Path, bad: str, reason: str, place: int) -> None:
    path = tmp_path / "s.csv"
    path.write_text(csv_text([*ROWS[:place], bad, *ROWS[place:3]]))
    report = run(path, tmp_path / "g.zarr", labels=LABELS, id_field="name")
    assert (report.stored, report.failed) == (3, 1)
    store = GraphStore(tmp_path / "g.zarr")
    assert store.block(0, 3).structure_labels["gap"].tolist() == [0, 1, 2]
    assert store.column("structure_id").tolist() == ["n0", "n1", "n2"]
    ((_, index, why),) = failures(tmp_path / "g.zarr")
    assert index == place
    assert reason in why


def test_a_column_that_is_there_twice_is_no_label(tmp_path: Path) -> None:
    """A repeated column is accepted if both have the same values, or if nothing reads it."""
    rows = [f"{row},1.5,x,y" for row in ROWS[:2]]
    rows[0] = f"a,{quoted(CIFS[0])},1.5,1.5,x,y"
    (tmp_path / "s.csv").write_text(csv_text(rows, "name,cif,gap,gap,note,note"))
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name")
    assert (report.stored, report.failed) == (1, 1)
    (failure,) = GraphStore(tmp_path / "g.zarr").table("failures.parquet").to_pylist()
    assert "gap has shape (2,)" in failure["reason"]
    columns = [["a"], [CIFS[0]], [1.5], [1.5], ["x"], ["y"]]
    pq.write_table(pa.table(columns, names=["name", "cif", "gap", "gap", "note", "note"]), tmp_path / "s.parquet")
    with pytest.raises(SourceError, match=r"s\.parquet: the column gap appears 2 times"):
        run(tmp_path / "s.parquet", tmp_path / "p.zarr", labels=LABELS, id_field="name")
    assert run(tmp_path / "s.parquet", tmp_path / "p.zarr", id_field="name").stored == 1


def test_a_quote_too_many_costs_no_other_row(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(csv_text([ROWS[0], f'"n9,{quoted(CIFS[5])},7', *ROWS[1:3]]))
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name")
    assert report.stored == 3
    assert report.failed >= 1  # the lines of the malformed row
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ["n0", "n1", "n2"]


def test_a_quote_within_a_field_is_no_quote_of_it(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(csv_text([f'5" wafer,{quoted(CIFS[0])},1', f'a"b"c,{quoted(CIFS[1])},2']))
    assert run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name").stored == 2
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ['5" wafer', 'a"b"c']


def test_a_first_column_without_a_name(tmp_path: Path) -> None:
    rows = [f"{i},{row}" for i, row in enumerate(ROWS[:3])]
    (tmp_path / "s.csv").write_text(csv_text([*rows, ROWS[3]]))
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name")
    assert (report.stored, report.failed) == (3, 1)
    store = GraphStore(tmp_path / "g.zarr")
    assert store.column("structure_id").tolist() == ["n0", "n1", "n2"]
    assert store.block(0, 3).structure_labels["gap"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("end", ["", "\r"], ids=["lf", "crlf"])
def test_rows_that_end_with_a_separator(tmp_path: Path, end: str) -> None:
    (tmp_path / "s.csv").write_text(csv_text([f"{row},{end}" for row in ROWS[:3]]), newline="")
    assert run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name").stored == 3
    store = GraphStore(tmp_path / "g.zarr")
    assert store.column("structure_id").tolist() == ["n0", "n1", "n2"]
    assert store.block(0, 3).structure_labels["gap"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("first", ["name", "cif"])
def test_names_of_columns_in_a_comment(tmp_path: Path, separator: str, first: str) -> None:
    names = [first, "cif" if first == "name" else "name", "gap"]
    values = [{"name": f"n{i}", "cif": quoted(cif), "gap": str(i)} for i, cif in enumerate(CIFS[:3])]
    rows = [separator.join(value[name] for name in names) for value in values]
    (tmp_path / "s.csv").write_text("# a table, of crystals\n" + csv_text(rows, f"#{separator.join(names)}"))
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr", labels=LABELS, id_field="name")
    assert (report.stored, report.failed) == (3, 0)
    store = GraphStore(tmp_path / "g.zarr")
    assert store.column("structure_id").tolist() == ["n0", "n1", "n2"]
    assert store.block(0, 3).structure_labels["gap"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("before", ["", "# crystals\n", "#name,cif\n"])
@pytest.mark.parametrize("form", ["cif", "json", "open"])
def test_a_table_without_names_of_columns(tmp_path: Path, before: str, form: str) -> None:
    rows = ROWS if form != "json" else [f"n{i},{quoted(json.dumps(item))},{i}" for i, item in enumerate(DICTS)]
    if form == "open":
        rows = ['n9,"data_x,1,2', *rows]
    (tmp_path / "s.csv").write_text(before + "\n".join(rows[:4]) + "\n")
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr")
    reasons = [reason for _, _, reason in failures(tmp_path / "g.zarr")]
    assert reasons[-1] == "the table has no line of column names (add one at the beginning)"
    assert (report.stored, report.failed) == ((2, 2) if form == "open" else (3, 1))


def test_names_of_columns_that_go_over_two_lines(tmp_path: Path) -> None:
    (tmp_path / "s.csv").write_text(csv_text(ROWS[:3], '"the\nname",cif,gap'))
    report = run(tmp_path / "s.csv", tmp_path / "g.zarr", id_field="the\nname")
    assert (report.stored, report.failed) == (3, 0)
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ["n0", "n1", "n2"]


@pytest.mark.parametrize("comment", ["POSCAR", "CONTCAR", "Cu", "Cu Au O", "made by hand", "", "H2O in a box"])
def test_a_poscar_without_element_symbols(tmp_path: Path, comment: str) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    structure = STRUCTURES[0].to_ase()
    structure = structure[np.argsort(structure.numbers)]
    ase.io.write(folder / "b.vasp", structure, format="vasp", direct=True)
    lines = (folder / "b.vasp").read_text().split("\n")
    lines[0] = comment
    (folder / "b.vasp").write_text("\n".join(lines))
    (folder / "a.vasp").write_text("\n".join(lines[:5] + lines[6:]))
    report = run(folder, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 1)
    ((name, _, reason),) = failures(tmp_path / "g.zarr")
    assert (name, reason.split(" (")[0]) == ("a.vasp", "no element symbols")
    assert np.array_equal(GraphStore(tmp_path / "g.zarr").block(0, 1).atomic_number, structure.numbers)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "csv"])
def test_values_that_no_reader_expects(tmp_path: Path, kind: str) -> None:
    flat = {"id": "good", "cell": "[[3,0,0],[0,3,0],[0,0,3]]", "positions": "[[0,0,0]]", "numbers": "[29]"}
    huge = "9" * 400
    bad = {"positions": f"[[0,0,{huge}]]", "numbers": f"[{huge}]", "cell": "[" * 100_000}
    rows = [flat, *({**flat, "id": f"bad {name}", name: value} for name, value in bad.items())]
    path = tmp_path / f"s.{kind}"
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "csv":
        path.write_text(csv_text([",".join(map(quoted, row.values())) for row in rows], ",".join(flat)))
    else:
        text = [
            "{" + ", ".join(f'"{key}": ' + (f'"{item}"' if key == "id" else item) for key, item in row.items()) + "}"
            for row in rows[: 3 if kind == "json" else 4]  # an unclosed bracket swallows the rest of a list
        ]
        path.write_text("\n".join(text) if kind == "jsonl" else f"[{', '.join(text)}]")
    report = run(path, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 2 if kind == "json" else 3)
    rows = pq.read_table(tmp_path / "g.zarr" / "failures.parquet").to_pylist()
    assert [row["source_index"] for row in rows] == list(range(1, 1 + len(rows)))
    assert all(row["reason"] and "\n" not in row["reason"] and len(row["reason"]) <= 500 for row in rows)
    assert [row["structure_id"] for row in rows[:2]] == ["bad positions", "bad numbers"]


def test_json_with_numbers_and_text_that_nothing_holds(tmp_path: Path) -> None:
    huge, half = "9" * 400, "\\ud83d"
    site_of = json.dumps(crystal(site("Cu", (0, 0, 0.125)))).replace("0.125", huge)
    nested = f'{{"structure": {ONE}, "x": {"[" * 100_000}{"]" * 100_000}}}'
    unknown = json.dumps(crystal(site("Cu"))).replace("Cu", half)
    texts = {"text": f'{{"note": "{half} {"x" * 40}", "poscar": {json.dumps(poscar())}}}', "id": f'{{"{half}": 1}}'}
    (tmp_path / "s.jsonl").write_text("\n".join([ONE, site_of, nested, unknown, *texts.values(), json.dumps(DICTS[2])]))
    report, rows = beside(tmp_path / "s.jsonl", tmp_path)
    assert [index for _, index, _ in rows] == [1, 2, 3, 5]
    assert all("\n" not in reason and len(reason) < 600 for _, _, reason in rows)
    assert "OverflowError" in rows[0][2]
    assert report.stored == 5


def test_an_id_that_is_half_a_character(tmp_path: Path) -> None:
    text = f'{{"id": "\\ud83d", "structure": {ONE}}}'
    record = read_document(Document("s.jsonl", 0, Format.JSONL, text.encode()), ReadOptions())
    assert record.structure is not None
    assert record.fields["id"] == "\ud83d"
    (tmp_path / "s.jsonl").write_text(text)
    assert run(tmp_path / "s.jsonl", tmp_path / "g.zarr").stored == 1


def poscar() -> str:
    text = io.StringIO()
    ase.io.write(text, STRUCTURES[1].to_ase(), format="vasp")
    return text.getvalue()


@pytest.mark.parametrize("kind", ["cif", "csv", "json", "jsonl", "extxyz", "poscar"])
def test_a_byte_order_mark_changes_nothing(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"s.{kind}"
    if kind in ("extxyz", "poscar"):
        ase.io.write(path, STRUCTURES[0].to_ase(), format="vasp" if kind == "poscar" else kind)
    else:
        one = json.dumps(DICTS[0])
        texts = {"cif": CIFS[0], "csv": csv_text(ROWS[:1]), "json": one, "jsonl": f"{one}\n{json.dumps(DICTS[1])}\n"}
        path.write_text(texts[kind])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    report = run(path, tmp_path / "g.zarr", **({"id_field": "name"} if kind == "csv" else {}))
    assert (report.stored, report.failed) == (2 if kind == "jsonl" else 1, 0)


def test_mixed_encodings(tmp_path: Path) -> None:
    (tmp_path / "latin.cif").write_bytes(f"# Müller, 5 Å\n{CIFS[0]}".encode("latin-1"))
    (tmp_path / "utf8.cif").write_text(f"# Müller, 5 Å\n{CIFS[1]}")
    rows = [f"M\xfcller,{quoted(CIFS[2])},1", f"x,{quoted(CIFS[3])},2"]
    (tmp_path / "latin.csv").write_bytes(csv_text(rows).encode("latin-1"))
    (tmp_path / "utf16.cif").write_text(CIFS[4], encoding="utf-16")
    report, rows = beside(tmp_path / "utf16.cif", tmp_path)
    assert rows == [("utf16.cif", 0, "the text is UTF-16; convert it to UTF-8")]
    assert "UTF-16" in refusal(tmp_path / "utf16.cif", tmp_path)
    report = run(
        [tmp_path / f"{name}" for name in ("latin.cif", "utf8.cif", "latin.csv")], tmp_path / "h.zarr", id_field=None
    )
    assert (report.stored, report.failed) == (4, 0)


def test_file_names_that_are_no_utf8(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9.cif")).write_text(CIFS[0])
    (folder / os.fsdecode(b"caf\xe9.csv")).write_text(csv_text(ROWS[1:2]) + "x" * (1 << 18) + ",,\n")
    with (folder / os.fsdecode(b"caf\xe9.parquet")).open("wb") as file:
        pq.write_table(pa.table({"cif": [CIFS[3]]}), file)
    with tarfile.open(folder / "t.tar", "w") as archive:
        info = tarfile.TarInfo(os.fsdecode(b"\xe9.cif"))
        info.size = len(CIFS[2])
        archive.addfile(info, io.BytesIO(CIFS[2].encode()))
    report = run(folder, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (4, 1)
    names = [Path(name).name for name in GraphStore(tmp_path / "g.zarr").column("source").tolist()]
    assert sorted(names) == ["caf\ufffd.cif", "caf\ufffd.csv", "caf\ufffd.parquet", "t.tar::\ufffd.cif"]


def test_repeated_ids_are_flagged(tmp_path: Path) -> None:
    names = ["a", "b", "a", "c"]
    (tmp_path / "s.csv").write_text(csv_text([f"{n},{quoted(c)},1" for n, c in zip(names, CIFS, strict=False)]))
    run(tmp_path / "s.csv", tmp_path / "g.zarr", id_field="name")
    status = GraphStore(tmp_path / "g.zarr").column("status")
    assert (status & STATUS_REPEATED_ID).astype(bool).tolist() == [True, False, True, False]


ONE = json.dumps(DICTS[0])


@pytest.mark.parametrize(
    ("text", "stored", "reasons"),
    [
        ('{"name": "package", "version": 1}', 0, ["no structure in any field (fields: name, version)"]),
        ("[[1, 2], null, 3]", 0, ["not a record (list)", "not a record (NoneType)", "not a record (int)"]),
        ('{"data": [1, 2]}', 0, ["no structure in any field"]),
        (f"[{ONE}, {json.dumps(DICTS[1])[:-40]}", 1, ["not valid JSON"]),
        (f"[{ONE}", 1, ["ends early"]),
        (f"[{ONE},", 1, ["ends early"]),
        (f'{{"entries": [{ONE}', 1, ["ends early"]),
        (f'{{"a": {ONE}, "b": {json.dumps(DICTS[1])}, "c": {ONE[:-30]}', 2, ["not valid JSON"]),
        (
            f'{{"a": {ONE}, "b": {json.dumps(DICTS[1])}, "c": {{"sites": 1, "lattice": 2}}}}',
            2,
            ["malformed pymatgen structure"],
        ),
        (f"[{ONE}] junk\nmore junk\n", 1, ["text after the end: 'junk'"]),
        (f"[{ONE}]]", 1, ["text after the end"]),
        (f"{ONE}\n}}\n{json.dumps(DICTS[1])}\n", 2, ["not valid JSON"]),
        (f"{json.dumps(DICTS[0], indent=1)}\n{json.dumps(DICTS[1], indent=1)}", 2, []),
        (f'{{"data": [{{"x": 1}}], "structure": {ONE}}}', 1, ["no structure in any field (fields: x)"]),
        ("[" * 100_000, 0, ["JSON"]),
        (
            f'[{ONE}, {{"structure": {{"sites": [{{"abc": NaN}}], "lattice": {{}}}}}}]',
            1,
            ["malformed pymatgen structure"],
        ),
        (f'{{"\\q": {ONE}, "b": {ONE}}}', 1, ["object member without a key"]),
    ],
)
def test_json_of_something_else_or_broken(tmp_path: Path, text: str, stored: int, reasons: list[str]) -> None:
    (tmp_path / "s.json").write_text(text)
    report, rows = beside(tmp_path / "s.json", tmp_path)
    assert report.stored == 2 + stored
    assert len(rows) == len(reasons)
    for (name, _, why), reason in zip(rows, reasons, strict=True):
        assert name == "s.json"
        assert reason in why


def test_empty_files_and_junk(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    rng = np.random.default_rng(1)
    (folder / "a.cif").write_bytes(b"")
    (folder / "b.cif").write_bytes(rng.bytes(5000))
    (folder / "c.cif").write_bytes(rng.integers(128, 256, 500, dtype=np.uint8).tobytes() + b"\n,x\n")
    (folder / "d.json").write_text(" \n\n ")
    (folder / "e.cif").write_text(CIFS[0])
    (folder / "f.cif.gz").write_bytes(gzip.compress(b""))
    report = run(folder, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 5)
    found = {name: reason for name, _, reason in failures(tmp_path / "g.zarr")}
    assert found["a.cif"] == found["d.json"] == found["f.cif.gz"] == "the file is empty"
    assert "unknown format" in found["b.cif"]
    assert "the file is empty" in refusal(folder / "a.cif", tmp_path)
    assert "unknown format; set it with `equiscreen featurize --format`" in refusal(folder / "b.cif", tmp_path)


def site(species: object, abc: tuple[float, float, float] = (0, 0, 0)) -> dict[str, object]:
    return {"species": species if isinstance(species, list) else [{"element": species, "occu": 1}], "abc": list(abc)}


def crystal(*sites: dict[str, object], cell: object = None) -> dict[str, object]:
    matrix = (np.eye(3) * 4).tolist() if cell is None else cell
    return {"@class": "Structure", "lattice": {"matrix": matrix}, "sites": list(sites)}


def test_structures_that_are_none(tmp_path: Path) -> None:
    many = [site("Cu", (i / 7, j / 7, 0)) for i in range(7) for j in range(7)]
    bad = {
        "coordinates not finite or too large": crystal(site("Cu", (0, float("nan"), 0))),
        "cell not finite or too large": crystal(site("Cu"), cell=[[float("inf"), 0, 0], [0, 1, 0], [0, 0, 1]]),
        "partial occupancy": crystal(site([{"element": "Cu", "occu": 0.5}, {"element": "Au", "occu": 0.5}])),
        "overlapping atoms": crystal(site("Cu"), site("Au", (1, 0, 1))),
        "cell of zero volume": crystal(site("Cu"), cell=[[1, 0, 0], [2, 0, 0], [0, 0, 1]]),
        "isotope": crystal(site("D")),
        "unknown element": crystal(site("X")),
        "too many atoms": crystal(*many, cell=(np.eye(3) * 21).tolist()),
        "too many edges": crystal(site("Cu"), cell=(np.eye(3) * 1.2).tolist()),
        "no atoms": crystal(),
    }
    (tmp_path / "s.json").write_text(json.dumps(list(bad.values())))
    report, rows = beside(tmp_path / "s.json", tmp_path, max_atoms=40, max_edges=130)
    assert (report.stored, report.failed) == (2, len(bad))
    for reason, (_, _, why) in zip(bad, rows, strict=True):
        assert reason in why
    assert sum(report.reasons.values()) == len(bad)


def test_isolated_atoms_are_stored_and_flagged(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps([DICTS[0], crystal(site("Cu"), cell=(np.eye(3) * 9).tolist())]))
    assert run(tmp_path / "s.json", tmp_path / "g.zarr").stored == 2
    status = GraphStore(tmp_path / "g.zarr").column("status")
    assert (status & STATUS_ISOLATED_ATOMS).astype(bool).tolist() == [False, True]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pbc": [True]}, "pbc has 1 values instead of 3"),
        ({"pbc": ["True", "False", "True"]}, "neither true nor false"),
        ({"positions": [[0, 0]]}, "structure does not parse"),
        ({"positions": [[0, 0, 0], [1, 1, 1]]}, "coordinates for different numbers of atoms"),
        ({"atomic_numbers": [29.5]}, "unknown element"),
        ({"atomic_numbers": [0]}, "unknown element"),
        ({"atomic_numbers": None}, "no structure in any field"),
        ({"cell": [1.0, 2.0, 3.0]}, "structure does not parse"),
        ({"cell": [[1.0], [2.0], [3.0]]}, "structure does not parse"),
    ],
)
def test_columns_that_make_no_structure(tmp_path: Path, values: dict[str, object], reason: str) -> None:
    good = {"cell": (np.eye(3) * 3).tolist(), "positions": [[0, 0, 0]], "atomic_numbers": [29], "pbc": [True] * 3}
    (tmp_path / "s.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in (good, {**good, **values})))
    report = run(tmp_path / "s.jsonl", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (1, 1)
    assert reason in failures(tmp_path / "g.zarr")[0][2]


def test_frames_that_are_short_or_long_cost_only_themselves(tmp_path: Path) -> None:
    ase.io.write(tmp_path / "s.xyz", [s.to_ase() for s in STRUCTURES[:4]], format="extxyz")
    lines = (tmp_path / "s.xyz").read_text().splitlines(keepends=True)
    begins = np.cumsum([0, *(len(s) + 2 for s in STRUCTURES[:4])])
    frames = [lines[a:b] for a, b in pairwise(begins)]
    frames[1] = frames[1][:-1]
    frames[2].append(frames[2][-1])
    (tmp_path / "s.xyz").write_text("".join("".join(frame) for frame in frames))
    report = run(tmp_path / "s.xyz", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (3, 2)  # the extra atom is a failure of its own
    assert [index for _, index, _ in failures(tmp_path / "g.zarr")] == [1, 3]


def test_a_cif_with_a_text_that_is_never_closed_costs_only_its_block(tmp_path: Path) -> None:
    named = [cif.replace("data_x", f"data_{i}") for i, cif in enumerate(CIFS[:3])]
    named[1] += "_note\n;\nnever closed\n"
    (tmp_path / "s.cif").write_text("".join(named))
    report = run(tmp_path / "s.cif", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (2, 1)
    assert failures(tmp_path / "g.zarr")[0][:2] == ("s.cif", 1)


def test_records_too_large_cost_only_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("splitting", "split_json", "split_csv"):
        monkeypatch.setattr(f"equiscreen.pipeline.readers.{module}.MAX_DOCUMENT_BYTES", 20_000)
    monkeypatch.setattr(files_module, "READ_BYTES", 1000)
    padding = "x" * 60_000
    texts = {
        "a.json": json.dumps([DICTS[0], {**DICTS[1], "padding": padding}, DICTS[2]]),
        "b.jsonl": "".join(json.dumps(d) + "\n" for d in (DICTS[0], {**DICTS[1], "padding": padding}, DICTS[2])),
        "c.csv": csv_text([ROWS[0], f"x,{quoted(CIFS[1] + padding)},1", ROWS[2]]),
        "d.cif": f"{CIFS[0]}{CIFS[1]}# {padding}\n{CIFS[2]}",
        "e.json": json.dumps({"a": DICTS[0], "b": {**DICTS[1], "padding": padding}, "c": DICTS[2]}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
        run(tmp_path / name, tmp_path / f"{name}.zarr")
        rows = failures(tmp_path / f"{name}.zarr")
        assert len(GraphStore(tmp_path / f"{name}.zarr")) == 2, name
        assert any("record too large" in reason for _, _, reason in rows), name


def test_databases_that_are_none(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE people (name TEXT)")
    assert "cannot be read as an ASE database" in refusal(tmp_path / "other.db", tmp_path)
    with ase.db.connect(tmp_path / "s.db") as database:
        for s in STRUCTURES[:4] * 20:
            database.write(s.to_ase())
    whole = (tmp_path / "s.db").read_bytes()
    (tmp_path / "cut.db").write_bytes(whole[:100])
    assert "cannot be read as an ASE database" in refusal(tmp_path / "cut.db", tmp_path)
    damaged = bytearray(whole)
    half = len(whole) // 2
    damaged[half : half + half // 2] = b"\x07" * (half // 2)
    (tmp_path / "damaged.db").write_bytes(damaged)
    try:
        report, rows = beside(tmp_path / "damaged.db", tmp_path)
    except SourceError as error:
        assert "damaged.db: the file cannot be read as an ASE database" in str(error)  # noqa: PT017 - both outcomes are correct
    else:
        assert report.failed == len(rows) > 0
        assert report.read > 2


def test_a_database_with_rows_that_ase_cannot_read(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "s.db") as database:
        for s in STRUCTURES[:4]:
            database.write(s.to_ase(), data={"x": 1})
    with sqlite3.connect(tmp_path / "s.db") as connection:
        connection.execute("UPDATE systems SET positions = x'00' WHERE id = 2")
        connection.execute("UPDATE systems SET numbers = x'0000000000000000' WHERE id = 3")
    report, rows = beside(tmp_path / "s.db", tmp_path)
    assert (report.stored, report.failed) == (4, 2)
    assert [index for _, index, _ in rows] == [1, 2]


def test_a_damaged_lmdb_database_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destructor of ASE's class used to raise, and the file stayed open for this process."""
    printed: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    path = tmp_path / "s.aselmdb"
    with ase.db.connect(path) as database:
        database.write(ase.Atoms("Cu", cell=np.eye(3) * 3.6, pbc=True))
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[20] ^= 1  # LMDB's version is at 20 in each of the first two pages
    damaged[4096 + 20] ^= 1
    path.write_bytes(damaged)
    assert "cannot be read as an ASE database" in refusal(path, tmp_path)
    path.write_bytes(whole)
    assert run(path, tmp_path / "g.zarr").stored == 1
    gc.collect()
    assert not printed


def test_an_lmdb_database_that_ends_early(tmp_path: Path) -> None:
    with ase.db.connect(tmp_path / "s.aselmdb") as database:
        for s in STRUCTURES[:4] * 50:
            database.write(s.to_ase(), data={"x": list(range(100))})
    whole = (tmp_path / "s.aselmdb").read_bytes()
    assert run(tmp_path / "s.aselmdb", tmp_path / "g.zarr").stored == 4
    for part in (2, 8):
        (tmp_path / "cut.aselmdb").write_bytes(whole[: len(whole) // part])
        assert "cannot be read as an ASE database (truncated)" in refusal(tmp_path / "cut.aselmdb", tmp_path)
    (tmp_path / "cut.aselmdb").write_bytes(whole[:64])
    assert "cannot be read as an ASE database" in refusal(tmp_path / "cut.aselmdb", tmp_path)


def test_parquet_that_is_damaged(tmp_path: Path) -> None:
    pq.write_table(pa.table({"cif": CIFS * 50}), tmp_path / "s.parquet")
    whole = (tmp_path / "s.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read" in refusal(tmp_path / "cut.parquet", tmp_path)
    damaged = bytearray(whole)
    damaged[4:60] = b"\xee" * 56
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    assert "cannot be read" in refusal(tmp_path / "damaged.parquet", tmp_path)
    (tmp_path / "s.parquet.gz").write_bytes(gzip.compress(whole))
    assert "compressed parquet files cannot be read; decompress the file first" in refusal(
        tmp_path / "s.parquet.gz", tmp_path
    )
    bad = pa.array([CIFS[0].encode(), b"caf\xe9" * 10, CIFS[1].encode()]).view(pa.string())
    pq.write_table(pa.table({"cif": bad}), tmp_path / "latin.parquet")
    report, rows = beside(tmp_path / "latin.parquet", tmp_path)
    assert (report.stored, report.failed) == (4, 1)
    assert rows[0][:2] == ("latin.parquet", 1)


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Environment without credentials for object stores, and without a server to request them from."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.parametrize("url", ["s3://a-bucket/s.cif", "s3://a-bucket/*.cif", "s3://a-bucket/folder/"])
def test_an_object_store_without_credentials(tmp_path: Path, url: str) -> None:
    begin = time.monotonic()
    assert "for S3, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in refusal(url, tmp_path)
    assert time.monotonic() - begin < 60


@pytest.mark.usefixtures("no_credentials")
@pytest.mark.slow
def test_an_object_store_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert "cannot be reached" in refusal("s3://another-bucket/s.cif", tmp_path)


def test_addresses_that_lead_nowhere(tmp_path: Path) -> None:
    assert "cannot be reached" in refusal("nonsense://host/s.cif", tmp_path)
    assert "cannot be reached" in refusal(f"http://127.0.0.1:{closed_port()}/s.cif", tmp_path)
    assert "no such file or folder" in refusal(f"zip://*.cif::{tmp_path}/none.zip", tmp_path)
    assert "matches no files" in refusal(tmp_path / "*.cif", tmp_path)
    assert "no structure files in this folder" in refusal(tmp_path, tmp_path)
    path = write_zip(tmp_path / "s.zip", {"README.md": b"x"})
    with pytest.raises(SourceError, match="hold no structures"):
        run(path, tmp_path / "g.zarr")


def test_a_file_elsewhere_that_cannot_be_fetched_now_is_no_failure_for_ever(tmp_path: Path) -> None:
    """A failure would be kept when the run resumes, although the server may have recovered by then."""
    down = threading.Event()
    down.set()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(CIFS[0])))
            self.end_headers()

        def do_GET(self) -> None:
            if down.is_set() and "second" in self.path:
                self.send_error(503)
                return
            self.do_HEAD()
            self.wfile.write(CIFS[0].encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    words = [f"http://127.0.0.1:{server.server_address[1]}/{name}.cif" for name in ("first", "second")]
    try:
        with pytest.raises(SourceError, match=r"second.cif: the file cannot be fetched .* run the same command again"):
            run(words, tmp_path / "g.zarr")
        down.clear()
        assert run(words, tmp_path / "g.zarr").read == 2
    finally:
        server.shutdown()
        server.server_close()


def test_a_format_that_is_not_that_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "s.cif").write_text(CIFS[0])
    for form in (Format.PARQUET, Format.ASE_DB, Format.ZIP, Format.TAR, Format.JSON, Format.EXTXYZ, Format.CSV):
        refusal(tmp_path / "s.cif", tmp_path, options=ReadOptions(format=form))
