"""Sources: archives, web servers, mixed sources, files larger than memory, and published data sets."""

from __future__ import annotations

import csv
import functools
import gzip
import http.server
import io
import json
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import ase.db
import ase.io
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import GraphStore, LabelMapping, ReadOptions, Structure
from equiscreen.pipeline.errors import SourceError
from equiscreen.pipeline.readers.splitting import documents
from equiscreen.pipeline.sources import files as files_module
from equiscreen.pipeline.sources.discovery import file_name
from equiscreen.pipeline.sources.files import Stream
from equiscreen.pipeline.sources.formats import Format
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice, Molecule
from pymatgen.core import Structure as PymatgenStructure
from pymatgen.io.vasp import Poscar

from ...conftest import cif_text, pymatgen_dict
from ..readers.test_formats import (
    STRUCTURES,
    assert_same,
    assert_same_distances,
    atoms_rows,
    from_pymatgen,
    gemmi_cif,
    ids,
    run,
    structures,
    to_pymatgen,
)


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz", "tar.xz", "tar.bz2"])
def test_archives_with_nested_folders_and_other_files(tmp_path: Path, kind: str) -> None:
    members = {f"top/{'deep/' * (i % 3)}s{i}.cif": gemmi_cif(s, "x").encode() for i, s in enumerate(STRUCTURES[:4])}
    members["top/README.md"] = b"# not a structure"
    members["top/._s0.cif"] = b"\0\0junk of macOS"
    members["top/more.json.gz"] = gzip.compress(json.dumps([pymatgen_dict(s) for s in STRUCTURES[4:]]).encode())
    path = tmp_path / f"all.{kind}"
    write_archive(path, members)
    report = run(path, tmp_path / "g.zarr")
    assert report.stored == len(STRUCTURES)
    assert_same_distances(structures(tmp_path / "g.zarr"), STRUCTURES)
    assert ids(tmp_path / "g.zarr") == ["s0", "s1", "s2", "s3", "more:0", "more:1"]
    assert sorted(name.removeprefix(f"{path.name}::top/") for name in report.aside) == ["._s0.cif", "README.md"]


def write_archive(path: Path, members: dict[str, bytes]) -> None:
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return
    with tarfile.open(path, f"w:{path.suffix[1:]}" if path.suffix != ".tar" else "w") as archive:
        archive.add(path.parent, "top", recursive=False)
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args: object) -> None:
        pass


class _RangeHandler(_Handler):
    """Serves byte ranges, as the servers of large files do."""

    def do_HEAD(self) -> None:
        self._answer(send=False)

    def do_GET(self) -> None:
        self._answer(send=True)

    def _answer(self, *, send: bool) -> None:
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(404)
            return
        content, wanted = path.read_bytes(), self.headers.get("Range")
        first, last = 0, len(content) - 1
        if wanted is not None:
            begin, _, end = wanted.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(end or last), last)
        self.send_response(200 if wanted is None else 206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if send:
            self.wfile.write(content[first : last + 1])


@pytest.fixture(params=[_Handler, _RangeHandler], ids=["without ranges", "with ranges"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the base URL of a web server for it."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(request.param, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a/b.cif", "b.cif"),
        ("a/b::c.cif", "b::c.cif"),
        ("optimade:x.cif", "optimade:x.cif"),
        ("a/z.zip::in/b.cif", "b.cif"),
        ("z.tar.gz::in/x::b.cif", "x::b.cif"),
        ("https://host/a/b.cif?X-Amz-Signature=***&x=***", "b.cif"),
        ("https://host/b.cif#part", "b.cif"),
        ("https://host/z.zip?sig=***::in/b.cif", "b.cif"),
        ("zip://in/b.cif::https://host/z.zip?sig=***", "b.cif"),
        ("zip://in/b.cif::z.zip", "b.cif"),
        ("zip://in/y.zip::https://host/z.zip::b.cif", "b.cif"),
        ("simplecache::https://host/b.cif?sig=***", "b.cif"),
        ("s3://bucket/what?.cif", "what?.cif"),
        ("s3://bucket/b.cif?versionId=***", "b.cif"),
    ],
)
def test_the_name_of_a_file_in_a_source(source: str, expected: str) -> None:
    assert file_name(source) == expected


