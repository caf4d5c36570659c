"""References from entries, tables, datasets and OPTIMADE servers: one table, and the hull that entries give."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pyarrow.parquet as pq
import pytest
import xarray as xr
from equiscreen.campaigns.references import fetch_references, read_account, systems_of
from equiscreen.campaigns.references.systems import ChemicalSystems, systems_of_text
from equiscreen.pipeline import GraphStore, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, SourceError
from equiscreen.screening import hull
from pymatgen.core import Lattice, Structure

from ...pipeline.sources.test_optimade import Database, error_body, respond, serving
from ...screening.convex_hull.hull_data import write_scores

SYSTEMS = systems_of_text("Li-Fe-O")


def crystal(size: float, symbols: list[str], sites: list[list[float]]) -> Structure:
    return Structure(Lattice.cubic(size), symbols, sites)


# Id, structure, total energy (eV): elements, an oxide, a peroxide, one with a Hubbard U, and one of another system.
PHASES: list[tuple[str, Structure, float]] = [
    ("x-Li", crystal(3.4, ["Li"], [[0, 0, 0]]), -1.9),
    ("x-Fe", crystal(2.6, ["Fe"], [[0, 0, 0]]), -8.4),
    ("x-O", crystal(5.0, ["O", "O"], [[0, 0, 0], [0.25, 0, 0]]), -9.9),
    ("x-Li2O", crystal(3.5, ["Li", "Li", "O"], [[0, 0, 0], [0.5, 0.5, 0], [0.5, 0, 0.5]]), -14.3),
    ("x-Li2O2", crystal(4.5, ["Li", "Li", "O", "O"], [[0.5, 0, 0], [0, 0.5, 0], [0, 0, 0], [0, 0, 0.32]]), -19.4),
    ("x-FeO", crystal(3.2, ["Fe", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]), -13.0),
    ("x-NaCl", crystal(4.0, ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]]), -6.8),
]
WITHIN = [phase for phase in PHASES if phase[0] != "x-NaCl"]
U = {"x-FeO": {"Fe": 5.3}}


def entry(name: str, structure: Structure, energy: float) -> dict[str, Any]:
    """A pymatgen entry; the Materials Project calculates iron oxides with a Hubbard U."""
    return {
        "entry_id": name,
        "composition": {str(key): value for key, value in structure.composition.items()},
        "energy": energy,
        "correction": 0.0,
        "parameters": {"run_type": "GGA+U" if name in U else "GGA", "hubbards": U.get(name, {})},
        "structure": structure.as_dict(),
    }


def resource(name: str, structure: Structure, **fields: Any) -> dict[str, Any]:
    return {
        "type": "structures",
        "id": name,
        "attributes": {
            "lattice_vectors": structure.lattice.matrix.tolist(),
            "dimension_types": [1, 1, 1],
            "nperiodic_dimensions": 3,
            "nsites": len(structure),
            "cartesian_site_positions": structure.cart_coords.tolist(),
            "species_at_sites": [str(site.specie) for site in structure],
            "species": [
                {"name": symbol, "chemical_symbols": [symbol], "concentration": [1.0]}
                for symbol in sorted({str(site.specie) for site in structure})
            ],
            **fields,
        },
    }


@dataclass
class Energies(Database):
    """A server of structures with energies, which gives custom fields only to those who ask for them."""

    resources: list[dict[str, Any]] = field(default_factory=list)

    def content(self, path: str, number: int) -> dict[str, Any]:
        self.size = len(self.resources)
        page = super().content(path, number)
        asked = parse_qs(urlsplit(path).query)["response_fields"][0].split(",")
        chosen = self.resources[number * self.page : (number + 1) * self.page]
        page["data"] = [
            {**one, "attributes": {key: value for key, value in one["attributes"].items() if key in asked}}
            for one in chosen
        ]
        return page


def alexandria(functional: str | None = "PBE") -> Energies:
    stated = {} if functional is None else {"_alexandria_xc_functional": functional}
    return Energies(
        resources=[
            resource(name, structure, _alexandria_energy=energy, _alexandria_hull_distance=0.5, **stated)
            for name, structure, energy in PHASES
        ]
    )


@pytest.fixture(autouse=True, scope="module")
def _no_proxy() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        yield


@pytest.fixture(scope="module")
def candidates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scores of the compounds, a little above the references."""
    folder = tmp_path_factory.mktemp("candidates")
    compounds = [one for one in WITHIN if len(one[1].composition) > 1]
    lines = [json.dumps({"id": name, "structure": structure.as_dict()}) for name, structure, _ in compounds]
    (folder / "c.jsonl").write_text("\n".join(lines))
    featurize(folder / "c.jsonl", folder / "g.zarr", cutoff=5.0, scheduler="threads")
    graphs = GraphStore(folder / "g.zarr")
    energies = {name: energy for name, _, energy in compounds}
    energy = np.array([energies[name] + 0.1 for name in graphs.column("structure_id").tolist()])
    return write_scores(folder / "s.zarr", graphs, energy)


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("entries") / "entries.json"
    path.write_text(json.dumps([entry(*phase) for phase in PHASES]))
    return path


