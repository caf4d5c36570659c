"""The report: its counts, what a browser shows, and that no name in the dataset becomes code."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.data import atomic_numbers, chemical_symbols
from ase.formula import Formula
from ase.io import read, write
from equiscreen.cli.app import app
from equiscreen.pipeline import Structure, featurize
from equiscreen.pipeline.errors import ConfigError, OutputExistsError, StoreError
from equiscreen.pipeline.structures.cif_text import cif_text
from equiscreen.pipeline.structures.matching import same_crystal
from equiscreen.screening import hull, open_scores, report, screen, select
from equiscreen.screening.dataset.reader import ScoresReader
from equiscreen.screening.reporting.candidate_table import CandidateTable
from equiscreen.screening.reporting.content import CLOSE, NEAR, read_content
from equiscreen.screening.reporting.figures import element_places
from equiscreen.screening.reporting.hull_diagrams import hull_diagrams
from equiscreen.screening.reporting.page import picture_file
from equiscreen.screening.reporting.structure_svg import picture
from PIL import Image
from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram
from pymatgen.core import Composition
from typer.testing import CliRunner

from ...conftest import CUTOFF, write_extxyz
from ...export.runtime.altered_models import altered
from ..convex_hull.hull_data import ELEMENTS, graphs_of, rows_of_mp

SIZE = 60
EVIL = "<script>document.title='stolen'</script>"
MAX_BYTES = 6e6
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def found(data: Path, sevennet_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Real crystals with energies above the hull of the elements by 7net-0; the lowest one has code as its name."""
    folder = tmp_path_factory.mktemp("found")
    rows = [dict(row) for row in rows_of_mp(data)[:SIZE]]
    lowest = min(range(SIZE), key=lambda place: float(rows[place]["formation_energy_per_atom"]))
    rows[lowest]["material_id"] = EVIL
    graphs = graphs_of(rows, folder)
    screen(graphs.path, sevennet_model, folder / "s.zarr", scheduler="threads")
    hull(folder / "s.zarr", data / ELEMENTS, folder / "s.hull.zarr")
    return folder / "s.hull.zarr"


@pytest.fixture(scope="module")
def page(found: Path) -> Path:
    return report(found, title="What <b>60</b> crystals are worth")


def browse(*words: str) -> subprocess.CompletedProcess[str]:
    if BROWSER is None:
        pytest.skip("no Chromium is installed")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--virtual-time-budget=8000"]
    return subprocess.run([BROWSER, *flags, *words], capture_output=True, text=True, check=True, timeout=120)


def test_counts_are_those_of_the_dataset(found: Path) -> None:
    dataset = open_scores(found)
    above = dataset["energy_above_hull_unrelaxed"].values
    content = read_content(ScoresReader(found), top=7)
    assert dict(content.funnel) == {
        "read": SIZE,
        "stored as graphs": SIZE,
        "rows of this dataset": SIZE,
        "scored": SIZE,
        f"within {NEAR} eV/atom of the hull": int((above <= NEAR).sum()),
        f"within {CLOSE} eV/atom of the hull": int((above <= CLOSE).sum()),
    }
    assert content.best.tolist() == np.argsort(above, kind="stable")[:7].tolist()
    assert sum(content.distributions[0].counts) == SIZE
    hits = Counter(
        symbol for formula in dataset["formula"].values[above <= NEAR].tolist() for symbol in Formula(formula).count()
    )
    assert dict(content.element_hits) == dict(hits)


