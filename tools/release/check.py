"""Check that a version can be released: its public address, version and date, and the built distributions.

    python tools/release/check.py dist

Prints one line for each problem; the exit code is 1 if there is any.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]


def problems(dist: Path) -> list[str]:
    """Return the problems of the checkout and of the distributions in a folder, one line each."""
    found = []
    settings = (ROOT / "mkdocs.yml").read_text()
    address = re.search(r'^repo_url: "?([^"\n]*)"?$', settings, re.MULTILINE)
    if address is None or not address[1].startswith("https://"):
        found.append("mkdocs.yml: repo_url is not set; set it to the public https address of the repository")
    version = re.search(r'^__version__ = "(.+)"$', (ROOT / "__init__.py").read_text(), re.MULTILINE)
    if version is None:
        return [*found, "__init__.py: no __version__"]
    heading = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    if heading is None or not re.fullmatch(rf"{re.escape(version[1])} \(\d{{4}}-\d\d-\d\d\)", heading[1]):
        found.append(f"CHANGELOG.md: the first heading is not '## {version[1]} (date of the release)'")
    if yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] != version[1]:
        found.append(f"CITATION.cff: the version is not {version[1]}")
    files = sorted(dist.glob(f"equiscreen-{version[1]}*"))
    if {file.name.removeprefix(f"equiscreen-{version[1]}") for file in files} != {"-py3-none-any.whl", ".tar.gz"}:
        found.append(f"{dist}: does not hold one wheel and one source distribution of {version[1]}; run `make dist`")
    elif subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *files], check=False).returncode:  # noqa: S603
        found.append(f"{dist}: twine rejects the distributions")
    return found


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print("\n".join(found) or "ready to be released")
    sys.exit(bool(found))