def test_every_kind_of_file_from_a_web_server(served: tuple[Path, str], tmp_path: Path) -> None:
    folder, address = served
    (folder / "a.cif.gz").write_bytes(gzip.compress(gemmi_cif(STRUCTURES[0], "x").encode()))
    padding = [{"cif": "x" * 7_000_000}]  # more than one read
    pd.DataFrame([*padding, {"cif": cif_text(STRUCTURES[1])}]).to_csv(folder / "b.csv", index=False)
    pq.write_table(pa.Table.from_pylist(atoms_rows()[2:3]), folder / "c.parquet")
    write_archive(folder / "d.zip", {"x.json": json.dumps(pymatgen_dict(STRUCTURES[3])).encode()})
    ase.db.connect(folder / "e.db").write(STRUCTURES[4].to_ase())
    sources = [f"{address}/{name}" for name in ("a.cif.gz", "b.csv", "c.parquet", "d.zip", "e.db")]
    report = run(sources, tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (5, 1)
    assert_same_distances(structures(tmp_path / "g.zarr"), STRUCTURES[:5])
    found = GraphStore(tmp_path / "g.zarr").column("source").tolist()
    assert found == [source if not source.endswith("zip") else f"{source}::x.json" for source in sources]


def test_a_mix_of_sources_keeps_its_order(tmp_path: Path) -> None:
    (tmp_path / "folder" / "sub").mkdir(parents=True)
    (tmp_path / "folder" / "sub" / "b.cif").write_text(gemmi_cif(STRUCTURES[1], "x"))
    (tmp_path / "folder" / "a.vasp").write_text(Poscar(to_pymatgen(STRUCTURES[0])).get_str(significant_figures=12))
    (tmp_path / "folder" / "notes.txt").write_text("not read")
    write_archive(tmp_path / "z.zip", {f"{i}.cif": gemmi_cif(STRUCTURES[i], "x").encode() for i in (2, 3)})
    (tmp_path / "g1.json").write_text(json.dumps(pymatgen_dict(STRUCTURES[4])))
    memory = fsspec.filesystem("memory")
    memory.pipe("/mix/s.json", json.dumps(pymatgen_dict(STRUCTURES[5])).encode())
    sources = [
        f"zip://*.cif::{tmp_path / 'z.zip'}",
        "memory://mix/*.json",
        f"file://{tmp_path / 'folder'}",
        tmp_path / "g[0-9].json",
    ]
    try:
        report = run(sources, tmp_path / "g.zarr")
    finally:
        memory.rm("/mix", recursive=True)
    assert report.stored == 6
    assert_same_distances(structures(tmp_path / "g.zarr"), [STRUCTURES[i] for i in (2, 3, 5, 0, 1, 4)])
    found = GraphStore(tmp_path / "g.zarr").column("source").tolist()
    assert found == [
        "zip://2.cif::z.zip",
        "zip://3.cif::z.zip",
        "memory://mix/s.json",
        "folder/a.vasp",
        "folder/sub/b.cif",
        "g1.json",
    ]


def write_as(kind: str, path: Path, some: Sequence[Structure]) -> None:
    images = [s.to_ase() for s in some]
    if kind == "csv":
        pd.DataFrame({"cif": [cif_text(s) for s in some]}).to_csv(path)
    elif kind == "json":
        path.write_text(json.dumps([pymatgen_dict(s) for s in some]))
    elif kind == "jsonl":
        path.write_text("".join(f"{json.dumps(pymatgen_dict(s))}\n" for s in some))
    elif kind in ("db", "aselmdb"):
        with ase.db.connect(path, type=kind) as database:
            for atoms in images:
                database.write(atoms)
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist([{"structure": json.dumps(pymatgen_dict(s))} for s in some]), path)
    elif kind == "extxyz":
        ase.io.write(path, images, format="extxyz")
    else:
        write_archive(path, {f"{i}.cif": gemmi_cif(s, "x").encode() for i, s in enumerate(some)})


