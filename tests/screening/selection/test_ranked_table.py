"""The table of a ranked list: what it shows of a selection, and its CSV file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from equiscreen.pipeline.store.schema import flags
from equiscreen.screening.chemistry.charge_balance import BALANCE
from equiscreen.screening.dataset.ranked_table import CSV_FILE, RankedTable
from equiscreen.screening.selection.novelty import NOVELTY

FLUSH = "\x1b[2J"


@pytest.fixture
def selection() -> xr.Dataset:
    """Three rows that are not in the order of their ranks."""

    def column(values: object, **attrs: object) -> xr.Variable:
        return xr.Variable(("structure",), values, attrs)

    return xr.Dataset(
        {
            "rank": column([2, 1, 3]),
            "structure_id": column(np.array(["b", f"a{FLUSH}", "c,c"], dtype=object)),
            "formula": column(np.array(["NaCl", "Fe2O3", "C"], dtype=object)),
            "energy_above_hull": column([0.01, -0.0225, np.nan], units="eV/atom"),
            "formation_energy_per_atom": column([-2.0, -1.5, 0.0], units="eV/atom"),
            "energy_per_atom": column([-3.0, -6.5, -9.0], units="eV/atom"),
            "space_group": column([225, 167, 0]),
            "volume_change": column([0.012, -0.1, np.nan], units="1"),
            "status": column(np.array([0, 1, 0], dtype=np.uint8), **flags(("ok", "not_converged"))),
            "charge_neutral": column(
                np.array([BALANCE.index("yes"), BALANCE.index("yes"), BALANCE.index("no")], dtype=np.uint8),
                **flags(BALANCE),
            ),
            "has_magnetic_element": column([False, True, False]),
            "novelty": column(
                np.array([NOVELTY.index(word) for word in ("known", "new_phase", "new_composition")], dtype=np.uint8),
                **flags(NOVELTY),
            ),
            "known_as": column(np.array(["mp-1", "", ""], dtype=object)),
        }
    )


def test_a_person_sees_the_best_first_and_aligned(selection: xr.Dataset) -> None:
    lines = RankedTable(selection).text().splitlines()
    assert lines[0].split("  ")[0] == "rank"
    assert "eV/atom" in lines[1]
    best = lines[2]
    parts = ("Fe2O3", "-0.022", "-1.500", "R-3c", "new phase", "-10.0", "not converged, magnetic")
    places = [best.index(part) for part in parts]
    assert places == sorted(places)
    assert best.endswith("a\ufffd[2J")
    assert FLUSH not in best  # an id never reaches the terminal as a command
    assert [line.split()[1] for line in lines[2:]] == ["Fe2O3", "NaCl", "C"]
    assert "Fm-3m" in lines[3]
    assert "mp-1" in lines[3]
    ends = {line.index(symbol) for line, symbol in zip(lines[2:], ("R-3c", "Fm-3m"), strict=False)}
    assert len(ends) == 1
    assert "-6.5" not in "\n".join(lines)  # energies per atom of different compositions are no ranking
    assert len(RankedTable(selection).text(2).splitlines()) == 4


def test_the_csv_file_has_all_digits_and_exact_ids(selection: xr.Dataset, tmp_path: Path) -> None:
    RankedTable(selection).write_csv(tmp_path / CSV_FILE)
    with (tmp_path / CSV_FILE).open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["structure_id"] for row in rows] == [f"a{FLUSH}", "b", "c,c"]
    assert [row["rank"] for row in rows] == ["1", "2", "3"]
    assert [row["energy_above_hull"] for row in rows] == ["-0.0225", "0.01", ""]
    assert [row["space_group_symbol"] for row in rows] == ["R-3c", "Fm-3m", "-"]
    assert [row["known"] for row in rows] == ["new phase", "mp-1", "new composition"]
    assert rows[2]["flags"] == "not charge-neutral"


def test_what_a_dataset_lacks_is_left_out(selection: xr.Dataset) -> None:
    few = selection[["rank", "structure_id", "formula", "status"]].assign(
        energy_above_hull_unrelaxed=selection["energy_above_hull"]
    )
    few = few.assign(prototype_label=("structure", np.array(["AB_cF8_225_a_b", "none", "A_cF8_227_a"], dtype=object)))
    text = RankedTable(few).text()
    assert "above hull, unrelaxed" in text
    assert "Fd-3m" in text
    assert "volume" not in text
    assert "known" not in text