@pytest.fixture(scope="module")
def expected(candidates: Path, entries: Path) -> xr.Dataset:
    return hull(candidates, entries, entries.with_name("h.zarr"))


def assert_same(found: xr.Dataset, expected: xr.Dataset, tolerance: float = 0.0) -> None:
    for name in ("energy_above_hull", "formation_energy_per_atom"):
        assert np.isfinite(found[name]).all()
        np.testing.assert_allclose(found[name], expected[name], rtol=0, atol=tolerance)


def test_a_table_of_entries_gives_the_hull_of_the_entries(
    candidates: Path, entries: Path, expected: xr.Dataset, tmp_path: Path
) -> None:
    """The structure reveals the peroxide, and FeO has a Hubbard U; a table without corrections would lose both."""
    out = tmp_path / "refs.parquet"
    account = fetch_references(entries, SYSTEMS, out)
    assert (account.phases, account.run_types) == (6, {"GGA": 5, "GGA+U": 1})
    assert account.phases_by_system == {"Fe": 1, "Li": 1, "O": 1, "Fe-O": 1, "Li-O": 2}
    assert account.empty_systems == ("Fe-Li-O",)
    assert account.missing_elements == ()
    (source,) = account.sources
    assert (source.read, source.phases, source.outside, dict(source.left_out)) == (7, 6, 1, {})
    assert read_account(out) == json.loads(json.dumps(account.attrs()))
    assert "no phase contains all elements of Fe-Li-O" in account.summary(out)
    rows = {row["id"]: row for row in pq.read_table(out).to_pylist()}
    assert {name: row["energy_per_atom"] for name, row in rows.items()} == {
        name: energy / len(structure) for name, structure, energy in WITHIN
    }
    assert {row["scheme"] for row in rows.values()} == {"mp-uncorrected"}
    energies = [field for field in pq.read_schema(out) if field.name.endswith("per_atom")]
    assert {field.metadata[b"units"] for field in energies} == {b"eV/atom"}
    assert_same(hull(candidates, out, tmp_path / "h.zarr"), expected)
    assert names(tmp_path) == ["h.zarr", "refs.parquet"]
    # A table of references is a source of references, too.
    again = fetch_references(out, None, tmp_path / "again.parquet")
    assert again.phases == 6
    assert_same(hull(candidates, tmp_path / "again.parquet", tmp_path / "h2.zarr"), expected)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-20], "not valid JSON"),
        (lambda text: text[:-1], "not valid JSON"),
        (lambda text: text + " more", "not valid JSON: text after the end"),
        (lambda text: "[1, 2]" + text[:0], "not a file of pymatgen entries"),
        (lambda text: "[]" + text[:0], "not a file of pymatgen entries"),
    ],
)
def test_a_damaged_list_of_entries_is_refused_as_a_whole(
    change: Callable[[str], str], message: str, entries: Path, tmp_path: Path
) -> None:
    """Although its entries are read one by one."""
    (tmp_path / "damaged.json").write_text(change(entries.read_text()))
    with pytest.raises(SourceError, match=message):
        fetch_references(tmp_path / "damaged.json", SYSTEMS, tmp_path / "refs.parquet")
    assert names(tmp_path) == ["damaged.json"]


def test_a_list_and_a_dictionary_of_entries_give_one_table(entries: Path, tmp_path: Path) -> None:
    content = json.loads(entries.read_text())
    (tmp_path / "dictionary.json").write_text(json.dumps({one["entry_id"]: one for one in content}))
    fetch_references(tmp_path / "dictionary.json", SYSTEMS, tmp_path / "a.parquet")
    fetch_references(entries, SYSTEMS, tmp_path / "b.parquet")
    one, other = (pq.read_table(tmp_path / name).drop_columns("source") for name in ("a.parquet", "b.parquet"))
    assert one.equals(other)