@pytest.mark.parametrize("name", ["s.cif", "s.db", "s", "s.poscar.gz", "s.parquet"])
def test_the_content_says_what_a_file_is_and_not_its_name(tmp_path: Path, name: str) -> None:
    paths, expected = [], []
    for place, kind in enumerate(["csv", "json", "jsonl", "extxyz", "db", "aselmdb", "parquet", "zip", "tar.gz"]):
        some = [
            Structure.from_fractional(s.atomic_number, s.cell * (1 + place / 50), s.frac_coord) for s in STRUCTURES[:2]
        ]
        written, path = tmp_path / f"w.{kind}", tmp_path / f"{place}" / name
        path.parent.mkdir()
        write_as(kind, written, some)
        written.rename(path)
        paths.append(path)
        expected += some
    assert run(paths, tmp_path / "g.zarr").stored == 18
    assert_same_distances(structures(tmp_path / "g.zarr"), expected)


def test_a_format_that_is_said_wins_and_holds_within_archives(tmp_path: Path) -> None:
    text = f"3\n{gemmi_cif(STRUCTURES[0], 'x')}"  # looks like XYZ
    (tmp_path / "s.cif").write_text(text.removeprefix("3\n"))
    with pytest.raises(SourceError, match="none of its structures"):
        run(tmp_path / "s.cif", tmp_path / "g.zarr", options=ReadOptions(format=Format.POSCAR))
    table = pd.DataFrame({"name": ["a"], "structure": [json.dumps(pymatgen_dict(STRUCTURES[0]))]})
    (tmp_path / "t.csv").write_text(f"[\n{table.to_csv(index=False)}".replace("[", "# [", 1))
    run(tmp_path / "t.csv", tmp_path / "t.zarr", options=ReadOptions(format=Format.CSV))
    assert_same(structures(tmp_path / "t.zarr"), STRUCTURES[:1])
    write_archive(tmp_path / "z.zip", {"s.cif": json.dumps(pymatgen_dict(STRUCTURES[0]), indent=1).encode()})
    run(tmp_path / "z.zip", tmp_path / "z.zarr", options=ReadOptions(format="json"))
    assert_same(structures(tmp_path / "z.zarr"), STRUCTURES[:1])
    with pytest.raises(SourceError, match=r"unknown format 'cfi'; did you mean 'cif'\?"):
        run(tmp_path / "s.cif", tmp_path / "g.zarr", options=ReadOptions(format="cfi"))


