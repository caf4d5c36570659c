"""The id of a record does not depend on its fate: stored, failed while it was read or featurized, or never parsed."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path

import ase.db
import ase.io
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import GraphStore, LabelMapping, ReadOptions, featurize
from equiscreen.pipeline.featurization.partitions import Plan
from equiscreen.pipeline.featurization.task import FeaturizeSettings, FeaturizeTask, featurize_partition
from equiscreen.pipeline.runs.parts import read_part
from equiscreen.pipeline.sources.discovery import find_files
from equiscreen.pipeline.structures.random_crystals import probe_structures

from ...conftest import ELEMENTS, cif_text, pymatgen_dict

STRUCTURES = probe_structures(ELEMENTS, 3, seed=22)
NAMES = ["mp-7", "mp-8", "mp-9"]
KINDS = [
    "CIFs",
    "POSCARs",
    "zip of CIFs",
    "CSV",
    "JSON object",
    "JSON list",
    "JSON lines",
    "OPTIMADE",
    "extxyz",
    "parquet",
    "ASE database",
    "names with ::",
]


def write(kind: str, folder: Path) -> list[Path]:  # noqa: C901, PLR0912 - one branch per kind
    """Files with the structures, under the names."""
    pairs = list(zip(NAMES, STRUCTURES, strict=True))
    if kind in ("CIFs", "names with ::"):
        paths = [folder / (f"{name}.cif" if kind == "CIFs" else f"a::{name}.cif") for name in NAMES]
        for path, structure in zip(paths, STRUCTURES, strict=True):
            path.write_text(cif_text(structure))
        return paths
    if kind == "POSCARs":
        for name, structure in pairs:
            ase.io.write(folder / f"{name}.vasp", structure.to_ase(), format="vasp")
        return [folder / f"{name}.vasp" for name in NAMES]
    path = folder / "s"
    if kind == "zip of CIFs":
        with zipfile.ZipFile(path.with_suffix(".zip"), "w") as archive:
            for name, structure in pairs:
                archive.writestr(f"in/{name}.cif", cif_text(structure))
        return [path.with_suffix(".zip")]
    if kind == "CSV":
        rows = "".join(f'"{name}","{cif_text(structure)}"\n' for name, structure in pairs)
        path.write_text(f"material_id,cif\n{rows}")
    elif kind == "JSON object":
        path.write_text(json.dumps({name: pymatgen_dict(structure) for name, structure in pairs}))
    elif kind in ("JSON list", "JSON lines"):
        records = [json.dumps({"material_id": name, "structure": pymatgen_dict(one)}) for name, one in pairs]
        path.write_text(f"[{', '.join(records)}]" if kind == "JSON list" else "\n".join(records))
    elif kind == "OPTIMADE":
        path.write_text("\n".join(json.dumps(optimade(name, structure)) for name, structure in pairs))
    elif kind == "extxyz":
        images = [structure.to_ase() for structure in STRUCTURES]
        for name, atoms in zip(NAMES, images, strict=True):
            atoms.info["material_id"] = name
        ase.io.write(path, images, format="extxyz")
    elif kind == "parquet":
        rows = [{"material_id": name, "cif": cif_text(structure)} for name, structure in pairs]
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = path.with_suffix(".db")
        with ase.db.connect(path) as database:
            for name, structure in pairs:
                database.write(structure.to_ase(), material_id=name)
    return [path]


def optimade(name: str, structure: object) -> dict[str, object]:
    atoms = structure.to_ase()  # type: ignore[attr-defined]
    symbols = atoms.get_chemical_symbols()
    attributes = {
        "lattice_vectors": atoms.cell.tolist(),
        "cartesian_site_positions": atoms.positions.tolist(),
        "species_at_sites": symbols,
        "species": [{"name": x, "chemical_symbols": [x], "concentration": [1]} for x in sorted(set(symbols))],
        "dimension_types": [1, 1, 1],
        "nsites": len(symbols),
        "structure_features": [],
    }
    return {"type": "structures", "id": name, "attributes": attributes}


@pytest.mark.parametrize("kind", KINDS)
def test_the_id_of_a_record_is_the_same_whatever_happens_to_it(kind: str, tmp_path: Path) -> None:
    files = find_files(write(kind, tmp_path))

    def ids(name: str, *, skip: bool = False, max_atoms: int = 100) -> list[str]:
        folder = tmp_path / name
        folder.mkdir()
        settings = FeaturizeSettings(4.0, LabelMapping().with_ase_defaults(), ReadOptions(), None, max_atoms=max_atoms)
        manifests = [
            featurize_partition(FeaturizeTask(partition, settings, folder, skip=skip))
            for partition in Plan(files, folder)
        ]
        parts = [read_part(folder, manifest.key, ("structure_id", "failure_id")) for manifest in manifests]
        return [str(one) for part in parts for one in (*part["structure_id"], *part["failure_id"])]

    expected = [f"a::{name}" for name in NAMES] if kind == "names with ::" else NAMES
    assert ids("stored") == expected
    assert ids("failed", max_atoms=0) == expected
    assert ids("never parsed", skip=True) == expected


def test_files_that_cannot_be_read_keep_their_ids(tmp_path: Path) -> None:
    good = cif_text(STRUCTURES[0])
    (tmp_path / "good.cif").write_text(good)
    (tmp_path / "empty.cif").write_text(" ")
    (tmp_path / "cut.cif.gz").write_bytes(gzip.compress(good.encode() * 9)[:-20])
    (tmp_path / "utf16.vasp").write_bytes(good.encode("utf-16"))
    (tmp_path / "noise.cif").write_bytes(np.random.default_rng(0).bytes(99))
    lines = ["2", 'Lattice="4 0 0 0 4 0 0 0 4" Properties=species:S:1:pos:R:3 material_id=mp-1', "Cu 0 0 0", "Cu x 2 2"]
    (tmp_path / "frames.extxyz").write_text("\n".join(lines) + "\n")
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("in/member.cif", good.encode("utf-16"))
    for limit in (None, 50):  # workers open small files themselves, unless the client counts records
        out = tmp_path / f"{limit}.zarr"
        featurize(tmp_path, out, cutoff=4.0, scheduler="threads", limit=limit)
        rows = pq.read_table(out / "failures.parquet").to_pylist()
        found = {row["source"].removeprefix(f"{tmp_path.name}/"): row["structure_id"] for row in rows}
        assert found == {
            "cut.cif.gz": "cut",
            "empty.cif": "empty",
            "frames.extxyz": "mp-1",
            "noise.cif": "noise",
            "utf16.vasp": "utf16",
            "z.zip::in/member.cif": "member",
        }
        assert not any(str(tmp_path) in row["reason"] for row in rows)


@pytest.mark.parametrize(
    "fault", ["column twice", "number with a fraction", "empty", "--id-field absent in one record"]
)
def test_an_id_that_is_none_is_told(fault: str, tmp_path: Path) -> None:
    texts = [json.dumps(pymatgen_dict(structure)).replace('"', '""') for structure in STRUCTURES]
    if fault == "column twice":
        rows = ["id,id,s", f'a,a,"{texts[0]}"', f'b,c,"{texts[1]}"', f'd,e,"{texts[2]}"']
        (tmp_path / "s.csv").write_text("\n".join(rows))
        report = featurize(tmp_path / "s.csv", tmp_path / "g.zarr", scheduler="threads")
        wanted, ids = {"id": 2}, ["a", "s:1", "s:2"]
    else:
        values = {"number with a fraction": 1.5, "empty": ""}
        records = [{"id": name, "s": pymatgen_dict(one)} for name, one in zip(NAMES, STRUCTURES, strict=True)]
        if fault in values:
            records[1]["id"] = values[fault]
        else:
            del records[1]["id"]
        (tmp_path / "s.json").write_text(json.dumps(records))
        field = None if fault in values else "id"
        report = featurize(tmp_path / "s.json", tmp_path / "g.zarr", id_field=field, scheduler="threads")
        wanted, ids = {"id": 1}, [NAMES[0], "s:1", NAMES[2]]
    assert report.unnamed == wanted
    assert f"{wanted['id']} structures have no text or whole number as id" in str(report)
    assert GraphStore(tmp_path / "g.zarr").column("structure_id").tolist() == ids
