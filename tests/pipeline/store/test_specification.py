"""Compares docs/store.md with the stores that are written, using a reader based on that page alone.

The reader, down to the comment that marks its end, uses neither equiscreen nor zarr.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import ase
import ase.io
import google_crc32c
import numcodecs.blosc
import numpy as np
import pyarrow.parquet as pq
import pytest
from equiscreen.pipeline import GraphStore, LabelMapping, Structure, featurize
from equiscreen.pipeline.featurization.merge import merge
from equiscreen.pipeline.labels.mapping import LabelRule
from equiscreen.pipeline.labels.quantities import Quantity
from equiscreen.pipeline.store import compaction
from equiscreen.pipeline.structures.random_crystals import probe_structures
from numpy.typing import NDArray

from ...conftest import ELEMENTS, ROOT, pymatgen_dict, write_json

PAGE = (ROOT / "docs" / "store.md").read_text()
ABSENT = 2**64 - 1
SHIFT = 0.118033988749895


def table(first: str) -> list[list[str]]:
    """Rows of the table in the page whose first column is headed `first`, without backticks."""
    lines = PAGE.split(f"\n| {first} |", 1)[1].splitlines()[2:]
    rows = itertools.takewhile(lambda line: line.startswith("|"), lines)
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split(" |")] for row in rows]


@dataclass(frozen=True)
class PlainArray:
    """One array of a store, read as the page describes its metadata, shards and codecs."""

    folder: Path

    @cached_property
    def metadata(self) -> dict[str, Any]:
        return json.loads((self.folder / "zarr.json").read_text())

    @property
    def sharding(self) -> dict[str, Any]:
        (codec,) = self.metadata["codecs"]
        assert codec["name"] == "sharding_indexed"
        assert codec["configuration"]["index_location"] == "end"
        return codec["configuration"]

    @property
    def attrs(self) -> dict[str, Any]:
        return self.metadata["attributes"]

    @property
    def dims(self) -> list[str]:
        return self.metadata["dimension_names"]

    @property
    def dtype(self) -> str:
        return self.metadata["data_type"]

    @property
    def length(self) -> int:
        return self.metadata["shape"][0]

    @property
    def shard_rows(self) -> int:
        return self.metadata["chunk_grid"]["configuration"]["chunk_shape"][0]

    @property
    def chunk_rows(self) -> int:
        return self.sharding["chunk_shape"][0]

    @property
    def n_shards(self) -> int:
        return -(-self.length // self.shard_rows)

    @cached_property
    def values(self) -> NDArray[Any]:
        """All rows; text as an array of objects."""
        if self.n_shards == 0:
            return np.zeros(self.metadata["shape"], dtype=np.dtype(self.dtype).newbyteorder("<"))
        return np.concatenate([self.shard(number) for number in range(self.n_shards)])

    def shard(self, number: int) -> NDArray[Any]:
        """Rows of one shard, without padding."""
        shape = self.metadata["shape"]
        content = self.folder.joinpath("c", str(number), *["0"] * (len(shape) - 1)).read_bytes()
        n_chunks = self.shard_rows // self.chunk_rows
        index = content[-(16 * n_chunks + 4) :]
        places = struct.unpack(f"<{2 * n_chunks}Q", sealed(index))
        rows = min(self.shard_rows, self.length - number * self.shard_rows)
        used = -(-rows // self.chunk_rows)
        chunks = []
        for place, (offset, size) in enumerate(pairs(places)):
            assert (offset == size == ABSENT) == (place >= used)
            if place < used:
                chunks.append(self.decoded(content[offset : offset + size]))
        return np.concatenate(chunks)[:rows]

    def decoded(self, chunk: bytes) -> NDArray[Any]:
        """Rows of one chunk, padding included."""
        content = numcodecs.blosc.decompress(sealed(chunk))
        inner = self.metadata["shape"][1:]
        if self.dtype != "string":
            return np.frombuffer(content, np.dtype(self.dtype).newbyteorder("<")).reshape(self.chunk_rows, *inner)
        (count,) = struct.unpack_from("<I", content)
        place, texts = 4, []
        for _ in range(count):
            (size,) = struct.unpack_from("<I", content, place)
            texts.append(content[place + 4 : place + 4 + size].decode())
            place += 4 + size
        assert (count, place) == (self.chunk_rows, len(content))
        return np.array(texts, dtype=object)


def pairs(values: tuple[int, ...]) -> list[tuple[int, int]]:
    return list(zip(values[::2], values[1::2], strict=True))


def sealed(content: bytes) -> bytes:
    """Content before its trailing checksum, which is verified."""
    assert struct.unpack("<I", content[-4:])[0] == google_crc32c.value(content[:-4])
    return content[:-4]


class PlainStore:
    """A graph store, read as the page describes it."""

    def __init__(self, path: Path) -> None:
        root = json.loads((path / "zarr.json").read_text())
        assert (root["zarr_format"], root["node_type"]) == (3, "group")
        self.path, self.attrs = path, root["attributes"]
        assert self.attrs["schema"] == "equiscreen-graphs/1"
        assert self.attrs["complete"] is True
        self.arrays = {folder.name: PlainArray(folder) for folder in path.iterdir() if folder.is_dir()}
        assert root["consolidated_metadata"]["kind"] == "inline"
        assert root["consolidated_metadata"]["metadata"] == {n: array.metadata for n, array in self.arrays.items()}

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.arrays[name].values

    def __len__(self) -> int:
        return self.arrays["n_atoms"].length

    def roles(self, role: str | None) -> dict[str, PlainArray]:
        return {name: array for name, array in self.arrays.items() if array.attrs.get("role") == role}

    def atoms(self, row: int) -> slice:
        return slice(self["atom_start"][row], self["atom_start"][row] + self["n_atoms"][row])

    def edges(self, row: int) -> slice:
        return slice(self["edge_start"][row], self["edge_start"][row] + self["n_edges"][row])

    def rows_of(self, name: str) -> list[dict[str, Any]]:
        return pq.read_table(self.path / name).to_pylist()


def all_edges(
    cell: NDArray[np.float64], pbc: NDArray[np.bool_], frac: NDArray[np.float64], cutoff: float
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Receivers, images and senders of all edges by brute force, in the order of the page."""
    reach = np.where(pbc, np.ceil(cutoff * np.linalg.norm(np.linalg.inv(cell), axis=0)) + 1, 0).astype(int)
    images = np.array(list(itertools.product(*[range(-size, size + 1) for size in reach])))
    f = (frac[None, None, :] - frac[:, None, None]) + images[None, :, None]  # [receiver, image, sender, 3]
    d = [(f[..., 0] * cell[0, k] + f[..., 1] * cell[1, k]) + f[..., 2] * cell[2, k] for k in range(3)]
    joined = (d[0] * d[0] + d[1] * d[1]) + d[2] * d[2] < cutoff * cutoff
    atom = np.arange(len(frac))
    joined[atom, np.flatnonzero((images == 0).all(axis=1))[0], atom] = False
    receiver, image, sender = np.nonzero(joined)
    return receiver, images[image], sender