@pytest.mark.parametrize("size", [70_000, 3_000_000])
def test_json_lines_with_a_long_first_line_lose_no_record(tmp_path: Path, size: int) -> None:
    records = [{"id": f"r{i}", "notes": ["x" * 1000] * (size // 1000 if i == 0 else 1)} for i in range(6)]
    for record, s in zip(records, STRUCTURES, strict=True):
        record["structure"] = pymatgen_dict(s)
        record["data"] = [{"task": 1}]  # not a list of records, since the enclosing record has a structure
    lines = [json.dumps(record) for record in records]
    lines.insert(3, '{"structure": {"broken')
    (tmp_path / "s.jsonl").write_text("\n".join(lines))
    report = run(tmp_path / "s.jsonl", tmp_path / "g.zarr")
    assert (report.stored, report.failed) == (6, 1)
    assert ids(tmp_path / "g.zarr") == [f"r{i}" for i in range(6)]
    failures = pq.read_table(tmp_path / "g.zarr" / "failures.parquet").to_pylist()
    assert [row["source_index"] for row in failures] == [3]


def cut(content: bytes, form: Format) -> list[tuple[object, ...]]:
    with Stream(io.BytesIO(content), "s") as stream:
        return [(d.index, d.content, d.name, d.header, d.reason) for d in documents(stream, form)]


TEXTS = {
    Format.JSON: [
        '{"a":[1,"x\\"]"]}',
        "[",
        "]",
        ",",
        "{",
        "}",
        '"entries": [',
        '"k": {"sites": [], "lattice": {}}',
        " \n",
        "7",
        "é",
    ],
    Format.JSONL: ['{"a": 1}', "\n", " ", "junk", "\r\n"],
    Format.CSV: ["a,b", "\n", '"', '"x\ny"', ",", '""', "\r\n", "data_x", "# c\n"],
    Format.CIF: ["data_a\n", "_cell_length_a 1\n", "\n;\n", "data_b\n_atom_site_x 1\n", "#\n", "x"],
    Format.EXTXYZ: ["2\n", "c\n", "H 0 0 0\n", "\n", "junk\n", "1\nc\nH 0 0 0\n"],
}


@pytest.mark.parametrize("form", list(TEXTS))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cutting_does_not_depend_on_how_much_is_read_at_once(form: Format, data: st.DataObject) -> None:
    content = "".join(data.draw(st.lists(st.sampled_from(TEXTS[form]), max_size=25))).encode()
    whole = cut(content, form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "READ_BYTES", data.draw(st.integers(1, 9)))
        assert cut(content, form) == whole
    assert [row[0] for row in whole] == list(range(len(whole)))


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.lists(st.text(st.sampled_from('ab,;"\n\r é'), max_size=8), min_size=3, max_size=3), max_size=6),
    quoting=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
)
def test_rows_are_those_that_python_writes(rows: list[list[str]], quoting: int) -> None:
    text = io.StringIO(newline="")
    writer = csv.writer(text, quoting=quoting)
    writer.writerows([["x", "y", "z"], *rows])
    found = cut(text.getvalue().encode(), Format.CSV)
    assert [next(csv.reader([row[1].decode()])) for row in found] == rows


element = st.integers(1, 100)
fraction = st.floats(0, 1, exclude_max=True, width=32)


@st.composite
def random_structures(draw: st.DrawFn) -> Structure:
    n = draw(st.integers(1, 4))
    numbers = draw(st.lists(element, min_size=n, max_size=n))
    pbc = draw(st.tuples(st.booleans(), st.booleans(), st.booleans()))
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(3, 9, 3)) + rng.uniform(-0.9, 0.9, (3, 3))
    frac = rng.uniform(0, 1, (n, 3)) + np.arange(n)[:, None] * (not any(pbc)) * 3
    if any(pbc):
        return Structure.from_fractional(numbers, cell, frac, pbc)
    return Structure.from_cartesian(numbers, frac @ cell)


def write_back(kind: str, path: Path, images: Sequence[ase.Atoms]) -> Path:
    if kind == "db":
        with ase.db.connect(path / "s.db") as database:
            for atoms in images:
                database.write(atoms)
        return path / "s.db"
    if kind == "extxyz":
        with (path / "s.extxyz").open("w") as file:
            for atoms in images:
                cell = " ".join(map(repr, atoms.cell.array.ravel().tolist()))
                pbc = " ".join("FT"[int(axis)] for axis in atoms.pbc)
                lattice = f'Lattice="{cell}" ' if atoms.pbc.any() else ""
                file.write(f'{len(atoms)}\n{lattice}Properties=species:S:1:pos:R:3 pbc="{pbc}"\n')
                for symbol, xyz in zip(atoms.symbols, atoms.positions.tolist(), strict=True):
                    file.write(f"{symbol} {xyz[0]!r} {xyz[1]!r} {xyz[2]!r}\n")
        return path / "s.extxyz"
    found = []
    for atoms in images:
        if atoms.pbc.any():
            lattice = Lattice(atoms.cell.array, pbc=tuple(map(bool, atoms.pbc)))
            found.append(PymatgenStructure(lattice, atoms.numbers, atoms.get_scaled_positions(wrap=False)).as_dict())
        else:
            found.append(Molecule(atoms.numbers, atoms.positions, charge_spin_check=False).as_dict())
    (path / "s.json").write_text(json.dumps(found))
    return path / "s.json"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["db", "extxyz", "pymatgen"])
