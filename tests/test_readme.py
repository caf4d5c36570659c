"""README and docs: their links work, and their figures are those that benchmarks printed.

`test_docs_blocks` tests their code.
"""

from __future__ import annotations

import re
from pathlib import Path

import equiscreen
import pytest
import yaml
from equiscreen import campaigns, export, model, pipeline, publishing, screening

from .conftest import ROOT
from .documentation.blocks import blocks

README = (ROOT / "README.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages that exist only on the site, generated when the site is built.
GENERATED = {ROOT / "docs/reference/command_line.md"}
SOURCES, DASK, DYNAMICS = (
    (ROOT / "docs" / name).read_text() for name in ("sources.md", "how-to/dask.md", "how-to/molecular_dynamics.md")
)
EVIDENCE, PROPERTIES = ((ROOT / "docs" / name).read_text() for name in ("evidence.md", "how-to/properties.md"))
SCALING = (ROOT / "docs/scaling.md").read_text()
EQUIVARIANCE = (ROOT / "docs/explanation/equivariance.md").read_text()
NETWORKS = (("l_max 0", "degree 0"), ("l_max 1", "degree 1"), ("l_max 2", "degree 2"), ("control", "control"))
# What `elasticity.py` prints for a preset: number of crystals, errors of bulk and shear modulus.
MODULI = r"preset {},.*\n.*against DFT, ([\d,]+) crystals.*MAE of K ([\d.]+).*MAE of G ([\d.]+)"
# Figures in README and docs: the page, the file of the benchmark, what it printed, and the words of the page.
FIGURES = [
    (README, "featurize_rate.txt", r"equiscreen +([\d,]+) structures/s", "{} structures/s,"),
    (README, "featurize_rate.txt", r"ratio +([\d.]+)", "{} times pymatgen"),
    (SOURCES, "featurize_rate.txt", r"ratio +([\d.]+)", "featurizing is {} times as fast"),
    (DASK, "pretrained_size.txt", r"edges: (\d+),\d+ bytes/edge", "An edge takes {} kB with 7net-0"),
    (DYNAMICS, "pretrained_size.txt", r"edges: (\d+),\d+ bytes/edge", "{} kB of\n  memory for each edge with 7net-0"),
    (README, "million.txt", r"1,000,000 candidates: ([\d,]+) structures/s", "{} structures/s"),
    (SCALING, "scaling.txt", r"([\d,]+) workers killed", "After {} workers killed"),
    (SCALING, "scaling.txt", r"the client killed (\d+) times", "the command killed {} times"),
    (SCALING, "scaling.txt", r"; ([\d,]+) rows in order: True; equal to the undisturbed run: True", "all {} rows"),
    (
        README,
        "pretrained_rate.txt",
        r"equiscreen / SevenNet, best to best: ([\d.]+)",
        "{} times SevenNet's own code in PyTorch",
    ),
    (README, "relax_campaign.txt", r"equiscreen / SevenNet \+ ASE: ([\d.]+)", "{} times SevenNet in ASE"),
    (README, "relax_campaign.txt", r"with FIRE too ([\d.]+)", "{} times with the same optimizer"),
    (
        README,
        "training_rate.txt",
        r"SevenNet, twice as many .*?([\d.]+)\n(?=SevenNet, as its preset +1)",
        "{} times SevenNet's trainer",
    ),
    (README, "rank.txt", r"rank --relax: 300 crystals in (\d+) s", "{} s; formation energies"),
    (README, "rank.txt", r"rank --relax:.*MAE ([\d.]+)", "off by {} eV/atom"),
    (README, "screening_skill.txt", r"all +([\d,]+) crystals", "{} crystals |"),
    (README, "screening_skill.txt", r"all .*precision ([\d.]+)", "precision {}"),
    (README, "screening_skill.txt", r"all .*recall ([\d.]+)", "recall {}"),
    *(
        (page, "elasticity.txt", MODULI.format(preset), words)
        for page, preset, words in (
            (EVIDENCE, "matcalc", "bulk modulus off by {1} GPa, shear modulus by {2} GPa on average, {0} crystals"),
            (EVIDENCE, "default", "{1} and {2} GPa, {0} crystals"),
            (PROPERTIES, "matcalc", "of {0} binary crystals are off by {1} GPa and the shear moduli by {2} GPa"),
            (PROPERTIES, "default", "for {0} crystals, by {1} and {2} GPa"),
        )
    ),
    *(
        (page, "precision.txt", pattern, words)
        for page, moduli, heat in (
            (EVIDENCE, "by at most {} GPa", "heat capacities by {} J/K"),
            (PROPERTIES, "by at most {} GPa", "heat capacities by at most {} J/K"),
        )
        for pattern, words in (
            (r"shear_modulus_vrh: 20 crystals, .* largest ([\d.]+)", moduli),
            (r"heat_capacity: 20 crystals, .* largest ([\d.]+)", heat),
        )
    ),
    (PROPERTIES, "precision.txt", r"min_frequency: 20 crystals, .* largest ([\d.]+)", "by at most {} THz"),
    (EVIDENCE, "kappa.txt", r"SrO-rs +([\d.]+) +([\d.]+)", "SrO: {} W/m/K, published {};"),
    (EVIDENCE, "heat_capacity.txt", r"largest difference ([\d.]+);", "{} J/K per mole of the cell, the largest"),
    (EVIDENCE, "heat_capacity.txt", r"of (\d+) heat capacities within", "difference of {} crystals"),
    (EVIDENCE, "heat_capacity.txt", r"all: \d+ crystals, MAE ([\d.]+)", "{} J/K per mole of atoms on average"),
    (EVIDENCE, "heat_capacity.txt", r"all: (\d+) crystals", "on average, {} crystals"),
    *(
        (
            EQUIVARIANCE,
            "data_efficiency.txt",
            rf"\n{network} +([\d.]+) \(.* ([\d.]+) +\([\d.]+\)\n",
            f"| {name} | {{}} | {{}} |",
        )
        for network, name in NETWORKS
    ),
    (EQUIVARIANCE, "data_efficiency.txt", r"\nl_max 2 +(-[\d.]+) \[", "the power {} of the number"),
    (EQUIVARIANCE, "data_efficiency.txt", r"\nl_max 0 +(-[\d.]+) \[", "and {} with degree 0"),
    (EQUIVARIANCE, "data_efficiency.txt", r"turned to the first .*? ([\d.]+) \(", "below {} meV/angstrom"),
    (EQUIVARIANCE, "data_efficiency.txt", r"forces of zero +([\d.]+)", "zero gives {}"),
]


def links(page: Path) -> list[str]:
    """Targets of the relative links of a page."""
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    return [target for target in targets if "://" not in target]


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 120


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = {(page.parent / target).resolve() for target in links(page)}
    assert [str(target) for target in targets - GENERATED if not target.exists()] == []


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached = {ROOT / "README.md"}
    pending = list(reached)
    while pending:
        page = pending.pop()
        found = {(page.parent / target).resolve() for target in links(page) if target.endswith(".md")} - GENERATED
        pending += found - reached
        reached |= found
    assert [page.name for page in PAGES if page not in reached] == []


def test_every_page_and_every_public_name_is_on_the_site() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES[1:] if f"{page.relative_to(ROOT / 'docs')}\n" not in settings] == []
    listed = re.findall(r"^::: (\S+)$", (ROOT / "docs/reference/python.md").read_text(), re.MULTILINE)
    parts = (campaigns, pipeline, model, export, screening, publishing)
    assert listed == [f"{part.__name__}.{name}" for part in parts for name in part.__all__]


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_lines_are_short_except_in_tables_and_pictures(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), 1)
    assert not [number for number, line in lines if len(line) > 120 and not line.startswith(("|", "!["))]


@pytest.mark.parametrize(("page", "file", "pattern", "words"), FIGURES, ids=range(len(FIGURES)))
def test_figures_are_those_printed(page: str, file: str, pattern: str, words: str) -> None:
    printed = re.search(pattern, (ROOT / "tests/benchmarks" / file).read_text())
    assert printed is not None, f"{file} does not print {pattern}"
    assert words.format(*printed.groups()) in page


def test_the_citation_has_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == equiscreen.__version__


@pytest.mark.parametrize(("language", "lines"), [("sh", 5), ("python", 10)])
def test_the_workflow_is_as_short_as_the_page_says(language: str, lines: int) -> None:
    block = next(block for block in blocks(ROOT / "docs/own_network.md") if block.language == language)
    assert len([line for line in block.text.splitlines() if line.strip()]) == lines
