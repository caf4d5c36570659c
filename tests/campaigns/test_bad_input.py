"""Mistakes in `equiscreen rank` that would cost a campaign, or mix it with another."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr
from equiscreen.campaigns import RankSettings, rank
from equiscreen.campaigns.ranking import run
from equiscreen.cli.app import app
from equiscreen.pipeline.errors import ConfigError, OutputExistsError
from equiscreen.pipeline.structures.random_crystals import probe_structures
from typer.testing import CliRunner

from ..conftest import ELEMENTS, cif_text

POLONIUM = """data_PoO
_symmetry_space_group_name_H-M 'P 1'
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Po1 Po 0 0 0
O1 O 0.5 0.5 0.5
"""


@pytest.fixture
def crystals(tmp_path: Path) -> Path:
    """A folder of two CIF files."""
    folder = tmp_path / "crystals"
    folder.mkdir()
    for number, structure in enumerate(probe_structures(ELEMENTS, 2, seed=5)):
        (folder / f"c{number}.cif").write_text(cif_text(structure))
    return folder


@pytest.mark.slow
def test_results_among_the_sources_are_no_sources(crystals: Path, sevennet_model: Path) -> None:
    arguments = {"model": str(sevennet_model), "relax": False, "scheduler": "threads"}
    found = rank(crystals, crystals / "results", **arguments)
    assert found.sizes["structure"] == 2
    again = rank(crystals, crystals / "results", **arguments)
    xr.testing.assert_identical(again, found)
    file = crystals / "results/campaign.yaml"
    xr.testing.assert_identical(rank_file(file, crystals / "results"), found)


def test_a_mistake_in_a_late_step_costs_no_earlier_step(crystals: Path, sevennet_model: Path, tmp_path: Path) -> None:
    (crystals / "PoO.cif").write_text(POLONIUM)
    out, other = tmp_path / "out", tmp_path / "other.csv"
    other.write_text("formula,energy_per_atom,scheme\nAu,-3.2,omat24\n")
    arguments = {"model": str(sevennet_model), "relax": False, "scheduler": "threads"}
    with pytest.raises(ConfigError, match="no reference can be used"):
        rank(crystals, out, references=[other], **arguments)
    lines: list[str] = []
    with pytest.raises(ConfigError, match="did you mean 'energy_above_hull"):
        rank(crystals, out, where="energy_above_hul < 1", note=lines.append, **arguments)
    assert any("does not cover Po: structures with these elements are not ranked" in line for line in lines)
    made = (out / "scores.zarr/zarr.json").stat().st_mtime_ns
    with pytest.raises(OutputExistsError, match="relax False instead of True"):
        rank(crystals, out, **{**arguments, "relax": True})
    assert rank(crystals, out, top=1, **arguments).sizes["structure"] == 1
    assert (out / "scores.zarr/zarr.json").stat().st_mtime_ns == made
    with pytest.raises(OutputExistsError, match="top 1 instead of 2"):
        rank(crystals, out, top=2, **arguments)


def test_a_folder_of_something_else_is_left_as_it_is(crystals: Path, sevennet_model: Path) -> None:
    before = sorted(crystals.iterdir())
    with pytest.raises(OutputExistsError, match="is read by this run"):
        rank(crystals, crystals, model=str(sevennet_model))
    assert sorted(crystals.iterdir()) == before


def rank_file(file: Path, out: Path) -> xr.Dataset:
    """Run a campaign file."""
    return run(RankSettings.load(file), out, scheduler="threads", note=lambda _: None)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        (["--limit", "5", "--no-relax"], "holds all settings; set --relax, --limit in it instead"),
        (["more.cif"], "must be the only source, but more.cif is given too"),
    ],
)
def test_nothing_beside_a_campaign_file_is_ignored(beside: list[str], message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("sources: [a.cif]\n")
    done = CliRunner().invoke(app, ["rank", str(file), *beside])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
