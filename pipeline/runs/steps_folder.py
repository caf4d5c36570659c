"""The folder of a run of several steps: the stores in it belong to one plan, and one run at a time writes into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ..errors import EquiscreenError, OutputExistsError
from .lock import locked
from .marks import read_mark, write_mark
from .staging import check_place

# Replaces the plan while a folder is being cleared: if the clearing is interrupted, the remaining files must not be
# resumed.
_CLEARING = {"clearing": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepsFolder:
    """The folders of one kind of run.

    Attributes:
        noun: What the folder holds, such as "campaign". The plan is in ``NOUN.json``.
        differences: Descriptions of a difference for messages, by the name of the part of the plan that differs; for
            other parts, messages give both values.
        outputs: Names of all files and folders of a run of this kind, with `*` for any text. While they are being
            written, they have an additional suffix, as in ``NAME.partial``.
        notes: Names of files that are useless without the stores of the steps.
        first_use: For parts of the plan, by name, the outputs that depend on them. A part may change until one of these
            outputs exists or is being made, so that a mistake in the settings of a late step can be corrected without
            repeating the steps before it.
        made_from: For files, by name, the parts of the plan that they depend on. A file is removed if one of its parts
            changes.
    """

    noun: str
    differences: Mapping[str, str]
    outputs: tuple[str, ...] = ()
    notes: frozenset[str] = field(default_factory=frozenset)
    first_use: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    made_from: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def plan_file(self) -> str:
        """Name of the file that holds the plan."""
        return f"{self.noun}.json"

    @property
    def lock_file(self) -> str:
        """Name of the lock file."""
        return f"{self.noun}.lock"

    @contextmanager
    def opened(
        self, folder: Path, plan: Mapping[str, Any], inputs: Iterable[str | Path] = (), *, overwrite: bool | None = None
    ) -> Iterator[None]:
        """Hold the lock of a folder for the duration of a block, and check that the folder belongs to a plan.

        If the block fails before its first step has begun, the folder may be given another plan.

        Args:
            folder: The folder, which need not exist.
            plan: Everything that the results depend on, ready for JSON.
            inputs: Files and stores that are read; the folder may not hold any of them.
            overwrite: Remove the contents of the folder if it holds a run of this kind; None if the command has no such
                option.

        Raises:
            OutputExistsError: The folder cannot be written; it holds an input, a damaged or a different plan, or
                anything else that is not a run of this kind; or another run is using it.
        """
        check_place(folder.resolve(), [Path(path) for path in inputs if "://" not in str(path)])
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputExistsError(f"{folder} cannot be written ({error.strerror}); choose another `--out`") from error
        if not any((folder / name).exists() for name in (self.lock_file, self.plan_file)):
            self._check_empty(folder)
        with locked(folder / self.lock_file):
            path = folder / self.plan_file
            if path.exists() and (overwrite or read_mark(path) == _CLEARING):
                self._clear(folder)
            self._check(folder, json.loads(json.dumps(plan)), can_overwrite=overwrite is not None)
            try:
                yield
            except EquiscreenError:
                self._forget(folder)
                raise

    def _check(self, folder: Path, plan: Mapping[str, Any], *, can_overwrite: bool) -> None:
        """Check that a folder belongs to a plan, or give it the plan if it is empty."""
        path = folder / self.plan_file
        again = "use `--overwrite` to start again" if can_overwrite else "remove the folder to start again"
        if not path.exists():
            self._check_empty(folder)
            write_mark(path, plan)
            return
        found = read_mark(path)
        if found is None:
            raise OutputExistsError(
                f"{path} is damaged, so the contents of the folder are unknown; {again}, or choose another `--out`"
            )
        changed = {name for name in self._free(folder) if found.get(name) != plan.get(name)}
        differences = self._differences({**found, **{name: plan[name] for name in changed}}, plan)
        if differences:
            raise OutputExistsError(
                f"{folder} holds a {self.noun} with {'; '.join(differences)}; choose another `--out`, use the same "
                f"settings to resume it, or {again}"
            )
        if changed:
            for name, parts in self.made_from.items():
                if changed.intersection(parts):
                    (folder / name).unlink(missing_ok=True)
            write_mark(path, plan)

    def _free(self, folder: Path) -> set[str]:
        """Return the parts of the plan that no output in a folder depends on yet."""
        held = {one.name.removesuffix(".partial") for one in folder.iterdir()}
        return {name for name, outputs in self.first_use.items() if held.isdisjoint(outputs)}

    def _check_empty(self, folder: Path) -> None:
        """Check that a folder without a plan holds nothing but a lock file."""
        if any(one.name != self.lock_file for one in folder.iterdir()):
            raise OutputExistsError(f"{folder} already exists and is not a {self.noun}; choose another `--out`")

    def check_removable(self, folder: Path) -> None:
        """Check that a folder holds nothing but a run of this kind, or does not exist.

        Raises:
            OutputExistsError: The folder holds something else, or is a file.
        """
        if folder.exists() and not folder.is_dir():
            raise OutputExistsError(f"{folder} is a file; choose another `--out`")
        if not folder.exists():
            return
        if not (folder / self.plan_file).exists():
            self._check_empty(folder)
        other = next((one for one in self._held(folder) if not self._is_output(one.name)), None)
        if other is not None:
            raise OutputExistsError(
                f"{folder} holds {other.name}, which is not part of a {self.noun}, so the folder is not overwritten; "
                "choose another `--out`"
            )

    def _is_output(self, name: str) -> bool:
        return any(fnmatchcase(name, output) or fnmatchcase(name, f"{output}.partial") for output in self.outputs)

    def _held(self, folder: Path) -> list[Path]:
        """List what a folder holds besides the plan and the lock file."""
        return [one for one in sorted(folder.iterdir()) if one.name not in (self.plan_file, self.lock_file)]

    def _clear(self, folder: Path) -> None:
        """Remove all outputs, and the plan last.

        Raises:
            OutputExistsError: The folder holds other files too.
        """
        self.check_removable(folder)
        path = folder / self.plan_file
        write_mark(path, _CLEARING)
        for one in self._held(folder):
            if one.is_dir() and not one.is_symlink():
                shutil.rmtree(one)
            else:
                one.unlink()
        path.unlink()

    def _forget(self, folder: Path) -> None:
        """Remove the plan of a folder in which no step has begun, so that a corrected plan can replace it."""
        records = {self.plan_file, self.lock_file, *self.notes}
        if {one.name for one in folder.iterdir()} <= records:
            for name in records - {self.lock_file}:
                (folder / name).unlink(missing_ok=True)

    def _differences(self, found: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
        """Describe how the plan of the run in a folder differs from another plan."""
        differences = []
        for name, new in plan.items():
            old = found.get(name)
            if old == new or (None in (old, new) and isinstance(old or new, Mapping)):
                continue  # settings of a step that one of the plans omits; the omission itself is reported
            if name in self.differences:
                differences.append(self.differences[name])
            elif isinstance(old, Mapping) and isinstance(new, Mapping):
                differences += [
                    f"{key} {old.get(key)!r} instead of {new[key]!r}" for key in new if old.get(key) != new[key]
                ]
            else:
                differences.append(f"{name} {old!r} instead of {new!r}")
        return differences
