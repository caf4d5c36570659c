"""A browser as the client of a server and of a publication; hostile ids are shown as text and do nothing."""

from __future__ import annotations

import functools
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import gemmi
import numpy as np
import pytest
from equiscreen.publishing import open_catalogue, publish
from equiscreen.screening import open_scores

from ..browser import WAIT_S, Page, browser_page
from ..local_servers import HOST, QuietHandler
from .datasets import HOSTILE, write_dataset
from .test_serving import served

COUNT, ON_A_PAGE = 120, 50
WIDTHS = (1400, 400)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("scores"), COUNT)


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    with browser_page(tmp_path) as found:
        yield found


def check_harmless(page: Page, address: str) -> None:
    """Hostile texts have run nothing, and nothing was asked of other servers."""
    assert page.dialogs == []
    assert [one for one in page.complaints if "status of 4" not in one] == []
    assert {urlsplit(one).netloc for one in page.requests if not one.startswith("data:")} <= {urlsplit(address).netloc}
    assert page.evaluate("document.querySelectorAll('script, img').length") == 0


def check_fits(page: Page) -> None:
    """The page itself does not scroll sideways; wide tables do so on their own."""
    for width in WIDTHS:
        page.resize(width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.slow
def test_people_browse_a_served_dataset(dataset: Path, page: Page, tmp_path: Path) -> None:
    scores = open_scores(dataset)
    good = scores["status"].values == 0
    with served(dataset) as address:
        page.open(f"{address}/")
        check_fits(page)
        page.resize(WIDTHS[0])
        assert page.evaluate(
            "document.querySelector('.wide').scrollWidth <= document.querySelector('.wide').clientWidth"
        )
        first = page.column(1)
        assert len(first) == ON_A_PAGE
        # Pages.
        page.click("a[href*='page=2']")
        second = page.column(1)
        page.click("a[href*='page=3']")
        shown = [*first, *second, *page.column(1)]
        assert sorted(shown) == sorted(" ".join(one.split()) for one in scores["structure_id"].values.tolist())
        # Sorting by a click on a heading, twice for the other direction.
        page.click("th a[href$='sort=max_force']")
        best = np.sort(scores["max_force"].values[good])
        heading = "document.querySelector('th[aria-sort]')"
        assert page.evaluate(f"{heading}.textContent").startswith("max_force")
        column = 1 + page.evaluate(f"{heading}.cellIndex")
        assert page.column(column) == [f"{one:.4f}" for one in best[:ON_A_PAGE]]
        page.click("th a[href$='sort=-max_force']")
        assert page.column(column) == [f"{one:.4f}" for one in best[::-1][:ON_A_PAGE]]
        # A query through the form, which keeps the order.
        page.type("input[name=elements]", "Au")
        page.type("input[name=where]", 'max_force > 0.1 and status == "ok"')
        page.click("button")
        wanted = good & (scores["max_force"].values > 0.1) & scores["formula"].str.contains("Au").values
        assert (
            page.column(column)
            == [f"{one:.4f}" for one in np.sort(scores["max_force"].values[wanted])[::-1]][:ON_A_PAGE]
        )
        page.type("input[name=where]", "max_forc > 0.1")
        page.click("button")
        assert "did you mean 'max_force'" in page.evaluate("document.querySelector('strong').textContent")
        # An id that is a script: found, shown as text, and its structure is downloaded.
        page.open(f"{address}/")
        page.type("input[name=id]", HOSTILE[0])
        page.click("button")
        assert page.column(1) == [HOSTILE[0]]
        assert page.evaluate("document.querySelector('input[name=id]').value") == HOSTILE[0]
        page.click("td a", loads=False)
        check_cif(tmp_path / "downloads", int(scores["n_atoms"].values[0]))
        for path in ("/docs", f"/?where={HOSTILE[2]}", f"/?sort={HOSTILE[0]}"):
            page.open(f"{address}{path}")
            check_fits(page)
        page.open(f"{address}/")
        check_harmless(page, address)


def check_cif(downloads: Path, n_atoms: int) -> None:
    """A CIF with so many atoms has been downloaded."""
    begin = time.monotonic()
    while not (found := list(downloads.glob("*.cif"))):
        assert time.monotonic() - begin < WAIT_S
        time.sleep(0.1)
    block = gemmi.cif.read(str(found[0])).sole_block()
    assert len(gemmi.make_small_structure_from_block(block).sites) == n_atoms


@pytest.mark.slow
def test_people_read_a_publication(dataset: Path, page: Page, tmp_path: Path) -> None:
    publish(dataset, tmp_path / "public", title=f"{HOSTILE[0]}{HOSTILE[2]}", report=False)
    handler = functools.partial(QuietHandler, directory=str(tmp_path / "public"))
    with http.server.ThreadingHTTPServer((HOST, 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://{HOST}:{server.server_port}"
        page.open(f"{address}/index.html")
        assert page.evaluate("document.querySelector('h1').textContent") == f"{HOSTILE[0]}{HOSTILE[2]}"
        best = open_catalogue(tmp_path / "public").ranking()["structure_id"].values.tolist()
        assert page.column(1) == [str(rank) for rank in range(1, 21)]
        assert page.column(2) == [" ".join(one.split()) for one in best[:20]]
        check_fits(page)
        check_harmless(page, address)
        server.shutdown()


@pytest.mark.slow
def test_the_browser_would_notice_a_script(page: Page, tmp_path: Path) -> None:
    (tmp_path / "bad.html").write_text(f'<h1>{HOSTILE[0]}</h1><p title="{HOSTILE[2]}"></p>')
    page.open(f"file://{tmp_path}/bad.html")
    assert page.dialogs[0] == "1"
    assert page.evaluate("document.querySelectorAll('script, img').length") == 2