def test_own_phases_are_recognised_by_the_structures_of_a_table(
    candidates: Path, entries: Path, tmp_path: Path
) -> None:
    fetch_references(entries, SYSTEMS, tmp_path / "refs.parquet")
    found = [
        hull(candidates, path, tmp_path / f"{place}.zarr", exclude_self=True)
        for place, path in enumerate((tmp_path / "refs.parquet", entries))
    ]
    assert found[0].attrs["hull"]["own_phases_left_out"] == 3
    assert_same(*found)


def test_structures_of_a_table_become_a_graph_store(entries: Path, tmp_path: Path) -> None:
    fetch_references(entries, SYSTEMS, tmp_path / "refs.parquet")
    report = featurize(tmp_path / "refs.parquet", tmp_path / "known.zarr", cutoff=4.0, scheduler="threads")
    assert (report.read, report.stored) == (6, 6)


def test_total_energies_of_a_server_give_the_hull_of_entries(
    candidates: Path, expected: xr.Dataset, tmp_path: Path
) -> None:
    """Two structures per page, a 502 that passes, and the same numbers as in the entries."""
    server = alexandria()
    server.trouble = lambda request, number, count: (
        number == 1 and count == 1 and respond(request, 502, error_body(502, "bad gateway"))
    )
    with serving(server) as address:
        account = fetch_references(f"optimade:alexandria@{address}", SYSTEMS, tmp_path / "refs.parquet")
    assert len(server.asked) == 4 + 1
    query = parse_qs(urlsplit(server.asked[0]).query)
    assert query["filter"] == ['elements HAS ONLY "Fe","Li","O"']
    assert "_alexandria_energy" in query["response_fields"][0].split(",")
    assert (account.phases, account.sources[0].read, account.sources[0].outside) == (6, 7, 1)
    assert account.run_types == {"GGA": 6}
    assert names(tmp_path) == ["refs.parquet"]
    assert_same(hull(candidates, tmp_path / "refs.parquet", tmp_path / "h.zarr"), expected)


def test_formation_energies_of_a_server_are_measured_from_the_elements(
    candidates: Path, expected: xr.Dataset, tmp_path: Path
) -> None:
    """Thermo types stay apart, and distances to a hull are not energies."""
    plain = {str(s.composition.elements[0]): e / len(s) for _, s, e in WITHIN if len(s.composition) == 1}
    corrected = hull_energies(expected)
    elements = tmp_path / "elements.csv"
    lines = [f"{symbol},{energy},mp-uncorrected" for symbol, energy in plain.items()]
    elements.write_text("formula,energy_per_atom,scheme\n" + "\n".join(lines))
    server = Energies(resources=[])
    for name, structure, _ in WITHIN:
        formation = corrected.get(name, 0.0)
        types = {"GGA_GGA+U": formation, "r2scan": -9.0, "gga_gga+u_r2scan": -99.0}
        stability = {key: {"formation_energy_per_atom": value, "energy_above_hull": 7} for key, value in types.items()}
        server.resources.append(resource(name, structure, _mp_stability=stability))
    with serving(server) as address:
        account = fetch_references([elements, f"optimade:mp@{address}"], SYSTEMS, tmp_path / "refs.parquet")
        other = fetch_references(f"optimade:mp@{address}", SYSTEMS, tmp_path / "r2.parquet", scheme="r2scan")
    assert account.missing_elements == ()
    assert other.missing_elements == ("Fe", "Li", "O")
    assert other.run_types == {"r2SCAN": 6}
    table = pq.read_table(tmp_path / "r2.parquet").to_pydict()
    assert set(table["formation_energy_per_atom"]) == {-9.0}
    assert set(table["scheme"]) == {"r2scan"}
    assert_same(hull(candidates, tmp_path / "refs.parquet", tmp_path / "h.zarr"), expected, 1e-12)


def hull_energies(found: xr.Dataset) -> dict[str, float]:
    """Formation energies of the references: those of the candidates are 0.1 eV per cell above them."""
    shift = 0.1 / found["n_atoms"].values
    return dict(
        zip(found["structure_id"].values.tolist(), found["formation_energy_per_atom"].values - shift, strict=True)
    )


