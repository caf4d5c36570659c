"""Hooks of mkdocs: generate the page of the command line; resolve links and pictures outside `docs/`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

COMMAND_LINE = "reference/command_line.md"
BENCHMARKS, PICTURES = "tests/benchmarks", "pictures/benchmarks"
_COLUMNS = 100


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the page of the command line and the pictures of the benchmarks."""
    files.append(File.generated(config, COMMAND_LINE, content=command_line()))
    for picture in sorted(Path(BENCHMARKS).resolve().glob("*.png")):
        files.append(File.generated(config, f"{PICTURES}/{picture.name}", abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001
    """Point links to files outside the site at the repository; if its address is unknown, turn them into plain text."""
    up = page.file.src_uri.count("/") + 1
    pictures = re.compile(rf"(!\[[^\]]*\]\()(?:\.\./){{{up}}}{BENCHMARKS}/")
    markdown = pictures.sub(rf"\1{'../' * (up - 1)}{PICTURES}/", markdown)
    outside = re.compile(rf"(?<!!)\[([^\]]+)\]\((?:\.\./){{{up}}}([^).][^)]*)\)")
    if config.repo_url:
        return outside.sub(rf"[\1]({config.repo_url.rstrip('/')}/blob/main/\2)", markdown)
    return outside.sub(lambda match: match[1] if match[1] == match[2] else f"{match[1]} (`{match[2]}`)", markdown)


def command_line() -> str:
    """Return the help pages of all commands, as `equiscreen COMMAND --help` prints them."""
    os.environ["COLUMNS"] = str(_COLUMNS)
    from equiscreen.cli.app import app  # noqa: PLC0415 - typer reads the width of the terminal when it is imported

    group = typer.main.get_command(app)
    top = group.make_context("equiscreen", [], resilient_parsing=True)
    pages = [f"# Command line\n\n```text\n{group.get_help(top)}\n```\n"]
    for name in group.list_commands(top):
        verb = group.get_command(top, name)
        context = verb.make_context(name, [], parent=top, resilient_parsing=True)
        pages.append(f"## equiscreen {name}\n\n```text\n{verb.get_help(context)}\n```\n")
    return "\n".join(pages)