def test_chunks_change_nothing(found: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_content(ScoresReader(found), top=9)
    monkeypatch.setattr(ScoresReader, "chunks", lambda _: [(i, min(i + 7, SIZE)) for i in range(0, SIZE, 7)])
    pieces = read_content(ScoresReader(found), top=9)
    assert pieces.funnel == whole.funnel
    assert pieces.best.tolist() == whole.best.tolist()
    assert np.array_equal(pieces.distributions[0].counts, whole.distributions[0].counts)


def test_a_browser_shows_it(found: Path, page: Path) -> None:
    dom = browse("--dump-dom", f"file://{page}").stdout
    assert "What &lt;b&gt;60&lt;/b&gt; crystals are worth</h1>" in dom
    # Scripts in the page draw the figures and the table; without them these elements do not exist.
    assert dom.count('class="main-svg"') >= 3
    assert f">{SIZE}<" in dom
    table = dom[dom.index('id="candidates"') :]
    best = open_scores(found)["formula"].values[read_content(ScoresReader(found), 1).best[0]]
    assert str(best) in table[: table.index("tabulator-row-even")]
    assert "<title>What &lt;b&gt;60" in dom  # the name of the best structure did not run


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 800, 1400])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_the_page_fits_and_shows_the_chosen_structure(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    shot, altered = tmp_path / "page.png", tmp_path / "page.html"
    check = (
        "<script>document.querySelector('.card').click(); document.title = [document.documentElement.scrollWidth, "
        "innerWidth, document.querySelector('.viewer canvas') !== null, getComputedStyle(document.body)"
        ".backgroundColor].join(' ')</script></body></html>"
    )
    altered.write_text(page.read_text().replace("</body></html>", check))
    flags = ["--enable-unsafe-swiftshader", f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"]
    dom = browse(*flags, "--dump-dom", f"--window-size={width},2000", f"file://{altered}").stdout
    wide, inner, has_canvas, background = dom[dom.index("<title>") + 7 : dom.index("</title>")].split(" ", 3)
    assert int(wide) <= int(inner), "the page is wider than the window"
    assert has_canvas == "true"
    assert background == {"dark": "rgb(18, 22, 28)", "light": "rgb(255, 255, 255)"}[scheme]
    browse(*flags, f"--screenshot={shot}", f"--window-size={width},2000", f"file://{altered}")
    colours = Image.open(shot).convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colours) > 200
    assert max(count for count, _ in colours) < 0.97 * width * 2000


def data_of(page: Path, name: str = "candidates-data") -> Any:
    """Data for the script of a page."""
    text = page.read_text()
    start = text.index(">", text.index(f'id="{name}"')) + 1
    return json.loads(text[start : text.index("</script>", start)])


def test_the_table_has_the_numbers_of_the_dataset(found: Path, page: Path) -> None:
    dataset, table = open_scores(found), data_of(page)
    order = np.argsort(dataset["energy_above_hull_unrelaxed"].values, kind="stable")
    assert [column["name"] for column in table["columns"]][:2] == ["formula", "energy_above_hull_unrelaxed"]
    assert table["values"]["formula"] == dataset["formula"].values[order].tolist()
    assert table["values"]["structure_id"] == dataset["structure_id"].values[order].tolist()
    assert table["values"]["energy_above_hull_unrelaxed"] == pytest.approx(
        dataset["energy_above_hull_unrelaxed"].values[order], abs=1e-5
    )


def test_the_table_shows_what_a_selection_found_out(found: Path, tmp_path: Path) -> None:
    lowest = np.argsort(open_scores(found)["energy_above_hull_unrelaxed"].values, kind="stable")[:2]
    write(tmp_path / "known.extxyz", [one.to_ase() for one in ScoresReader(found).structures(lowest)])
    featurize(tmp_path / "known.extxyz", tmp_path / "known.zarr", cutoff=CUTOFF, scheduler="threads")
    select(found, tmp_path / "best", top=5, known=tmp_path / "known.zarr")
    values = data_of(report(found, tmp_path / "r.html", selection=tmp_path / "best"))["values"]
    assert values["novelty"].count("known") == 2
    assert values["novelty"].count(None) == SIZE - 5
    assert sum(bool(name) for name in values["known_as"]) == 2
    with pytest.raises(ConfigError, match="is a selection from another dataset"):
        report(tmp_path / "best", tmp_path / "other.html", selection=tmp_path / "best")
    with pytest.raises(ConfigError, match="is not a selection"):
        report(found, tmp_path / "other.html", selection=found)
    with pytest.raises(OutputExistsError, match="is read by this run"):
        report(found, tmp_path / "best/scores.zarr/r.html", selection=tmp_path / "best")
    assert not (tmp_path / "other.html").exists()


def test_a_selection_of_a_selection_has_its_own_answers(found: Path, tmp_path: Path) -> None:
    order = np.argsort(open_scores(found)["energy_above_hull_unrelaxed"].values, kind="stable")
    for name, row in (("first", order[0]), ("second", order[1])):
        crystal = ScoresReader(found).structures(np.array([row]))
        write(tmp_path / f"{name}.extxyz", [one.to_ase() for one in crystal])
        featurize(tmp_path / f"{name}.extxyz", tmp_path / f"{name}.zarr", cutoff=CUTOFF, scheduler="threads")
    select(found, tmp_path / "best", top=3, known=tmp_path / "first.zarr")
    select(tmp_path / "best", tmp_path / "again", top=2, known=tmp_path / "second.zarr")
    values = data_of(report(tmp_path / "best", tmp_path / "r.html", selection=tmp_path / "again"))["values"]
    assert [word == "known" for word in values["novelty"]] == [False, True, False]
    assert values["novelty"][2] is None


def test_a_selection_that_is_replaced_meanwhile_is_an_error(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    select(found, tmp_path / "best", top=5)

    def replace_it(*_: Any) -> None:
        select(found, tmp_path / "best", top=4, overwrite=True)

    monkeypatch.setattr("equiscreen.screening.reporting.report.labelled_energies", replace_it)
    with pytest.raises(StoreError, match=r"best/scores\.zarr has changed"):
        report(found, tmp_path / "r.html", selection=tmp_path / "best")
    assert not (tmp_path / "r.html").exists()


def test_structures_in_the_page_are_those_of_the_store(found: Path, page: Path) -> None:
    rows = ScoresReader(found)
    best = read_content(rows, SIZE).best
    table = data_of(page)
    parents = table["parents"] or list(range(SIZE))
    assert [int(place) for place in table["details"]] == [place for place in range(SIZE) if parents[place] == place]
    for place in (0, 7, SIZE - 1):
        atoms = read(io.StringIO(table["details"][str(place)]["text"]), format="cif")
        stored = rows.structures(best[[place]])[0]
        assert same_crystal(Structure.from_ase(atoms), stored, 1e-6)


def test_the_same_crystal_is_one_row(data: Path, sevennet_model: Path, tmp_path: Path) -> None:
    first, second = rows_of_mp(data)[:2]
    larger = Structure.from_ase(read(io.StringIO(first["cif"]), format="cif").repeat((2, 1, 1)))
    copy = {"material_id": "copy", "cif": cif_text(larger, "copy", {})}
    graphs = graphs_of([first, second, copy], tmp_path)
    screen(graphs.path, sevennet_model, tmp_path / "s.zarr", scheduler="threads")
    hull(tmp_path / "s.zarr", data / ELEMENTS, tmp_path / "h.zarr")
    text = report(tmp_path / "h.zarr", tmp_path / "r.html").read_text()
    table = data_of(tmp_path / "r.html")
    ids = table["values"]["structure_id"]
    parents = table["parents"]
    assert parents[ids.index("copy")] == parents[ids.index(first["material_id"])]
    assert parents[ids.index(second["material_id"])] == ids.index(second["material_id"])
    assert "Duplicates, folded below the crystal that they repeat: 1." in text


def test_names_are_never_code(page: Path) -> None:
    text = page.read_text()
    assert EVIL not in text
    assert "\\u003cscript\\u003edocument.title=" in text


def test_the_page_needs_nothing_else_and_is_small(page: Path) -> None:
    text = page.read_text()
    assert page.stat().st_size < MAX_BYTES
    own = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)  # without libraries, which fetch nothing either
    assert not re.search(r"(src|href)=", own)
    assert "default-src 'none'" in text


def test_labels_and_uncertainties_have_plots(exported: Callable[[str], Path], tmp_path: Path) -> None:
    featurize(write_extxyz(tmp_path / "c.extxyz", 14, seed=3), tmp_path / "c.zarr", cutoff=CUTOFF, scheduler="threads")
    models = [altered(exported("float32"), tmp_path / f"m{i}.onnx", factor) for i, factor in enumerate((1.0, 1.1))]
    screen(tmp_path / "c.zarr", models, tmp_path / "s.zarr", scheduler="threads")
    text = report(tmp_path / "s.zarr").read_text()
    assert "<h2>Predictions against labels</h2>" in text
    assert "<h2>Errors against predicted uncertainties</h2>" in text
    assert "14 structures: mean error" in text
    assert "There is no convex hull yet, and the candidates are not ranked" in text


def test_without_its_graphs_it_has_no_pictures_but_is_there(found: Path, tmp_path: Path) -> None:
    shutil.copytree(found, tmp_path / "a" / "s.hull.zarr")
    shutil.move(found.parent / "g.zarr", tmp_path / "elsewhere.zarr")
    try:
        text = report(tmp_path / "a" / "s.hull.zarr").read_text()
        with_store = report(tmp_path / "a" / "s.hull.zarr", tmp_path / "b.html", store=tmp_path / "elsewhere.zarr")
    finally:
        shutil.move(tmp_path / "elsewhere.zarr", found.parent / "g.zarr")
    assert "No structures: " in text
    assert "<button class='card'" not in text
    assert "<button class='card'" in with_store.read_text()


def test_pictures_must_be_small_png_files(tmp_path: Path) -> None:
    for name, content in (("a.png", b"<svg/>"), ("b.png", b"\x89PNG\r\n\x1a\n" + bytes(2_000_000))):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ConfigError, match="not a PNG file of at most 2,000,000 bytes"):
            picture_file("Curves", tmp_path / name)
    with pytest.raises(ConfigError, match=r"missing.png cannot be read \(No such file"):
        picture_file("Curves", tmp_path / "missing.png")


