"""The notebooks: they run, and what they show was not changed by hand."""

from __future__ import annotations

import base64
from pathlib import Path

import nbclient
import nbformat
import pytest

from .conftest import ROOT

pytest.importorskip("ipykernel", reason="the kernel that runs the notebooks")
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
# Pictures in docs/pictures that a notebook draws.
PICTURES = [("2_symmetry_made_visible", "rotation.png")]


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    """Kinds of output of each code cell."""
    return [
        [one["output_type"] for one in cell.outputs if one["output_type"] != "stream"]
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    stored = nbformat.read(path, as_version=4)
    assert not any("error" in cell for cell in outputs(stored))
    assert any(cell.get("outputs") for cell in stored.cells), "stored without outputs, so that nobody can read it"
    run = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        run, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert outputs(run) == outputs(stored)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_holds_no_local_path(path: Path) -> None:
    assert path.stat().st_size < 300_000
    assert not [word for word in ("/tmp/", "/home/", "/root/") if word in path.read_text()]  # noqa: S108


@pytest.mark.parametrize(("notebook", "picture"), PICTURES)
def test_a_picture_of_the_docs_is_that_of_the_notebook(notebook: str, picture: str) -> None:
    stored = nbformat.read(ROOT / f"notebooks/{notebook}.ipynb", as_version=4)
    drawn = [
        base64.b64decode(output.data["image/png"])
        for cell in stored.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert (ROOT / "docs/pictures" / picture).read_bytes() in drawn