@settings(max_examples=3, deadline=None)
@given(drawn=st.lists(random_structures(), min_size=8, max_size=20))
def test_a_store_survives_the_way_through_other_libraries(
    tmp_path_factory: pytest.TempPathFactory, kind: str, drawn: list[Structure]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    with (folder / "s.jsonl").open("w") as file:
        for s in drawn:
            axes = s.pbc.astype(int).tolist()
            record = {
                "positions": s.positions.tolist(),
                "numbers": s.atomic_number.tolist(),
                "pbc": axes,
                "cell": s.cell.tolist(),
            }
            file.write(f"{json.dumps(record)}\n")
    run(folder / "s.jsonl", folder / "a.zarr")
    first = structures(folder / "a.zarr")
    run(write_back(kind, folder, [s.to_ase() for s in first]), folder / "b.zarr")
    second = structures(folder / "b.zarr")
    assert_same(second, first, atol=1e-12)
    assert [s.content_hash() for s in second] == [s.content_hash() for s in first]


BIG_BYTES = 420_000_000
BIG = """
import json, resource, sys, threading, time
from pathlib import Path
import psutil
from equiscreen.pipeline.featurization.partitions import Plan
from equiscreen.pipeline.sources.discovery import find_files

files = find_files([sys.argv[1]])
begin = psutil.Process().memory_info().rss
peak, done = begin, False
def watch():
    global peak
    while not done:
        peak = max(peak, psutil.Process().memory_info().rss)
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
plan = Plan(files, Path(sys.argv[2]))
for partition in plan:
    partition.content.path.unlink()
done = True; thread.join()
print(json.dumps({"records": plan.n_records, "grown": peak - begin}))
"""


def big_text(kind: str) -> tuple[str, str, str]:
    """The text before the records, the records to repeat, and the text after them."""
    padding = "#" * 4000
    if kind == "csv":
        return "cif\n", "".join(f'"{cif_text(s)}{padding}"\n' for s in STRUCTURES), ""
    if kind == "cif":
        return "", "".join(f"{gemmi_cif(s, 'x')}{padding}\n" for s in STRUCTURES), ""
    if kind == "extxyz":
        return "", "".join(f"{len(s)}\nc\n" + f"Cu 0 0 0 {padding}\n" * len(s) for s in STRUCTURES), ""
    record = json.dumps({"padding": padding, "structure": pymatgen_dict(STRUCTURES[0])})
    if kind == "jsonl":
        return "", f"{record}\n" * len(STRUCTURES), ""
    return f'{{"entries": [{record}', f",{record}" * len(STRUCTURES), "]}"


def write_big(kind: str, path: Path) -> int:
    """Write several hundred MB; returns the number of records."""
    if kind == "parquet":
        table = pa.table({"cif": [cif_text(s) + "#" * 4000 for s in STRUCTURES] * 100})
        with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
            writer.write_table(pa.concat_tables([table] * 150), row_group_size=1 << 30)  # one row group
        return int(table.num_rows) * 150
    before, repeated, behind = big_text(kind)
    times = BIG_BYTES // len(repeated) + 1
    with path.open("w") as file:
        file.write(before)
        for _ in range(times):
            file.write(repeated)
        file.write(behind)
    return times * len(STRUCTURES) + (kind == "json")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "cif", "extxyz", "parquet"])
