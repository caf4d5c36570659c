"""The fenced code blocks of a page, and the comments before them, which the site does not show.

``<!-- not run: REASON -->`` keeps the block that follows from being run; ``<!-- new folder -->`` runs it, and those
after it, in a folder that holds only the files that the page is given.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SHELL, PYTHON, CONSOLE, YAML, OUTPUT = ("sh", "bash"), "python", "pycon", "yaml", "text"
NEW_FOLDER, NOT_RUN = "new folder", "not run"
_COMMENT = re.compile(r"<!-- *(.*?) *-->")
_FENCE = re.compile(r"( *)```(.*)")
# A first line that names the file which a block shows.
_FILE = re.compile(r"# ([\w./-]+\.\w+)\n")


@dataclass(frozen=True, slots=True)
class Block:
    """A fenced block of code.

    Attributes:
        page: The page that holds it.
        line: Line of its opening fence, from 1.
        language: Word after the fence; may be empty.
        text: The code, with a newline at its end.
        not_run: Why it is not run; None if it is.
        new_folder: Whether it starts in a new folder.
        indented: Whether it belongs to a list or an admonition.
    """

    page: Path
    line: int
    language: str
    text: str
    not_run: str | None = None
    new_folder: bool = False
    indented: bool = False

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"

    @property
    def file(self) -> str | None:
        """Name of the file that the block shows, if its first line is a comment with one."""
        found = _FILE.match(self.text)
        return None if found is None else found[1]

    @property
    def is_run(self) -> bool:
        """Whether the block is run, rather than read or skipped."""
        return self.not_run is None and self.language in (*SHELL, PYTHON, CONSOLE)


def blocks(page: Path) -> list[Block]:
    """All fenced blocks of a page.

    Raises:
        ValueError: A comment belongs to no block, gives no reason, or is unknown; or a block has no end.
    """
    found: list[Block] = []
    notes: list[str] = []
    lines = page.read_text().splitlines()
    number = 0
    while number < len(lines):
        line, number = lines[number], number + 1
        fence = _FENCE.fullmatch(line)
        if fence is not None:
            begin, end = number, number
            while end < len(lines) and lines[end].strip() != "```":
                end += 1
            if end == len(lines):
                raise ValueError(f"{page.name}:{begin}: the block has no end")
            text = "".join(f"{one.removeprefix(fence[1])}\n" for one in lines[begin:end])
            found.append(Block(page, begin, fence[2], text, *_meaning(notes, page, begin), indented=bool(fence[1])))
            notes, number = [], end + 1
        elif line.startswith("<!--"):
            comment = _COMMENT.fullmatch(line)
            if comment is None:
                raise ValueError(f"{page.name}:{number}: a comment must be one line")
            notes.append(comment[1])
        elif line.strip() and notes:
            raise ValueError(f"{page.name}:{number}: the comment before this line belongs to no block")
    return found


def _meaning(notes: list[str], page: Path, line: int) -> tuple[str | None, bool]:
    """Why a block is not run, if it is not, and whether it starts in a new folder."""
    reason = None
    for note in notes:
        kind, _, words = note.partition(":")
        if note != NEW_FOLDER and (kind != NOT_RUN or not words.strip()):
            raise ValueError(f"{page.name}:{line}: {note!r} is neither `{NEW_FOLDER}` nor `{NOT_RUN}: REASON`")
        reason = words.strip() if kind == NOT_RUN else reason
    return reason, NEW_FOLDER in notes
