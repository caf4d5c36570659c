"""Names under which stores record files: true, different for different files, and without the user's folders."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from equiscreen.pipeline.provenance import recorded_path, resolved_path, unrecorded_folders, without_folder
from equiscreen.pipeline.sources.discovery import find_files
from equiscreen.screening.scoring.screen import command_line


def recorded(*sources: str) -> list[str]:
    return [without_folder(source, folder) for source, folder in zip(sources, unrecorded_folders(sources), strict=True)]


def test_relative_paths_and_urls_are_recorded_as_given() -> None:
    given = ("a.cif", "../b/*.cif", "s3://bucket/c.cif", "https://host/d.csv.gz", "zip://*.cif::e.zip")
    assert recorded(*given) == list(given)


def test_absolute_paths_lose_the_folder_that_they_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert recorded(f"{tmp_path}/a.cif", f"{tmp_path}/sub/b.cif") == ["a.cif", "sub/b.cif"]
    assert recorded("/data/one/POSCAR", "/data/two/POSCAR") == ["one/POSCAR", "two/POSCAR"]
    assert recorded("/data/mp/*.cif", f"{tmp_path}/a.cif") == ["*.cif", "a.cif"]
    assert recorded("file:///data/a.cif", "zip://*.cif::/data/z.zip") == ["a.cif", "zip://*.cif::z.zip"]
    assert recorded("/data//mp/a.cif", "/data/./b.cif", "//data/c.cif") == ["mp/a.cif", "b.cif", "c.cif"]
    assert recorded("zip://in/data/b.cif::/data/z.zip") == ["zip://in/data/b.cif::z.zip"]
    assert recorded("local:///data/a.cif", "file:/data/in/b.cif") == ["a.cif", "in/b.cif"]
    assert recorded("/data/x::y.cif", "simplecache::/data/b.cif") == ["x::y.cif", "simplecache::b.cif"]
    monkeypatch.chdir("/")
    assert recorded("/data/a.cif", "zip://*.cif::/z.zip") == ["data/a.cif", "zip://*.cif::z.zip"]


def test_a_folder_whose_name_is_not_utf8_is_not_recorded(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    (folder / "a.cif").write_text("data_a")
    assert [file.name for file in find_files([folder / "a.cif"])] == ["a.cif"]


def test_many_sources_take_no_time() -> None:
    begin = time.process_time()
    recorded(*(f"/data/{number}.cif" for number in range(20_000)))
    assert time.process_time() - begin < 5  # half a second; a minute if every path is compared with every other


def test_a_command_names_no_folder() -> None:
    given = [
        "screen",
        "/data//g.zarr",
        "--model=/home/me/m.onnx",
        "--model",
        "/home/me/n.onnx",
        "--limit=5",
        "--append",
    ]
    assert command_line(given) == "equiscreen screen g.zarr --model=m.onnx --model n.onnx --limit=5 --append"


@pytest.mark.parametrize(
    ("store", "dataset", "expected"),
    [
        ("g.zarr", "s.zarr", "g.zarr"),
        ("/work/a/g.zarr", "/work/b/s.zarr", "../a/g.zarr"),
        ("/data/g.zarr", "/work/s.zarr", "g.zarr"),
        ("s3://bucket/g.zarr", "/work/s.zarr", "s3://bucket/g.zarr"),
        ("/work/g.zarr", "s3://bucket/s.zarr", "g.zarr"),
        ("/work/a/g.zarr", "file:///work/s.zarr", "a/g.zarr"),
        ("zip://g.zarr::/work/a/g.zip", "/work/b/s.zarr", "zip://g.zarr::../a/g.zip"),
        ("zip://g.zarr::file:///work/a/g.zip", "/work/s.zarr", "zip://g.zarr::a/g.zip"),
        ("zip://g.zarr::/data/g.zip", "/work/s.zarr", "zip://g.zarr::g.zip"),
        ("zip://g.zarr::https://me:pw@host/g.zip", "/work/s.zarr", "zip://g.zarr::https://***@host/g.zip"),
    ],
)
def test_a_dataset_records_where_its_store_is_from_its_own_place(store: str, dataset: str, expected: str) -> None:
    assert recorded_path(store, dataset) == expected


def test_what_is_recorded_is_found_again_from_any_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("graphs", "scores"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "graphs")
    found = recorded_path("g.zarr", "../scores/s.zarr")
    monkeypatch.chdir("/")
    assert resolved_path(found, tmp_path / "scores" / "s.zarr") == str(tmp_path / "graphs" / "g.zarr")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "link").symlink_to(tmp_path / "scores")
    for dataset in (tmp_path / "elsewhere" / "link" / "s.zarr", f"file://{tmp_path}/scores/s.zarr"):
        assert recorded_path(tmp_path / "graphs" / "g.zarr", dataset) == found
        assert resolved_path(found, dataset) == str(tmp_path / "graphs" / "g.zarr")
    chained = f"zip://g.zarr::{tmp_path}/graphs/g.zip"
    dataset = tmp_path / "scores" / "s.zarr"
    assert resolved_path(recorded_path(chained, dataset), dataset) == chained
    assert resolved_path("g.zarr", "https://host/run/s.zarr") == "https://host/run/g.zarr"
    assert resolved_path("s3://bucket/g.zarr", tmp_path / "s.zarr") == "s3://bucket/g.zarr"