def test_a_file_larger_than_its_share_of_memory(tmp_path: Path, kind: str) -> None:
    path, pieces = tmp_path / f"big.{kind}", tmp_path / "spool"
    pieces.mkdir()
    n_records = write_big(kind, path)
    size = path.stat().st_size
    command = [sys.executable, "-c", BIG, str(path), str(pieces)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    path.unlink()
    assert found["records"] == n_records
    assert size > 400e6
    assert found["grown"] < 220e6  # half of it is numba's compiler


def test_mlearn_with_its_mapping(tmp_path: Path, data: Path) -> None:
    sources = [data / "mlearn" / f"{element}.json.gz" for element in ("Li", "Mo", "Si", "Ge")]
    report = run(sources, tmp_path / "g.zarr", labels=LabelMapping.load("mlearn"))
    records = {source.name: json.loads(gzip.decompress(source.read_bytes())) for source in sources}
    assert report.read == sum(map(len, records.values())) == 241 + 194 + 214 + 228
    assert report.failed == 0
    store = GraphStore(tmp_path / "g.zarr")
    origins = zip(store.column("source").tolist(), store.column("source_index").tolist(), strict=True)
    rows = [records[source][index] for source, index in origins]
    found = structures(tmp_path / "g.zarr")
    expected = [from_pymatgen(PymatgenStructure.from_dict(row["structure"])) for row in rows[::20]]
    assert_same(found[::20], expected)
    block = store.block(0, len(store))
    assert block.structure_labels["energy"].tolist() == [row["outputs"]["energy"] for row in rows]
    assert np.array_equal(block.atom_labels["forces"], np.concatenate([row["outputs"]["forces"] for row in rows]))


def test_molecules_of_acetylacetone(tmp_path: Path, data: Path) -> None:
    sources = [data / "acac" / "train_300K.xyz", data / "acac" / "isolated_atoms.xyz"]
    images = [atoms for source in sources for atoms in ase.io.read(source, ":")]
    assert run(sources, tmp_path / "g.zarr").stored == len(images)
    assert_same(structures(tmp_path / "g.zarr"), [Structure.from_ase(atoms) for atoms in images])
    block = GraphStore(tmp_path / "g.zarr").block(0, len(images))
    assert np.allclose(block.structure_labels["energy"], [atoms.get_potential_energy() for atoms in images])


def tensor_rows(path: Path) -> list[dict[str, str]]:
    """The table after the comment in the first line; pandas handles a first column without a name."""
    with gzip.open(path, "rt", newline="") as file:
        assert file.readline().startswith("#")
        return pd.read_csv(file, dtype=str).to_dict("records")


@pytest.mark.parametrize(
    ("name", "label", "column"),
    [
        ("dielectric_constant", "dielectric:3x3=e_total", "e_total"),
        ("elastic_tensor", "elastic:6x6=elastic_tensor[GPa]", "elastic_tensor"),
    ],
)
def test_tensors_behind_a_comment(tmp_path: Path, data: Path, name: str, label: str, column: str) -> None:
    source = data / "tensors" / f"{name}.csv.gz"
    rows = tensor_rows(source)
    mapping = LabelMapping().with_inline([label])
    options = ReadOptions(structure_field="poscar")
    report = run(source, tmp_path / "g.zarr", labels=mapping, options=options, id_field="material_id")
    assert report.read == len(rows)
    assert report.failed == 0
    store = GraphStore(tmp_path / "g.zarr")
    block, by_id = store.block(0, len(store)), {row["material_id"]: row for row in rows}
    tensors = block.structure_labels[label.split(":", maxsplit=1)[0]]
    for place in range(0, len(store), 97):
        row = by_id[ids(tmp_path / "g.zarr")[place]]
        assert np.allclose(tensors[place], json.loads(row[column]), rtol=1e-12)
        assert_same([block.structure(place)], [from_pymatgen(Poscar.from_str(row["poscar"]).structure)])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mp_20_val", "mpts_52_val"])
def test_crystals_of_the_materials_project(tmp_path: Path, data: Path, name: str) -> None:
    source = data / "mp" / f"{name}.csv.gz"
    table = pd.read_csv(source)
    report = run(source, tmp_path / "g.zarr", limit=None)
    assert report.read == len(table)
    assert report.failed == 0
    store = GraphStore(tmp_path / "g.zarr")
    found = structures(tmp_path / "g.zarr")
    rows = store.column("source_index").tolist()
    for place in range(0, len(found), 101):
        expected = PymatgenStructure.from_str(table["cif"][rows[place]], fmt="cif")
        assert_same_distances([found[place]], [from_pymatgen(expected)])