def hashed_bytes(pbc: Any, numbers: Any, cell: Any, frac: Any) -> bytes:
    """Input of the content hash."""
    whole_cell, whole = (np.rint(np.array(x, dtype="<f8") / 1e-8 + SHIFT).astype("<i8") for x in (cell, frac))
    whole[:, np.array(pbc)] %= 100_000_000
    head = struct.pack("<I3?", len(numbers), *pbc) + np.array(numbers, dtype="u1").tobytes()
    return head + whole_cell.tobytes() + whole.tobytes()


def content_hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16, person=b"equiscreen-1").digest()


def rows_digest(values: NDArray[Any]) -> str:
    content = "\0".join(values).encode() if values.dtype == object else np.ascontiguousarray(values).tobytes()
    return hashlib.sha256(content).hexdigest()


def checksums(store: PlainStore) -> bytes:
    """Expected content of checksums.json."""
    found = {
        f"{name}/{number}": rows_digest(array.shard(number))
        for name, array in store.arrays.items()
        for number in range(array.n_shards)
    }
    lines = [f"{json.dumps(key)}: {json.dumps(found[key])}" for key in sorted(found)]
    return ("{\n" + ",\n".join(lines) + "\n}").encode("ascii")


# End of the reader. The rest writes the stores, reads them with it and compares.
CUTOFF = 4.0
VASP_ORDER = ("xx", "yy", "zz", "xy", "yz", "zx")
ELASTIC = np.arange(36.0).reshape(6, 6)
MAPPING = LabelMapping(
    labels={
        "elastic": (LabelRule(path="elastic", unit="GPa", order=VASP_ORDER),),
        "piezo": (LabelRule(path="piezo"),),
        "born": (LabelRule(path="born", unit="e"),),
        "spectrum": (LabelRule(path="spectrum"),),
        "bands": (LabelRule(path="bands"),),
        "moments": (LabelRule(path="moments"),),
    },
    quantities={
        "elastic": Quantity(shape=(6, 6)),
        "piezo": Quantity(shape=(3, 6)),
        "born": Quantity(per="atom", shape=(3, 3)),
        "spectrum": Quantity(shape=(5,)),
        "bands": Quantity(shape=(2, 65), tensor=False),
        "moments": Quantity(shape=(3, 3), tensor=False),
    },
    columns=("note", "größe"),
)


