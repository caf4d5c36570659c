"""Rank a folder of crystals: graphs, relaxation, hull, selection and report, in one resumable call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import xarray as xr

from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.errors import EquiscreenError, OutputExistsError, SourceError
from ..pipeline.featurization.featurize import featurize
from ..pipeline.provenance import recorded_path
from ..pipeline.redaction import redact_urls
from ..pipeline.runs.lock import locked
from ..pipeline.runs.marks import read_mark, write_mark
from ..pipeline.runs.options import RunOptions
from ..pipeline.runs.progress import shows_progress
from ..pipeline.runs.staging import check_place
from ..pipeline.sources.discovery import OPTIMADE_PREFIX
from ..screening.candidate_graphs import Sources, prepare_graphs, source_names
from ..screening.chemistry.elemental_energies import elemental_energies
from ..screening.convex_hull import hull as convex_hull
from ..screening.convex_hull.reference_files import content_version, is_dataset
from ..screening.dataset.paths import graphs_path
from ..screening.dataset.reader import ScoresReader, place_of_graphs
from ..screening.dataset.scores import UNRELAXED, open_scores
from ..screening.relaxation import relax as relaxation
from ..screening.reporting.report import report
from ..screening.scoring import screen as scoring
from ..screening.selection import select as selection
from .elements import write_elements
from .models.resolve import model_file
from .references.fetch import fetch_references
from .references.systems import systems_of
from .settings import RankSettings

PLAN_FILE, LOCK_FILE, SETTINGS_FILE = "campaign.json", "campaign.lock", "campaign.yaml"
CANDIDATES, SCORES, RELAXED = "candidates.zarr", "scores.zarr", "relaxed.zarr"
HULL, BEST, REPORT, KNOWN = "hull.zarr", "best", "report.html", "references.graphs.zarr"
ELEMENTS, FETCHED = "elements.zarr", "references.parquet"
# What differs if one of these parts of a plan does.
_DIFFERENCES = {
    "sources": "other structures",
    "model": "another model",
    "references": "other references",
    "equiscreen": "another version of equiscreen",
}

Note = Callable[[str], None]


def rank(
    sources: Sources,
    out: str | Path = "results",
    *,
    scheduler: str | None = None,
    progress: bool | None = None,
    note: Note = lambda text: None,  # noqa: ARG005
    **settings: Any,
) -> xr.Dataset:
    """Rank crystals by their energy above the hull of references, or by their formation energy.

    The structures are converted to graphs and relaxed (or scored as they are); their formation energies and energies
    above hull are computed, and the best structures are written as CIF files and as a table. The folder holds the store
    of each step. To resume an interrupted campaign, call the function again with the same arguments.

    Example:
        >>> best = rank("candidates/*.cif", references=["entries.json.gz"])  # doctest: +SKIP

    Args:
        sources: Structure files of any kind, or one graph store.
        out: Folder to write.
        scheduler: Dask cluster to work on, see `pipeline.runs.cluster.connect`.
        progress: Show progress on standard error; by default, on a terminal and in a notebook.
        note: Called with a line about each step when it ends.
        settings: Fields of `RankSettings`.

    Returns:
        The best structures, best first, as `equiscreen.screening.select` returns them.

    Raises:
        ConfigError: A setting is invalid, a reference cannot be used, or a package is not installed.
        CheckpointError: There is no such model.
        SourceError: A file does not exist, or holds no structure that can be read.
        StoreError: None of the structures could be evaluated or selected.
        OutputExistsError: The folder holds a campaign with other settings, or something else.
    """
    chosen = RankSettings.of(sources=source_names(sources), **settings)
    return run(chosen, Path(out), scheduler=scheduler, progress=progress, note=note)


def run(
    settings: RankSettings, out: Path, *, scheduler: str | None = None, progress: bool | None = None, note: Note
) -> xr.Dataset:
    """Run a campaign, or the steps that are still missing; arguments and errors as for `rank`."""
    model = model_file(settings.model, progress=shows_progress(progress), note=note)
    potential = OnnxPotential.load(model, threads=1)
    read = [*settings.sources, *settings.references, str(model)]
    check_place(out.resolve(), [Path(one) for one in read if "://" not in one])
    with _folder(out, _plan(settings, potential.sha256, out)):
        settings.save(out / SETTINGS_FILE)
        step = _Steps(settings, model, potential, out, scheduler, progress=progress, note=note)
        step.candidates()
        step.evaluate()
        step.fetch()
        step.elements()
        step.hull()
        found = step.select()
        step.report()
    return found


def ranking_column(settings: RankSettings) -> str:
    """Column by which a campaign ranks: energy above hull with references, else formation energy."""
    name = "energy_above_hull" if settings.references else "formation_energy_per_atom"
    return name if settings.relax else f"{name}{UNRELAXED}"


class _Steps:
    """The steps of a campaign. A step whose output exists is finished, since only complete outputs appear."""

    def __init__(
        self,
        settings: RankSettings,
        model: Path,
        potential: OnnxPotential,
        folder: Path,
        scheduler: str | None,
        *,
        progress: bool | None,
        note: Note,
    ) -> None:
        self.settings, self.model, self.folder, self.note = settings, model, folder, note
        self.options = RunOptions(scheduler=scheduler, limit=settings.limit, progress=progress, device=settings.device)
        self.scores = folder / (RELAXED if settings.relax else SCORES)
        self.graphs = ""
        self.references = list(settings.references)
        self.scheme, self.cutoff = potential.metadata.energy_scheme, potential.cutoff

    def candidates(self) -> None:
        """Featurize the sources, with the cutoff of the model."""
        prepared = prepare_graphs(self.settings.sources, self.model, self.folder / CANDIDATES, self.options)
        self.graphs = prepared.path
        if prepared.summary:
            self.note(prepared.summary)

    def evaluate(self) -> None:
        """Relax the structures, or score them as they are."""
        is_store = self.graphs != graphs_path(self.folder / CANDIDATES)  # no earlier step has limited its records
        common: dict[str, Any] = {
            "device": self.options.device,
            "scheduler": self.options.scheduler,
            "progress": self.options.progress,
            "limit": self.options.limit if is_store else None,
        }
        if self.settings.relax:
            make = partial(relaxation.relax, self.graphs, self.model, self.scores, self.settings.relaxation, **common)
            self._once(self.scores, make, relaxation.summary)
        else:
            make = partial(scoring.screen, self.graphs, self.model, self.scores, **common)
            self._once(self.scores, make, scoring.summary)

    def fetch(self) -> None:
        """Fetch references in the chemical systems of the candidates from servers."""
        live = [name for name in self.references if _is_live(name)]
        if not live:
            return
        out = self.folder / FETCHED
        if not out.exists():
            systems, _ = systems_of(self.graphs)
            account = fetch_references(
                live, systems, out, scheme=self.scheme, progress=shows_progress(self.options.progress)
            )
            self.note(account.summary(out))
        self.references = [*(name for name in self.references if name not in live), str(out)]

    def elements(self) -> None:
        """Relax crystals of the elements, if nothing else provides the energies of the elements."""
        if self.references or elemental_energies(self.scheme):
            return
        out, crystals = self.folder / ELEMENTS, self.folder / "elements.extxyz"
        if not out.exists():
            symbols = write_elements(self.graphs, crystals)
            given = self.folder / "elements.given.zarr"
            graphs = prepare_graphs(str(crystals), self.model, given, replace(self.options, limit=None)).path
            relaxation.relax(
                graphs,
                self.model,
                out,
                scheduler=self.options.scheduler,
                device=self.options.device,
                progress=self.options.progress,
            )
            self.note(
                f"{out}: energies of {', '.join(symbols)} from the model, since equiscreen has none for the energy "
                f"scheme {self.scheme}"
            )
        self.references = [str(out)]

    def hull(self) -> None:
        """Compute formation energies and energies above hull."""
        settings, out = self.settings, self.folder / HULL
        make = partial(
            convex_hull.hull,
            self.scores,
            self.references,
            out,
            scheme=settings.scheme,
            progress=self.options.progress,
        )
        self._once(out, make, convex_hull.summary)

    def select(self) -> xr.Dataset:
        """Select the best structures, and mark those that are among the references."""
        settings, out = self.settings, self.folder / BEST
        if not out.exists():
            selection.select(
                self.folder / HULL,
                out,
                settings.where,
                top=settings.top,
                by=ranking_column(settings),
                known=self._known(),
                progress=self.options.progress,
            )
        return open_scores(out / "scores.zarr")

    def report(self) -> None:
        """Write the HTML report."""
        out = self.folder / REPORT
        if not out.exists():
            report(self.folder / HULL, out, title=f"Crystals ranked by {self.settings.model}")

    def _once(self, out: Path, make: Callable[[], xr.Dataset], summary: Callable[[xr.Dataset, Path], str]) -> None:
        self.note(summary(open_scores(out) if out.exists() else make(), out))

    def _known(self) -> Path | str | None:
        """Graph store of the references, to tell known structures from new ones; None if they have no structures."""
        for path in self.references:
            if is_dataset(path) and path != str(self.folder / ELEMENTS):
                return place_of_graphs(path, ScoresReader(path).attrs, None)
        fetched = str(self.folder / FETCHED)
        files = [path for path in self.references if path == fetched or ".json" in Path(path).suffixes]
        out = self.folder / KNOWN
        if not files:
            return None
        if not out.exists():
            try:
                featurize(
                    files, out, cutoff=self.cutoff, scheduler=self.options.scheduler, progress=self.options.progress
                )
            except SourceError as error:
                self.note(f"no structure is marked as known or new: {error}")
                return None
        return out


def _plan(settings: RankSettings, model_sha256: str, folder: Path) -> dict[str, Any]:
    """Everything that the results of a campaign depend on, including the content of the model and the references."""
    place = folder / PLAN_FILE
    references = [[name, "live"] if _is_live(name) else content_version(name) for name in settings.references]
    return {
        "sources": [redact_urls(source) for source in settings.sources],
        "model": model_sha256,
        "references": [[recorded_path(path, place), *versions] for path, *versions in references],
        **settings.model_dump(mode="json", exclude={"sources", "model", "references", "relaxation"}),
        "relaxation": asdict(settings.relaxation) if settings.relax else None,
        "equiscreen": version("equiscreen"),
    }


def _is_live(reference: str) -> bool:
    """Whether references come from a server, whose answer may change."""
    return reference == "mp" or reference.startswith(OPTIMADE_PREFIX)


@contextmanager
def _folder(folder: Path, plan: Mapping[str, Any]) -> Iterator[None]:
    """Lock the folder of a campaign, and check that it belongs to this plan.

    Raises:
        OutputExistsError: The folder holds something else, or another run is using it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputExistsError(f"{folder}: cannot be written ({error.strerror}); choose another `--out`") from error
    with locked(folder / LOCK_FILE):
        path = folder / PLAN_FILE
        found = read_mark(path)
        if found is not None:
            differences = _differences(found, json.loads(json.dumps(plan)))
            if differences:
                raise OutputExistsError(
                    f"{folder}: holds a campaign with {'; '.join(differences)}; choose another `--out`, or give the "
                    "same settings to resume it"
                )
        elif any(one.name != LOCK_FILE for one in folder.iterdir()):
            raise OutputExistsError(f"{folder}: already exists and is not a campaign; choose another `--out`")
        else:
            write_mark(path, plan)
        try:
            yield
        except EquiscreenError:
            _forget(folder)
            raise


def _forget(folder: Path) -> None:
    """Let a folder in which no step has begun take another campaign, such as one whose mistake is mended."""
    records = {PLAN_FILE, LOCK_FILE, SETTINGS_FILE}
    if {one.name for one in folder.iterdir()} <= records:
        for name in (PLAN_FILE, SETTINGS_FILE):
            (folder / name).unlink(missing_ok=True)


def _differences(found: Mapping[str, Any], plan: Mapping[str, Any]) -> list[str]:
    """How the campaign in a folder differs from another one, as text."""
    differences = []
    for name in plan:
        old, new = found.get(name), plan[name]
        if old == new:
            continue
        if name == "relaxation" and None in (old, new):
            continue  # `relax` differs too
        if name in _DIFFERENCES:
            differences.append(_DIFFERENCES[name])
        elif isinstance(old, Mapping) and isinstance(new, Mapping):
            differences += [
                f"{key} {old.get(key)!r} instead of {new[key]!r}" for key in new if old.get(key) != new[key]
            ]
        else:
            differences.append(f"{name} {old!r} instead of {new!r}")
    return differences