def test_what_exists_stays(found: Path, page: Path) -> None:
    before = page.read_bytes()
    with pytest.raises(OutputExistsError, match="--overwrite"):
        report(found)
    assert page.read_bytes() == before
    report(found, overwrite=True, title="Another")
    assert "<h1>Another</h1>" in page.read_text()
    page.write_bytes(before)


def test_only_a_report_is_replaced(found: Path, tmp_path: Path) -> None:
    other = tmp_path / "recipe.json"
    for content in ('{"schema": 1}', "<!DOCTYPE html><html>mine</html>"):
        other.write_text(content)
        with pytest.raises(OutputExistsError, match=r"recipe\.json already exists and is not a file that this command"):
            report(found, other, overwrite=True)
        assert other.read_text() == content


def test_no_scores(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing"):
        report(tmp_path / "nothing.zarr")


def test_the_verb(found: Path, tmp_path: Path) -> None:
    answer = CliRunner().invoke(app, ["report", str(found.parent), "--out", str(tmp_path / "r.html"), "--top", "3"])
    assert answer.exit_code == 0, answer.output
    assert "r.html: " in answer.output
    assert "The best 3 of 60." in (tmp_path / "r.html").read_text()
    assert len(data_of(tmp_path / "r.html")["values"]["formula"]) == 3


def test_another_column_ranks(found: Path, tmp_path: Path) -> None:
    page = report(found, tmp_path / "r.html", by="formation_energy_per_atom_unrelaxed")
    energies = data_of(page)["values"]["formation_energy_per_atom_unrelaxed"]
    assert energies == sorted(energies)
    assert "The candidates are ranked by formation energy." in page.read_text()
    with pytest.raises(ConfigError, match="did you mean 'energy_per_atom'"):
        report(found, tmp_path / "r2.html", by="energy_per_atm")
    with pytest.raises(ConfigError, match="unknown numeric column 'stress'"):
        report(found, tmp_path / "r2.html", by="stress")


@pytest.mark.parametrize("column", ["energy_per_atom", "volume"])
def test_the_column_that_ranks_is_shown_even_if_the_table_has_it_not_otherwise(
    found: Path, tmp_path: Path, column: str
) -> None:
    page = report(found, tmp_path / "r.html", by=column)
    assert [one["name"] for one in data_of(page)["columns"]][:2] == ["formula", column]
    assert data_of(page)["values"][column] == sorted(data_of(page)["values"][column])
    assert f"The candidates are ranked by {column.removesuffix('_per_atom')}." in page.read_text()


def test_every_element_has_a_place_of_its_own() -> None:
    places = element_places()
    assert list(places) == chemical_symbols[1:119]
    assert len(set(places.values())) == 118
    known = {"H": (0, 0), "He": (0, 17), "B": (1, 12), "Fe": (3, 7), "La": (8, 2), "Lu": (8, 16), "Hf": (5, 3)}
    assert {symbol: places[symbol] for symbol in known} == known


def circles(text: str) -> list[tuple[float, ...]]:
    return [tuple(map(float, found)) for found in re.findall(r'<circle cx="(\S+)" cy="(\S+)" r="(\S+)"', text)]


def test_atoms_on_faces_are_drawn_on_all_of_them() -> None:
    cell: Any = 4.0 * np.eye(3)
    assert len(circles(picture(Structure.from_fractional([29], cell, [[0.0, 0.0, 0.0]])))) == 8
    assert len(circles(picture(Structure.from_fractional([29], cell, [[0.5, 0.5, 0.0]])))) == 2
    assert len(circles(picture(Structure.from_fractional([29], cell, [[0.5, 0.5, 0.5]])))) == 1
    # Translations by lattice vectors give the same picture.
    moved = Structure.from_fractional([29], cell, [[0.5, -0.5, 3.5]])
    assert picture(moved) == picture(Structure.from_fractional([29], cell, [[0.5, 0.5, 0.5]]))


def test_pictures_keep_within_their_frame() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        structure = Structure.from_fractional(rng.integers(1, 90, 5), rng.normal(size=(3, 3)) * 5, rng.random((5, 3)))
        text = picture(structure)
        left, top, width, height = map(float, re.search(r'viewBox="(.*?)"', text)[1].split())  # type: ignore[index]
        for x, y, radius in circles(text):
            assert left - 0.02 <= x - radius
            assert x + radius <= left + width + 0.02
            assert top - 0.02 <= y - radius
            assert y + radius <= top + height + 0.02


def test_huge_cells_are_not_drawn() -> None:
    rng = np.random.default_rng(1)
    structure = Structure.from_fractional(np.full(1_200, 6), 40 * np.eye(3), rng.random((1_200, 3)))
    assert picture(structure) == "<span>1,200 atoms: not drawn</span>"


def table_of(formulas: list[str], energies: list[float]) -> CandidateTable:
    size = len(formulas)
    values = {"formula": formulas, "formation_energy_per_atom": energies, "energy_above_hull": [0.0] * size}
    return CandidateTable(np.arange(size), [], values, np.arange(size), {}, {}, "")


def test_hull_diagrams_have_the_hull_of_pymatgen() -> None:
    rng = np.random.default_rng(5)
    formulas = ["Al", "Ni", "Ti", "AlNi", "AlNi3", "Al3Ni", "Al3Ti", "TiNi", "TiNi3", "AlNi2Ti", "Al2NiTi", "AlNiTi2"]
    for _ in range(20):
        energies = [0.0, 0.0, 0.0, *rng.uniform(-0.6, 0.2, len(formulas) - 3)]
        phases = {"formula": formulas, "formation_energy_per_atom": energies, "id": formulas}
        entries = [
            PDEntry(Composition(f), e * Composition(f).num_atoms) for f, e in zip(formulas, energies, strict=True)
        ]
        drawn = hull_diagrams(table_of(["AlNi", "AlNiTi"], [-0.5, -0.5]), phases)
        assert list(drawn) == ["Al-Ni", "Al-Ti-Ni"]
        stable = {entry.name for entry in PhaseDiagram(entries).stable_entries}
        shown = {text.split("<br>")[1] for text in drawn["Al-Ti-Ni"]["data"][1]["text"]}
        assert {Composition(name).reduced_formula for name in shown} == stable
        binary = PhaseDiagram([one for one in entries if "Ti" not in one.name])
        corners = sorted(one.composition.get_atomic_fraction("Ni") for one in binary.stable_entries)
        assert drawn["Al-Ni"]["data"][0]["x"] == pytest.approx(corners)


def test_the_legend_of_a_hull_lies_on_no_title(page: Path) -> None:
    """Below a plot on a narrow page, it covered the title of the x axis."""
    for diagram in data_of(page, "hulls-data").values():
        assert (diagram["layout"]["legend"]["y"], diagram["layout"]["legend"]["yanchor"]) == (1.0, "bottom")


def test_the_hull_records_its_phases(found: Path, page: Path) -> None:
    phases = open_scores(found).attrs["hull"]["phases"]
    assert set(phases) == {"formula", "formation_energy_per_atom", "id"}
    assert len(phases["formula"]) == len(set(phases["formula"])) > 0
    assert all(energy == 0 for energy in phases["formation_energy_per_atom"])  # only elements are references
    systems = data_of(page, "hulls-data")
    assert set(systems) <= {
        "-".join(sorted(Formula(f).count(), key=atomic_numbers.get)) for f in open_scores(found)["formula"].values
    }