def images() -> list[ase.Atoms]:
    """Crystals, molecules, a slab and a chain, with a failure, a duplicate, and a duplicate with other labels."""
    rng = np.random.default_rng(5)
    crystals = [structure.to_ase() for structure in probe_structures(ELEMENTS, 5, seed=8)]
    crystals[0].positions += crystals[0].cell.array.sum(axis=0) * 2 - 1e-17
    skewed = ase.Atoms("CuAu", cell=[[2.2, 0, 0], [9.1, 2.3, 0], [-7.7, 5.2, 2.6]], pbc=True)
    skewed.set_scaled_positions([[0, 0, 0], [0.45, 0.5, 0.55]])
    at_cutoff = ase.Atoms("Cu", cell=np.eye(3) * 2.0, pbc=True)  # every second shell at 4 angstrom exactly
    water = ase.Atoms("OH2", positions=[[-7, 0, 3], [-6.04, 0, 3], [-7.24, 0.93, 3]])
    slab = ase.Atoms("Cu2", positions=[[0, 0, -9], [3.9, 1.3, -7.2]], cell=[2.6, 2.6, 0], pbc=(True, True, False))
    kept = ase.Atoms("Cu2", positions=[[0, 0, 31], [1.3, 1.3, -2]], cell=[2.6, 2.6, 20], pbc=(True, True, False))
    chain = ase.Atoms("Au", positions=[[1, 2, 3]], cell=[[0, 0, 0], [1, 2, 2], [0, 0, 0]], pbc=(False, True, False))
    alone = ase.Atoms("Al", positions=[[0, 0, 0]])
    found = [*crystals, skewed, at_cutoff, water, slab, kept, chain, alone]
    for atoms in found[:-1]:
        atoms.info.update(energy=rng.normal(), note=f"a {len(atoms)} é\u4e2d\U0001f600")
        atoms.arrays["forces"] = rng.normal(size=(len(atoms), 3))
        if atoms.cell.any():
            atoms.info["stress"] = rng.normal(size=(3, 3))
    other_labels = crystals[1].copy()
    other_labels.info["energy"] += 1.0
    at_one_place = ase.Atoms("Cu2", positions=[[0, 0, 0], [0.01, 0, 0]])
    return [*found, crystals[1].copy(), at_one_place, other_labels]


