"""Names under which stores record files: true, different for different files, and without the user's folders."""

from __future__ import annotations

from pathlib import Path

import pytest
from equiscreen.pipeline.provenance import recorded_path, resolved_path, unrecorded_folders


def recorded(*sources: str) -> list[str]:
    return [
        source.replace(folder, "", 1) if folder else source
        for source, folder in zip(sources, unrecorded_folders(sources), strict=True)
    ]


def test_relative_paths_and_urls_are_recorded_as_given() -> None:
    given = ("a.cif", "../b/*.cif", "s3://bucket/c.cif", "https://host/d.csv.gz", "zip://*.cif::e.zip")
    assert recorded(*given) == list(given)


def test_absolute_paths_lose_the_folder_that_they_share(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert recorded(f"{tmp_path}/a.cif", f"{tmp_path}/sub/b.cif") == ["a.cif", "sub/b.cif"]
    assert recorded("/data/one/POSCAR", "/data/two/POSCAR") == ["one/POSCAR", "two/POSCAR"]
    assert recorded("/data/mp/*.cif", f"{tmp_path}/a.cif") == ["*.cif", "a.cif"]
    assert recorded("file:///data/a.cif", "zip://*.cif::/data/z.zip") == ["a.cif", "zip://*.cif::z.zip"]


@pytest.mark.parametrize(
    ("store", "dataset", "expected"),
    [
        ("g.zarr", "s.zarr", "g.zarr"),
        ("/work/a/g.zarr", "/work/b/s.zarr", "../a/g.zarr"),
        ("/data/g.zarr", "/work/s.zarr", "g.zarr"),
        ("s3://bucket/g.zarr", "/work/s.zarr", "s3://bucket/g.zarr"),
        ("/work/g.zarr", "s3://bucket/s.zarr", "g.zarr"),
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
    assert resolved_path("g.zarr", "https://host/run/s.zarr") == "https://host/run/g.zarr"
    assert resolved_path("s3://bucket/g.zarr", tmp_path / "s.zarr") == "s3://bucket/g.zarr"
