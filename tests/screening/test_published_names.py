"""Stored and printed text holds no secrets of URLs and no local folders, whatever the sources are."""

from __future__ import annotations

import functools
import http.server
import json
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import CompletedProcess
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import zarr
from equiscreen.pipeline import GraphStore
from equiscreen.pipeline.store.graph_store import open_root
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores
from equiscreen.screening.dataset.reader import ScoresReader
from equiscreen.screening.dataset.scores import SCORES_SCHEMA

from ..conftest import ELEMENTS, cif_text

PASSWORD, SIGNATURE = "SECRETpassword", "SECRETsignature"
QUERY = f"X-Amz-Signature={SIGNATURE}&x=1"
Run = Callable[..., CompletedProcess[str]]


class _Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder for signed requests; unsigned requests are forbidden."""

    def send_head(self) -> object:  # type: ignore[override]
        if SIGNATURE not in urlsplit(self.path).query:
            self.send_error(403)
            return None
        return super().send_head()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the URL of a server for it, with a password."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(_Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield folder, f"http://me:{PASSWORD}@127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def everything_in(folder: Path) -> str:
    """All bytes of all files, and all values of all arrays and tables, which are compressed, as text."""
    found = [path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file()]
    for root in (path.parent for path in folder.rglob("zarr.json") if path.is_file()):
        group = json.loads((root / "zarr.json").read_text())
        if group["node_type"] == "group":
            found += [str(np.asarray(array[:]).tolist()) for _, array in zarr.open_group(root, mode="r").arrays()]
    found += [str(pq.read_table(path).to_pylist()) for path in folder.rglob("*.parquet")]
    return "\n".join(found)


def check_clean(text: str, *folders: Path) -> None:
    for secret in ("SECRET", *map(str, folders)):
        assert secret not in text, text[max(0, text.index(secret) - 200) : text.index(secret) + 200]


@pytest.mark.filterwarnings("error")
def test_presigned_urls_from_files_to_the_report(
    served: tuple[Path, str],
    exported: Callable[[str], Path],
    command_line: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, url = served
    for place, structure in enumerate(probe_structures(ELEMENTS, 3, seed=5)):
        (folder / f"c{place}.cif").write_text(cif_text(structure))
    (folder / "same.cif").write_text((folder / "c0.cif").read_text())
    (folder / "bad.cif").write_text("data_x\n_cell_length_a 4\n")
    with zipfile.ZipFile(folder / "z.zip", "w") as archive:
        archive.write(folder / "bad.cif", "in/worse.cif")
        archive.writestr("in/d.cif", cif_text(probe_structures(ELEMENTS, 1, seed=6)[0]))
    sources = [f"{url}/{name}.cif?{QUERY}" for name in ("c0", "c1", "c2", "same", "bad")]
    sources.append(f"{url}/z.zip?{QUERY}")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(tmp_path)  # the outputs are not in the folder that the commands are run in
    words = ("screen", *sources, "--model", exported("float32"), "--allow-extrapolation", "--scheduler", "threads")
    screened = command_line(*words, "--out", work / "s.zarr")
    assert screened.returncode == 0, screened.stderr
    assert "read 7 = stored 4 + failed 2 + duplicate 1" in screened.stderr
    done = [screened, command_line("hull", work / "s.zarr")]
    select = command_line(
        "select",
        work / "s.hull.zarr",
        "--out",
        work / "best",
        "--format",
        "cif,extxyz,parquet,vasp,zarr",
        "--by",
        "energy",
    )
    done += [select, command_line("report", work / "s.hull.zarr"), command_line("info", work / "s.hull.zarr")]
    done += [command_line(*words, "--out", work / "s.zarr", "--overwrite")]
    assert "the existing store is reused" in done[-1].stderr
    assert [one.returncode for one in done] == [0] * len(done), [one.stderr for one in done]
    assert open_scores(work / "s.zarr")["structure_id"].values.tolist() == ["c0", "c1", "c2", "d"]
    failed = GraphStore(work / "s.graphs.zarr").table("failures.parquet").to_pylist()
    assert [row["structure_id"] for row in failed] == ["bad", "worse"]
    duplicate = GraphStore(work / "s.graphs.zarr").table("duplicates.parquet").to_pylist()
    assert [row["structure_id"] for row in duplicate] == ["same"]
    check_clean(everything_in(work), tmp_path)
    check_clean("".join(one.stdout + one.stderr for one in done))


@pytest.mark.parametrize(
    "source",
    [
        "{url}/none.cif?{query}",
        "{url}/none file.cif?{query} and more",
        "http://me:{password}@127.0.0.1:1/a.cif?{query}",
        "http://me:{password}/SECRET2@127.0.0.1/a.cif",
        "http://me:{password}@[::1/a.cif?{query}",
        "zip://a.cif::{url}/none.zip?{query}",
        pytest.param("s3://KEY:{password}@bucket/a.cif", marks=pytest.mark.slow),
        pytest.param("none://me:{password}@host/a.cif?{query}", marks=pytest.mark.slow),
        pytest.param("optimade:http://me:{password}@127.0.0.1:1/v1?api_key={password}", marks=pytest.mark.slow),
        'optimade:http://127.0.0.1:1/v1?filter=elements HAS "Al"&api_key={password}',
        "http://me:{password}@127.0.0.1:1/g.zarr?{query}",
    ],
)
def test_no_error_quotes_a_secret(
    source: str,
    served: tuple[Path, str],
    exported: Callable[[str], Path],
    command_line: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("equiscreen.pipeline.sources.optimade_client.MAX_WAIT_S", 0)
    given = source.format(url=served[1], query=QUERY, password=PASSWORD)
    for verb in (("screen", "--model", exported("float32")), ("featurize",), ("info",)):
        out = () if verb[0] == "info" else ("--out", "x.zarr", "--scheduler", "threads")
        done = command_line(verb[0], given, *verb[1:], *out)
        assert done.returncode != 0
        check_clean(done.stdout + done.stderr)
        assert "Traceback" not in done.stderr
    check_clean("".join(map(str, tmp_path.rglob("*"))))


def test_a_store_in_an_archive_is_recorded_without_its_folder(
    exported: Callable[[str], Path], command_line: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    (files / "a.cif").write_text(cif_text(probe_structures(ELEMENTS, 1, seed=7)[0]))
    monkeypatch.chdir(tmp_path)
    assert command_line("featurize", "files", "--out", "g.zarr", "--cutoff", "4.5", "--scheduler", "threads")
    with zipfile.ZipFile(tmp_path / "files" / "g.zip", "w") as archive:
        for path in (tmp_path / "g.zarr").rglob("*"):
            archive.write(path, path.relative_to(tmp_path))
    (tmp_path / "work").mkdir()
    store = f"zip://g.zarr::{tmp_path}/files/g.zip"
    model = exported("float32")
    done = command_line(
        "screen", store, "--model", model, "--out", tmp_path / "work" / "s.zarr", "--scheduler", "threads"
    )
    assert done.returncode == 0, done.stderr
    check_clean(everything_in(tmp_path / "work"), tmp_path)
    recorded = open_root(tmp_path / "work" / "s.zarr", SCORES_SCHEMA).attrs["graph_store"]
    assert recorded["path"] == "zip://g.zarr::../files/g.zip"  # type: ignore[index,call-overload]
    monkeypatch.chdir("/")
    assert len(ScoresReader(tmp_path / "work" / "s.zarr").graphs) == 1


@pytest.mark.parametrize(
    "words",
    [
        (
            "screen",
            "g.zarr",
            "--model",
            "m.onnx",
            "--model",
            "https://me:SECRET@host/m.onnx?a=SECRET",
            "--out",
            "s.zarr",
        ),
        ("relax", "g.zarr", "--model", "https://me:SECRET@host/m.onnx?a=SECRET", "--out", "r.zarr"),
        ("select", "s.zarr", "--out", "s3://KEY:SECRET@bucket/best"),
        ("export", "https://me:SECRET@host/m.ckpt", "--out", "m.onnx"),
        ("train", "g.zarr", "--out", "gs://bucket/run?a=SECRET"),
    ],
)
def test_a_url_where_a_path_must_be_makes_no_folder(
    words: tuple[str, ...], command_line: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = command_line(*words)
    assert done.returncode == 1
    assert "is a URL, but only local paths can be used here" in done.stderr
    check_clean(done.stdout + done.stderr)
    assert not list(tmp_path.iterdir())