def records() -> list[dict[str, object]]:
    structures = probe_structures(ELEMENTS, 3, seed=9)
    plain = [{"material_id": "same", "structure": pymatgen_dict(structure)} for structure in structures]
    plain[1] |= {
        "note": "one",
        "elastic": ELASTIC.tolist(),
        "piezo": [[1.0] * 6] * 3,
        "born": np.arange(9.0 * len(structures[1])).reshape(-1, 3, 3).tolist(),
        "spectrum": [1.0, 2.0, 3.0, 4.0, 5.0],
        "bands": np.arange(130.0).reshape(2, 65).tolist(),
        "moments": np.eye(3).tolist(),
        "größe": {"a": [1, 2]},
    }
    return [*plain, {"material_id": "none", "note": "no structure"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of every origin, and one with small shards."""
    path = tmp_path_factory.mktemp("specification")
    ase.io.write(path / "a.extxyz", images(), format="extxyz")
    ase.io.write(path / "alone.extxyz", images()[-4], format="extxyz")
    write_json(path / "b.json", records())
    sources = [path / "a.extxyz", path / "b.json"]
    settings = {"cutoff": CUTOFF, "labels": MAPPING, "scheduler": "threads"}
    featurize(sources, path / "whole.zarr", **settings)
    featurize(sources, path / "again.zarr", **settings)
    featurize(sources[1], path / "appended.zarr", **settings)
    featurize(sources[0], path / "appended.zarr", append=True, labels=LabelMapping(), scheduler="threads")
    featurize(path / "alone.extxyz", path / "alone.zarr", cutoff=CUTOFF, scheduler="threads")
    merge([path / "alone.zarr", path / "appended.zarr"], path / "merged.zarr", scheduler="threads")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "CHUNK_ROWS", {"structure": 2, "atom": 8, "edge": 64})
        patch.setattr(compaction, "SHARD_CHUNKS", 3)
        featurize(sources, path / "small.zarr", **settings)
    return path


@pytest.fixture(scope="module", params=["whole", "small", "appended", "merged", "alone"])
def store(folder: Path, request: pytest.FixtureRequest) -> PlainStore:
    return PlainStore(folder / f"{request.param}.zarr")


@pytest.fixture(scope="module")
def whole(folder: Path) -> PlainStore:
    return PlainStore(folder / "whole.zarr")


def test_the_stores_hold_what_the_page_speaks_of(folder: Path, whole: PlainStore) -> None:
    assert whole.attrs["counts"] == {"read": 19, "stored": 16, "failed": 2, "duplicate": 1}
    bits = np.bitwise_or.reduce(whole["status"])
    assert bits == 1 | 2 | 4 | 8
    assert {tuple(row) for row in whole["pbc"].tolist()} >= {
        (True, True, True),
        (True, True, False),
        (False, True, False),
        (False, False, False),
    }
    assert np.abs(whole["image"]).max() > 3
    small = PlainStore(folder / "small.zarr")
    assert small.arrays["image"].n_shards > 2
    assert small.arrays["structure_id"].n_shards > 1
    assert PlainStore(folder / "alone.zarr").arrays["image"].length == 0


def test_the_reader_of_the_page_reads_what_zarr_reads(store: PlainStore) -> None:
    expected = GraphStore(store.path)
    assert expected.specs.keys() == store.arrays.keys()
    for name, array in store.arrays.items():
        values = expected.column(name)
        assert array.values.shape == values.shape, name
        if array.dtype == "string":
            assert array.values.tolist() == values.tolist(), name
        else:
            assert array.values.dtype == values.dtype, name
            assert array.values.tobytes() == np.ascontiguousarray(values).tobytes(), name


def test_the_page_lists_every_array_with_its_dims_type_and_units(store: PlainStore) -> None:
    documented = {name: (dims.split(", "), dtype, units) for name, dims, dtype, units, _ in table("array")}
    found = {n: (a.dims, a.dtype, a.attrs.get("units", "")) for n, a in store.roles(None).items()}
    assert found == documented
    assert all(array.attrs["description"] for array in store.arrays.values())
    labels = {name: (dims.split(", "), units) for name, dims, units, _ in table("label")}
    known = {n: (a.dims, a.attrs["units"]) for n, a in store.roles("label").items() if n in labels}
    assert known == {name: labels[name] for name in known}
    columns = store.roles("column").values()
    assert all((array.dims, array.dtype) == (["structure"], "string") for array in columns)
    sizes = dict.fromkeys(("cartesian", "cartesian_2", "lattice_vector"), 3) | {"hash_byte": 16, "voigt": 6}
    for array in store.arrays.values():
        for dim, size in zip(array.dims[1:], array.metadata["shape"][1:], strict=True):
            assert sizes.get(dim, size) == size


def test_labels_are_laid_out_as_the_page_says(whole: PlainStore) -> None:
    dims = {name: array.dims for name, array in whole.roles("label").items()}
    assert dims["elastic"] == ["structure", "voigt", "voigt_2"]
    assert dims["piezo"] == ["structure", "cartesian", "voigt"]
    assert dims["born"] == ["atom", "cartesian", "cartesian_2"]
    assert dims["spectrum"] == ["structure", "spectrum_component"]
    assert dims["moments"] == ["structure", "moments_component", "moments_component_2"]
    assert whole.arrays["elastic"].attrs["units"] == "GPa"
    assert "units" not in whole.arrays["spectrum"].attrs
    (row,) = np.flatnonzero((whole["source"] == "b.json") & (whole["source_index"] == 1))
    place = {"xx": 0, "yy": 1, "zz": 2, "yz": 4, "xz": 5, "xy": 3}  # in the source
    order = [place[name] for name in re.search(r"along `voigt` is ([^;]+);", PAGE)[1].split(", ")]
    assert np.array_equal(whole["elastic"][row], ELASTIC[np.ix_(order, order)])
    assert np.isnan(np.delete(whole["elastic"], row, axis=0)).all()
    assert np.array_equal(whole["born"][whole.atoms(row)].ravel(), np.arange(9.0 * whole["n_atoms"][row]))
    assert np.isnan(whole["born"]).sum() == whole["born"].size - 9 * whole["n_atoms"][row]
    assert whole["größe"].tolist() == ["" if i != row else '{"a": [1, 2]}' for i in range(len(whole))]
    slab = np.flatnonzero((whole["pbc"] == [True, True, False]).all(axis=1))
    assert np.isnan(whole["stress"][slab]).all()


def test_root_attributes_are_those_of_the_page(folder: Path) -> None:
    stores = {name: PlainStore(folder / f"{name}.zarr").attrs for name in ("whole", "appended", "merged")}
    documented = {name: kind for name, kind, _ in table("attribute")}
    kinds = {"string": str, "number": float, "object": dict, "array": list, "boolean": bool}
    for name, attrs in stores.items():
        absent = {"appended": {"merged_from"}, "merged": {"appended_to"}}.get(name, {"appended_to", "merged_from"})
        assert attrs.keys() == documented.keys() - absent - {"labelling_model"}  # that is of the stores of `distill`
        assert all(isinstance(value, kinds[documented[key]]) for key, value in attrs.items())
    recipe_keys = {key for keys, _ in table("key") for key in keys.split(", ")}
    assert stores["whole"]["recipe"].keys() == recipe_keys
    assert stores["merged"]["recipe"].keys() == {"dedup", "limit"}
    (base,) = stores["appended"]["appended_to"]
    first, second = stores["merged"]["merged_from"]
    described = {"store_hash", "inputs_sha256", "inputs", "recipe", "counts"}
    assert base.keys() == first.keys() == described
    assert second.keys() == described | {"appended_to"}
    assert second["store_hash"] == stores["appended"]["store_hash"]
    for part in ("labels", "quantities", "columns", *LabelRule.model_fields, *Quantity.model_fields):
        assert f"`{part}`" in PAGE


def test_inputs_are_identified_as_the_page_says(store: PlainStore, folder: Path) -> None:
    text = json.dumps(store.attrs["inputs"], ensure_ascii=True, separators=(", ", ": "))
    assert store.attrs["inputs_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    if "merged_from" not in store.attrs:
        for name, size, version in store.attrs["inputs"]:
            content = (folder / name).read_bytes()  # absolute paths outside the working folder are shortened
            assert (size, version) == (len(content), f"sha256:{hashlib.sha256(content).hexdigest()}")


def chunk_rows(array: PlainArray, rows: int) -> int:
    """Rows per chunk, computed from `rows`, the value in the page for narrow rows."""
    narrow = int(re.search(r"rows take more than (\d+) bytes", PAGE)[1])
    inner = array.metadata["shape"][1:]
    size = 0 if array.dtype == "string" else np.dtype(array.dtype).itemsize * int(np.prod(inner))
    divisor = next(2**k for k in itertools.count() if size <= narrow * 2**k)
    return max(1, rows // divisor)


def test_chunks_and_codecs_are_those_of_the_page(folder: Path) -> None:
    sizes = {dim: (int(chunk), int(shard)) for dim, chunk, shard in table("first dim")}
    # No store here fills a shard, so the largest size is compared with the constant of the writer.
    assert sizes == {dim: (rows, rows * compaction.SHARD_CHUNKS) for dim, rows in compaction.CHUNK_ROWS.items()}
    for name in ("whole", "merged", "alone"):
        for array in PlainStore(folder / f"{name}.zarr").arrays.values():
            rows, shard = sizes[array.dims[0]]
            chunk = chunk_rows(array, rows)
            assert (chunk == rows) == (array.folder.name != "bands")
            assert array.chunk_rows == chunk
            assert array.shard_rows == min(shard // rows * chunk, chunk * max(1, -(-array.length // chunk)))
            inner = array.metadata["shape"][1:]
            assert array.sharding["chunk_shape"][1:] == inner
            text = array.dtype == "string"
            serializer, blosc, crc = array.sharding["codecs"]
            assert (serializer["name"], blosc["name"], crc["name"]) == (
                "vlen-utf8" if text else "bytes",
                "blosc",
                "crc32c",
            )
            wanted = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle"}
            wanted["typesize"] = 1 if text else np.dtype(array.dtype).itemsize
            assert blosc["configuration"] | wanted == blosc["configuration"]
            assert [codec["name"] for codec in array.sharding["index_codecs"]] == ["bytes", "crc32c"]
            fill = "" if text else "NaN" if array.dtype == "float64" else False if array.dtype == "bool" else 0
            assert array.metadata["fill_value"] == fill
            assert type(array.metadata["fill_value"]) is type(fill)


def test_wide_rows_make_shards_no_larger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    structures = probe_structures(ELEMENTS, 30, seed=4)
    rng = np.random.default_rng(6)
    bands, dos = rng.normal(size=(30, 1000)), [rng.normal(size=(len(structure), 100)) for structure in structures]
    given = [
        {"s": pymatgen_dict(structure), "b": b.tolist(), "d": d.tolist()}
        for structure, b, d in zip(structures, bands, dos, strict=True)
    ]
    given.insert(5, given[2])  # a duplicate, so that a row is skipped
    del given[9]["b"]
    bands[8] = np.nan
    rows = {"structure": 64, "atom": 32, "edge": 64}
    monkeypatch.setattr(compaction, "CHUNK_ROWS", rows)
    monkeypatch.setattr(compaction, "SHARD_CHUNKS", 3)
    mapping = LabelMapping().with_inline(["bands:1000=b", "dos:atomx100=d"])
    write_json(tmp_path / "r.json", given)
    featurize(tmp_path / "r.json", tmp_path / "g.zarr", cutoff=CUTOFF, labels=mapping, scheduler="threads")

    merge([tmp_path / "g.zarr"], tmp_path / "merged.zarr", scheduler="threads")
    for name in ("g", "merged"):
        assert GraphStore(tmp_path / f"{name}.zarr").verify() == []
        store = PlainStore(tmp_path / f"{name}.zarr")
        assert np.array_equal(store["bands"], bands, equal_nan=True)
        assert np.array_equal(store["dos"], np.concatenate(dos))
        assert (store.path / "checksums.json").read_bytes() == checksums(store)
        wide = {"bands": 64 // 16, "dos": 32 // 2}
        assert {n: a.chunk_rows for n, a in store.arrays.items()} == {
            n: wide.get(n, rows[a.dims[0]]) for n, a in store.arrays.items()
        }
        for array in store.roles("label").values():
            assert array.n_shards > 2
            largest = max(array.shard(number).nbytes for number in range(array.n_shards))
            assert largest <= 3 * rows[array.dims[0]] * compaction.NARROW_ROW_BYTES


def test_starts_are_sums_of_counts(store: PlainStore) -> None:
    for start, count, dim in (("atom_start", "n_atoms", "frac_coord"), ("edge_start", "n_edges", "image")):
        ends = np.cumsum(store[count], dtype=np.int64)
        assert np.array_equal(store[start], ends - store[count])
        assert ends[-1] == store.arrays[dim].length
    per_structure = [store["n_neighbors"][store.atoms(row)].sum(dtype=np.int64) for row in range(len(store))]
    assert np.array_equal(per_structure, store["n_edges"])


def test_edges_are_all_pairs_in_the_order_of_the_page(store: PlainStore) -> None:
    for row in range(len(store)):
        atoms, edges = store.atoms(row), store.edges(row)
        geometry = store["cell"][row], store["pbc"][row], store["frac_coord"][atoms]
        receiver, image, sender = all_edges(*geometry, store.attrs["cutoff"])
        count = store["n_neighbors"][atoms]
        assert np.array_equal(np.repeat(np.arange(len(count)), count), receiver)
        assert np.array_equal(store["image"][edges], image)
        assert np.array_equal(store["neighbor"][edges], sender)


def test_every_edge_has_its_opposite(store: PlainStore) -> None:
    for row in range(len(store)):
        count, edges = store["n_neighbors"][store.atoms(row)], store.edges(row)
        found = list(
            zip(
                np.repeat(np.arange(len(count)), count).tolist(),
                store["neighbor"][edges].tolist(),
                map(tuple, store["image"][edges].astype(int).tolist()),
                strict=True,
            )
        )
        opposite = {(j, i, (-a, -b, -c)) for i, j, (a, b, c) in found}
        assert opposite == set(found)
        assert len(opposite) == len(found)


def test_cells_and_coordinates_are_as_the_page_says(whole: PlainStore, folder: Path) -> None:
    given = ase.io.read(folder / "a.extxyz", ":")
    completed = 0
    for row in np.flatnonzero(whole["source"] == "a.extxyz"):
        source = given[whole["source_index"][row]]
        cell, pbc, frac = whole["cell"][row], whole["pbc"][row], whole["frac_coord"][whole.atoms(row)]
        assert np.array_equal(pbc, source.pbc)
        assert np.array_equal(whole["atomic_number"][whole.atoms(row)], source.numbers)
        if not pbc.any():
            assert np.array_equal(cell, np.eye(3))
            assert np.array_equal(frac, source.positions)
            continue
        assert (frac[:, pbc] >= 0).all()
        assert (frac[:, pbc] < 1).all()
        missing = ~source.cell.array.any(axis=1)
        completed += int(missing.sum())
        # If two vectors are missing, they are completed through a decomposition, which rounds.
        assert np.allclose(cell[~missing], source.cell.array[~missing], rtol=0, atol=1e-14)
        assert np.allclose(cell @ cell[missing].T, np.eye(3)[:, missing], rtol=0, atol=1e-14)
        shift = (source.positions - frac @ cell) @ np.linalg.inv(cell)  # whole periodic lattice vectors
        assert np.allclose(shift, np.rint(shift) * pbc, rtol=0, atol=1e-12)
    assert completed == 3  # a slab and a chain


def test_content_hashes_recomputed(store: PlainStore) -> None:
    for row in range(len(store)):
        atoms = store.atoms(row)
        content = hashed_bytes(
            store["pbc"][row], store["atomic_number"][atoms], store["cell"][row], store["frac_coord"][atoms]
        )
        assert content_hash(content) == store["structure_hash"][row].tobytes()


def test_worked_example_of_the_content_hash() -> None:
    text = PAGE.split("Worked example:", 1)[1]
    prose, code = text.split("```text\n", 1)
    content, digest = (part.replace("\n", "").replace(" ", "") for part in code.split("```", 1)[0].split("\n\n"))
    flags, *rows = re.findall(r"\(([^()]+)\)", prose)
    pbc = [flag.strip() == "true" for flag in flags.split(",")]
    numbers = [float(number) for row in rows for number in row.split(",")]
    cell, frac = np.reshape(numbers[:9], (3, 3)), np.reshape(numbers[9:], (-1, 3))
    assert hashed_bytes(pbc, [6, 8], cell, frac).hex() == content
    assert content_hash(bytes.fromhex(content)).hex() == digest
    assert Structure.from_fractional([6, 8], cell, frac, pbc).content_hash().hex() == digest
    assert f"+ {SHIFT}" in PAGE
    assert (np.rint(frac / 1e-8) != np.rint(frac / 1e-8 + SHIFT)).any()  # the example shows whether a reader shifts


def test_status_bits(store: PlainStore) -> None:
    documented = {name: int(bit) for bit, name, _ in table("bit")}
    attrs = store.arrays["status"].attrs
    assert documented == dict(zip(attrs["flag_meanings"].split(), attrs["flag_masks"], strict=True))
    seen: Counter[bytes] = Counter()
    ids = Counter(store["structure_id"].tolist())
    for row, status in enumerate(store["status"].tolist()):
        known = store["structure_hash"][row].tobytes()
        assert bool(status & documented["duplicate_with_other_labels"]) == (seen[known] > 0)
        seen[known] += 1
        assert bool(status & documented["isolated_atoms"]) == (not store["n_neighbors"][store.atoms(row)].all())
        assert bool(status & documented["repeated_id"]) == (ids[store["structure_id"][row]] > 1)


def test_the_seal_recomputed(store: PlainStore) -> None:
    root = json.loads((store.path / "zarr.json").read_text())
    names = root["attributes"]["seal"]["attributes"]
    assert set(names) == set(root["attributes"]) - {"seal"}
    covered = [{name: root["attributes"][name] for name in names}, root["consolidated_metadata"]]
    text = json.dumps(covered, sort_keys=True, separators=(",", ":"))
    assert root["attributes"]["seal"]["sha256"] == hashlib.sha256(text.encode()).hexdigest()


def test_checksums_and_store_hash_recomputed(store: PlainStore) -> None:
    found = (store.path / "checksums.json").read_bytes()
    assert found == checksums(store)
    assert store.attrs["store_hash"] == hashlib.sha256(found).hexdigest()


def test_the_account_and_its_tables(store: PlainStore) -> None:
    counts = store.attrs["counts"]
    assert counts["read"] == counts["stored"] + counts["failed"] + counts["duplicate"]
    assert counts["stored"] == len(store)
    kept = set(store["structure_id"].tolist())
    for name, count in (("failures.parquet", "failed"), ("duplicates.parquet", "duplicate")):
        documented = {column: kind for column, kind, place, _ in table("column") if place in ("both", name)}
        assert {field.name: str(field.type) for field in pq.read_schema(store.path / name)} == documented
        rows = store.rows_of(name)
        assert len(rows) == counts[count]
        assert all(row.get("duplicate_of") in kept for row in rows if count == "duplicate")
    stored = list(zip(store["source"].tolist(), store["source_index"].tolist(), strict=True))
    others = [(row["source"], row["source_index"]) for row in store.rows_of("failures.parquet")]
    others += [(row["source"], row["source_index"]) for row in store.rows_of("duplicates.parquet")]
    if "merged_from" not in store.attrs:
        read = Counter(stored + others)
        assert set(read.values()) == {1}
        for source in {source for source, _ in read}:
            indices = sorted(index for name, index in read if name == source)
            assert indices == list(range(len(indices)))


def test_reasons_are_those_that_the_page_gives(whole: PlainStore) -> None:
    first, second = whole.rows_of("failures.parquet")
    assert first["reason"].startswith("overlapping atoms (atoms 0 and 1")
    assert "`overlapping atoms (...)`" in PAGE
    assert re.split(r" \(|:", second["reason"])[0] == "no structure in any field"
    assert second["structure_id"] == "none"


def test_equal_inputs_give_equal_bytes(folder: Path) -> None:
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (folder / "whole.zarr", folder / "again.zarr")
    ]
    assert files[0] == files[1]


def test_an_append_keeps_the_old_rows_first(folder: Path) -> None:
    appended = PlainStore(folder / "appended.zarr")
    n_old = appended.attrs["appended_to"][0]["counts"]["stored"]
    sources = appended["source"].tolist()
    assert sources == ["b.json"] * n_old + ["a.extxyz"] * (len(sources) - n_old)
    assert np.isnan(appended["energy"][:n_old]).all()
    assert np.isnan(appended["elastic"][n_old:]).all()


def test_damage_is_seen(folder: Path, tmp_path: Path) -> None:
    array = PlainArray(folder / "whole.zarr" / "cell")
    content = bytearray((array.folder / "c/0/0/0").read_bytes())
    for place in (len(content) // 3, len(content) - 10):
        damaged = tmp_path / f"{place}"
        (damaged / "c/0/0").mkdir(parents=True)
        (damaged / "zarr.json").write_text(json.dumps(array.metadata))
        flipped = content.copy()
        flipped[place] ^= 1
        (damaged / "c/0/0/0").write_bytes(flipped)
        with pytest.raises(AssertionError):
            PlainArray(damaged).shard(0)
