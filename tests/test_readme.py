"""README and docs: their commands work on real files, their links lead somewhere, their figures are those printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import equiscreen
import pytest
import yaml
from equiscreen import campaigns, export, model, pipeline, screening
from equiscreen.model import Config
from equiscreen.pipeline.structures.random_crystals import probe_structures
from equiscreen.screening import open_scores

from .conftest import ELEMENTS, ROOT, cif_text, write_emt_labelled

README = (ROOT / "README.md").read_text()
OWN_NETWORK = (ROOT / "docs/own_network.md").read_text()
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
# Pages that only the site has, made from the program when it is built.
GENERATED = {ROOT / "docs/reference/command_line.md"}
EQUIVARIANCE = (ROOT / "docs/explanation/equivariance.md").read_text()
NETWORKS = (("l_max 0", "degree 0"), ("l_max 1", "degree 1"), ("l_max 2", "degree 2"), ("control", "control"))
# Figures in README and docs: the page, the file of the benchmark, what it printed, and the words of the page.
FIGURES = [
    (README, "featurize_rate.txt", r"equiscreen +([\d,]+) structures/s", "{} structures/s,"),
    (README, "featurize_rate.txt", r"ratio +([\d.]+)", "{} times pymatgen"),
    (README, "million.txt", r"1,000,000 candidates: ([\d,]+) structures/s", "{} structures/s"),
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
QUICK = {"network": {"hidden_irreps": "4x0e + 2x1o", "correlation": 2}, "training": {"max_epochs": 2}}


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", OWN_NETWORK, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_emt_labelled(tmp_path / "training.extxyz", probe_structures(ELEMENTS, 20, seed=70))
    (tmp_path / "candidates").mkdir()
    for number, structure in enumerate(probe_structures(ELEMENTS, 12, seed=71)):
        (tmp_path / "candidates" / f"c{number}.cif").write_text(cif_text(structure))
    (tmp_path / "quick.yaml").write_text(yaml.safe_dump(QUICK))
    return tmp_path


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
    parts = (campaigns, pipeline, model, export, screening)
    assert listed == [f"{part.__name__}.{name}" for part in parts for name in part.__all__]


@pytest.mark.parametrize(("page", "file", "pattern", "words"), FIGURES, ids=range(len(FIGURES)))
def test_figures_are_those_printed(page: str, file: str, pattern: str, words: str) -> None:
    printed = re.search(pattern, (ROOT / "tests/benchmarks" / file).read_text())
    assert printed is not None, f"{file} does not print {pattern}"
    assert words.format(*printed.groups()) in page


def test_the_citation_has_the_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == equiscreen.__version__


def test_the_configuration_is_the_default() -> None:
    config = Config.parse(yaml.safe_load(block("yaml")), "own_network.md")
    assert config.network.heads.keys() == {"dielectric"}
    assert config.training.split.by == "composition"


@pytest.mark.slow
def test_the_shell_lines(folder: Path) -> None:
    lines = block("sh").strip().splitlines()
    assert len(lines) == 5
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for line in lines:
        quick = f"{line} --config quick.yaml" if " train " in line else line  # two epochs instead of two hundred
        done = subprocess.run(quick.split(), cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert open_scores(folder / "scores.zarr").sizes["structure"] == 12


@pytest.mark.slow
def test_the_python(folder: Path) -> None:
    script = block("python")
    assert len([line for line in script.splitlines() if line.strip()]) == 10
    (folder / "job.py").write_text(script)
    done = subprocess.run([sys.executable, "job.py"], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^c\d+ +-?\d", done.stdout, re.MULTILINE)) == 10
