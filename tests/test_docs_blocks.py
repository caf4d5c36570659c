"""README and docs: every block of code runs, in the order of its page, unless a comment says why it does not.

`documentation/blocks.py` explains the comments, and `documentation/inputs.py` makes the files that a page needs. Blocks
run as a reader would run them, with four exceptions: training ends after a few epochs, lines that install packages are
only compared with `pyproject.toml`, Dask workers of shell commands are threads (except where a page starts a cluster),
and blocks with TorchSim are left out where it cannot be installed.
"""

from __future__ import annotations

import contextlib
import doctest
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from equiscreen.campaigns import RankSettings
from equiscreen.model import Config
from equiscreen.screening import open_scores

from .conftest import ROOT
from .documentation.blocks import CONSOLE, OUTPUT, PYTHON, SHELL, YAML, Block, blocks
from .documentation.inputs import GIVEN, write_cifs
from .documentation.shell import Shell, short_trainings, without_installation
from .local_servers import s3_environment, s3_server
from .optional_packages import has_torch_sim

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]
# Pages whose blocks are run by another test, which also compares the results with the page.
RUN_ELSEWHERE = {"examples.md": "tests/test_examples.py"}
# Pages whose blocks are alternatives, each run in a folder of its own. Other pages mark alternatives with comments.
ALTERNATIVES = {"README.md"}
# A bucket that the page about object stores uses.
BUCKET = "my-bucket"
LANGUAGES = {*SHELL, PYTHON, CONSOLE, YAML, OUTPUT}
RUN = [page for page in PAGES if page.name not in RUN_ELSEWHERE and any(block.is_run for block in blocks(page))]
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass
class Session:
    """One page being run.

    Attributes:
        folder: Current folder of its blocks.
        shell: Shell that runs its shell blocks.
        names: Names that its Python blocks have defined.
        printed: What its blocks have printed.
    """

    folder: Path
    shell: Shell
    names: dict[str, Any] = field(default_factory=lambda: {"__name__": "__main__"})
    printed: list[str] = field(default_factory=list)

    def run(self, block: Block) -> None:
        """Run a block; one that shows a file is written to it."""
        if block.file is not None:
            (self.folder / block.file).write_text(block.text)
        elif block.language in SHELL:
            script, _ = without_installation(block.text)
            ended = self.shell.run(script, self.folder)
            self.printed.append(ended.output)
            print(ended.output)  # noqa: T201 - shown with -rP
            assert ended.code == 0, f"{block}:\n{ended.output}"
        elif block.language == PYTHON:
            code = compile("\n" * block.line + block.text, str(block.page), "exec")
            with contextlib.chdir(self.folder), self._printing():
                exec(code, self.names)  # noqa: S102 - that is the test
        elif block.language == CONSOLE:
            examples = doctest.DocTestParser().get_doctest(
                block.text, self.names, str(block), str(block.page), block.line
            )
            runner, lines = doctest.DocTestRunner(optionflags=OPTIONS), list[str]()
            with contextlib.chdir(self.folder):
                failed = runner.run(examples, out=lines.append, clear_globs=False).failed
            assert not failed, "".join(lines)
            self.names.update(examples.globs)

    @contextlib.contextmanager
    def _printing(self) -> Iterator[None]:
        with (self.folder / "printed.txt").open("w+") as file, contextlib.redirect_stdout(file):
            yield
            file.seek(0)
            self.printed.append(file.read())
        print(self.printed[-1])  # noqa: T201 - shown with -rP


def check_ranked(session: Session) -> None:
    """Check that the printed list is sorted and has one to ten rows."""
    ranked = [float(x) for x in re.findall(r"^ *\d+  \w+ +(-?\d+\.\d+) ", "".join(session.printed), re.MULTILINE)]
    assert 1 <= len(ranked) <= 10
    assert ranked == sorted(ranked)


def check_candidates_scored(session: Session) -> None:
    """Check that all candidates have scores, and that the script printed the ten best."""
    assert open_scores(session.folder / "scores.zarr").sizes["structure"] == 12
    assert len(re.findall(r"^c\d+ +-?\d", session.printed[-1], re.MULTILINE)) == 10


# Checks to make after the blocks of a page have run.
CHECKS: dict[str, Callable[[Session], None]] = {"README.md": check_ranked, "own_network.md": check_candidates_scored}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_says_what_its_blocks_are(page: Path) -> None:
    for block in blocks(page):  # checks the comments
        assert block.language in LANGUAGES or page == README, f"{block}: {block.language!r} is none of {LANGUAGES}"
        assert not block.indented, f"{block}: an indented block is not run"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_that_install_name_extras_that_exist(page: Path) -> None:
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for block in blocks(page):
        if block.language in SHELL:
            _, installing = without_installation(block.text)
            named = {
                extra
                for line in installing
                for list_ in re.findall(r"\[([\w,]+)\]", line)
                for extra in list_.split(",")
            }
            assert named <= extras, str(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_are_valid(page: Path) -> None:
    for block in blocks(page):
        content = yaml.safe_load(block.text) if block.language == YAML else {}
        if {"network", "training"} & content.keys():
            Config.parse(content, str(block))
        elif "sources" in content:
            RankSettings.model_validate(content)


def test_given_files_are_those_of_pages() -> None:
    assert GIVEN.keys() <= {page.name for page in RUN}
    assert len({page.name for page in RUN}) == len(RUN)


@pytest.fixture(scope="module")
def cache(shared_folder: Path) -> Path:
    """Cache folder of exported models for all pages."""
    return shared_folder / "cache-of-pages"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A bucket on a local server, which holds a few CIFs."""
    write_cifs(tmp_path / "crystals", 4)
    with s3_server() as url, s3_environment(url, monkeypatch) as fs:
        fs.mkdir(BUCKET)
        fs.put(str(tmp_path / "crystals"), f"{BUCKET}/crystals", recursive=True)
        yield


@pytest.fixture
def shell(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell with the programs that the pages mention, and with a cache of models for all pages."""
    monkeypatch.setenv("EQUISCREEN_CACHE", str(cache))
    programs = tmp_path / "programs"
    programs.mkdir()
    vasp = programs / "run_vasp"
    vasp.write_text(f"#!/bin/sh\nexec {sys.executable} {ROOT / 'tests/documentation/vasp.py'}\n")
    vasp.chmod(0o755)
    started = Shell(programs)
    yield started
    started.close()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_blocks_of_a_page_run(page: Path, shell: Shell, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    pytest.importorskip("sevenn", reason="the sevenn package contains the weights")
    if any(BUCKET in block.text for block in blocks(page)):
        request.getfixturevalue("bucket")
    session = Session(tmp_path / "page", shell)
    for number, block in enumerate(block for block in blocks(page) if block.is_run or block.file is not None):
        if number == 0 or block.new_folder or page.name in ALTERNATIVES:
            session.folder, session.names = tmp_path / f"page-{number}", {"__name__": "__main__"}
            session.folder.mkdir()
            for name, make in GIVEN.get(page.name, {}).items():
                make(session.folder / name)
        if "torch_sim" not in block.text or has_torch_sim():
            with short_trainings():
                session.run(block)
    if page.name in CHECKS:
        CHECKS[page.name](session)