@pytest.mark.parametrize(
    ("provider", "name"), [("oqmd", "_oqmd_delta_e"), ("jarvis", "_jarvis_formation_energy_peratom")]
)
def test_providers_with_energies_of_their_own_are_for_networks_trained_on_them(
    provider: str, name: str, tmp_path: Path
) -> None:
    server = Energies(resources=[resource("x", WITHIN[3][1], **{name: -1.5}, _oqmd_stability=0.0)])
    with serving(server) as address:
        what = f"optimade:{provider}@{address}"
        with pytest.raises(ConfigError, match="cannot be compared with those of the candidates, which follow mp-unc"):
            fetch_references(what, SYSTEMS, tmp_path / "a.parquet")
        with pytest.raises(ConfigError, match="use --scheme own"):
            fetch_references(what, SYSTEMS, tmp_path / "a.parquet", scheme="own")
        assert not server.asked
        fetch_references(what, SYSTEMS, tmp_path / "a.parquet", scheme="own", assumed="own")
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["formation_energy_per_atom"], row["energy_per_atom"], row["scheme"]) == (-1.5, None, "own")


def test_a_mirror_is_recognised_by_its_fields_but_not_its_functional(tmp_path: Path) -> None:
    with serving(alexandria()) as address:
        assert fetch_references(f"optimade:{address}", SYSTEMS, tmp_path / "a.parquet").phases == 6
    with serving(alexandria(functional=None)) as address, pytest.raises(ConfigError, match="no functional stated"):
        fetch_references(f"optimade:{address}", SYSTEMS, tmp_path / "b.parquet")
    with serving(alexandria("PBEsol")) as address, pytest.raises(ConfigError, match="functional PBEsol"):
        fetch_references(f"optimade:alexandria@{address}", SYSTEMS, tmp_path / "b.parquet")


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("optimade:gnome", "serves no energies: .*distances to a hull"),
        ("optimade:alexandira", "did you mean 'alexandria'"),
        ("alexandria", "did you mean optimade:alexandria"),
        ("mp", "set MP_API_KEY"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_line(
    what: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MP_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=message):
        fetch_references(what, SYSTEMS, tmp_path / "a.parquet")
    assert not names(tmp_path)


def test_a_server_without_energies_is_named(tmp_path: Path) -> None:
    with serving(Energies(resources=[resource("x", WITHIN[3][1], _x_band_gap=1.0)])) as address:
        with pytest.raises(
            ConfigError, match=r"serves no energies: no structure \(of 1\) has any of the fields _alexandria_energy"
        ):
            fetch_references(f"optimade:{address}", SYSTEMS, tmp_path / "a.parquet")
        with pytest.raises(ConfigError, match="--systems"):
            fetch_references(f"optimade:{address}", None, tmp_path / "a.parquet")


def test_many_systems_are_asked_for_in_short_requests(tmp_path: Path) -> None:
    server = alexandria()
    metals = ("Li", "Na", "Mg", "Al", "Ti", "Mn", "Fe", "Co", "Ni", "Cu")
    systems = {frozenset({"O", *pair}) for pair in combinations(metals, 2)}
    systems |= {frozenset({"Li"}), frozenset({"Li", "O"})}  # parts of others
    with serving(server) as address:
        account = fetch_references(f"optimade:alexandria@{address}", systems, tmp_path / "a.parquet")
    filters = {parse_qs(urlsplit(path).query)["filter"][0] for path in server.asked}
    assert len(filters) > 1
    assert max(map(len, filters)) <= 1200
    assert sum(one.count("HAS ONLY") for one in filters) == 45
    assert account.sources[0].duplicate == 7 * (len(filters) - 1)
    source = account.sources[0]
    assert source.read == source.phases + source.duplicate + source.outside


def test_a_server_that_lacks_an_optional_operator_is_asked_with_others(tmp_path: Path) -> None:
    server = alexandria()
    server.trouble = lambda request, *_: (
        "HAS%20ONLY" in request.path and respond(request, 501, error_body(501, "HAS ONLY is not implemented"))
    )
    with serving(server) as address:
        account = fetch_references(f"optimade:alexandria@{address}", systems_of_text("Li-O"), tmp_path / "a.parquet")
    assert account.phases_by_system == {"Li": 1, "O": 1, "Li-O": 2}
    (asked,) = {parse_qs(urlsplit(path).query)["filter"][0] for path in server.asked[1:]}
    assert asked == (
        '(elements HAS ALL "Li","O" AND nelements=2) OR (elements HAS ALL "Li" AND nelements=1) '
        'OR (elements HAS ALL "O" AND nelements=1)'
    )


def test_an_interrupted_download_is_resumed_and_what_is_there_is_kept(tmp_path: Path) -> None:
    server, out = alexandria(), tmp_path / "refs.parquet"
    server.trouble = lambda request, number, _: number == 2 and respond(request, 501, error_body(501, "tired"))
    with serving(server) as address:
        what = f"optimade:alexandria@{address}"
        with pytest.raises(SourceError, match="tired"):
            fetch_references(what, SYSTEMS, out)
        server.trouble = lambda *_: False
        asked = len(server.asked)
        assert fetch_references(what, SYSTEMS, out).phases == 6
        assert len(server.asked) - asked == 2
        with pytest.raises(OutputExistsError, match="--overwrite"):
            fetch_references(what, SYSTEMS, out)
        fetch_references(what, SYSTEMS, out, overwrite=True)
    assert names(tmp_path) == ["refs.parquet"]


def test_no_secret_is_stored(tmp_path: Path) -> None:
    with serving(alexandria()) as address:
        fetch_references(f"optimade:alexandria@{address}/v1/structures?token=hush", SYSTEMS, tmp_path / "a.parquet")
    assert b"hush" not in (tmp_path / "a.parquet").read_bytes()


class Client:
    """Stands for the documented client of the Materials Project, which needs a key and the network."""

    def __init__(self, key: str) -> None:
        self.key = key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close nothing."""

    def get_entries(self, systems: list[str], additional_criteria: dict[str, Any]) -> list[dict[str, Any]]:
        if self.key != "key-of-mine":
            raise RuntimeError(f"REST query with {self.key} failed")
        assert additional_criteria == {"thermo_types": ["GGA_GGA+U"]}
        assert "Fe-Li-O" in systems
        assert len(systems) == 7
        return [entry(*phase) for phase in WITHIN]


def test_the_client_of_the_materials_project_gives_entries(
    candidates: Path, expected: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("mp_api.client")
    module.__dict__["MPRester"] = Client
    monkeypatch.setitem(sys.modules, "mp_api", ModuleType("mp_api"))
    monkeypatch.setitem(sys.modules, "mp_api.client", module)
    monkeypatch.setenv("MP_API_KEY", "another-key")
    with pytest.raises(SourceError, match="the request to the Materials Project failed") as caught:
        fetch_references("mp", SYSTEMS, tmp_path / "refs.parquet")
    assert "another-key" not in str(caught.value)
    monkeypatch.setenv("MP_API_KEY", "key-of-mine")
    assert fetch_references("mp", SYSTEMS, tmp_path / "refs.parquet").phases == 6
    assert b"key-of-mine" not in (tmp_path / "refs.parquet").read_bytes()
    assert_same(hull(candidates, tmp_path / "refs.parquet", tmp_path / "h.zarr"), expected)


def test_systems_are_those_of_the_candidates(candidates: Path, entries: Path) -> None:
    assert systems_of(candidates) == ({frozenset({"Li", "O"}), frozenset({"Fe", "O"})}, "mp-uncorrected")
    assert systems_of(candidates.with_name("g.zarr")) == (systems_of(candidates)[0], None)
    assert systems_of(entries)[0] == {frozenset(map(str, one.composition)) for _, one, _ in PHASES}
    assert ChemicalSystems(systems_of(entries)[0]).largest() == [["Cl", "Na"], ["Fe", "O"], ["Li", "O"]]
    with pytest.raises(ConfigError, match="unknown element 'Fx'"):
        ChemicalSystems(systems_of_text("Li-Fx"))


def test_the_verb_prints_the_account(
    candidates: Path, entries: Path, tmp_path: Path, command_line: Callable[..., Any]
) -> None:
    done = command_line("references", entries, "--candidates", candidates, "--out", tmp_path / "refs.parquet")
    assert done.returncode == 0, done.stderr
    assert "6 phases in 5 chemical systems" in done.stdout
    assert "6 of 7 kept; 1 outside the chemical systems" in done.stdout
    done = command_line("references", entries, "--systems", "Ag-Au", "--out", tmp_path / "b.parquet")
    assert done.returncode == 1
    assert "none in the chosen chemical systems" in done.stderr
