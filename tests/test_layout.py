"""The library's folders: small packages, all listed in pyproject.toml, in which no module hides an exported name."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

from hypothesis import settings

from .conftest import ROOT

MAX_MODULES = 12
OUTSIDE_THE_LIBRARY = {"build", "dist", "docs", "notebooks", "tests"}
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def package_folders() -> dict[str, Path]:
    """The folder of each package of the library, by dotted name; the repository's root is the first."""
    found = {"equiscreen": ROOT}
    pending = list(found.items())
    while pending:
        name, folder = pending.pop()
        for init in folder.glob("*/__init__.py"):
            if folder != ROOT or init.parent.name not in OUTSIDE_THE_LIBRARY:
                found[f"{name}.{init.parent.name}"] = init.parent
                pending.append((f"{name}.{init.parent.name}", init.parent))
    return found


PACKAGES = package_folders()


def library_files() -> list[Path]:
    """All files below the top-level packages, except caches and hidden files."""
    top_level = [folder for folder in PACKAGES.values() if folder.parent == ROOT]
    files = [path for folder in top_level for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if path.parent.name != "__pycache__" and not path.name.startswith(".")]


def packaged_data() -> dict[tuple[str, str], set[Path]]:
    """The files that each glob of package-data matches."""
    globs = [(package, pattern) for package, patterns in SETUPTOOLS["package-data"].items() for pattern in patterns]
    return {(package, pattern): set(PACKAGES[package].glob(pattern)) for package, pattern in globs}


def public_names(package: Path) -> set[str]:
    """Names in ``__all__`` of a package; without one, those that its ``__init__`` imports from its modules."""
    imported: set[str] = set()
    for node in ast.parse((package / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["__all__"]:
            return set(ast.literal_eval(node.value))
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            imported |= {alias.asname or alias.name for alias in node.names}
    return imported


def test_pyproject_lists_every_package() -> None:
    assert sorted(SETUPTOOLS["packages"]) == sorted(PACKAGES)


def test_every_module_belongs_to_a_package() -> None:
    folders = set(PACKAGES.values())
    assert [path for path in library_files() if path.suffix == ".py" and path.parent not in folders] == []


def test_every_data_file_is_packaged() -> None:
    matched = packaged_data()
    assert [glob for glob, files in matched.items() if not files] == []
    assert {path for path in library_files() if path.suffix != ".py"} <= set().union(*matched.values())


def test_packages_are_small() -> None:
    sizes = {name: len([p for p in folder.glob("*.py") if p.stem != "__init__"]) for name, folder in PACKAGES.items()}
    assert {name: size for name, size in sizes.items() if size > MAX_MODULES} == {}


def test_no_module_hides_an_exported_name() -> None:
    """Importing ``equiscreen.screening.report``, a module, would replace the function of that name in its parent."""
    hidden = {}
    for name, folder in PACKAGES.items():
        children = {path.stem for path in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
        hidden[name] = children & public_names(folder)
    assert {name: names for name, names in hidden.items() if names} == {}


def test_no_example_of_hypothesis_has_a_deadline() -> None:
    assert settings.default.deadline is None  # by the profile in conftest.py
    texts = [path.read_text() for path in (ROOT / "tests").rglob("*.py")]
    assert not [text for text in texts if re.search(r"settings\(.*deadline=(?!None)", text)]
