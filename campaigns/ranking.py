"""Rank a folder of crystals: graphs, relaxation, hull, selection and report, in one resumable call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xarray as xr
from ase.data import chemical_symbols

from ..export.runtime.dispersion import Dispersion, recorded
from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.energy_schemes import NO_DISPERSION, dispersion_of, plus_dispersion
from ..pipeline.errors import SourceError
from ..pipeline.featurization.featurize import featurize
from ..pipeline.provenance import recorded_path
from ..pipeline.runs.cluster import jobs_kept
from ..pipeline.runs.options import RunOptions
from ..pipeline.runs.progress import shows_progress
from ..pipeline.runs.steps_folder import StepsFolder
from ..pipeline.sources.discovery import OPTIMADE_PREFIX, Paths, is_server, path_names, server_name
from ..pipeline.store.graph_store import GraphStore
from ..screening.candidate_graphs import prepare_graphs
from ..screening.chemistry.composition import parsed
from ..screening.chemistry.elemental_energies import elemental_energies
from ..screening.convex_hull import hull as convex_hull
from ..screening.convex_hull.energies import ScoredEnergies, check_without_dispersion
from ..screening.convex_hull.reference_files import content_version, is_dataset
from ..screening.dataset.paths import graphs_path
from ..screening.dataset.reader import ScoresReader, place_of_graphs
from ..screening.dataset.scores import UNRELAXED, open_scores
from ..screening.relaxation import relax as relaxation
from ..screening.reporting.report import report
from ..screening.scoring import screen as scoring
from ..screening.selection import select as selection
from .elements import own_elements
from .models.catalog import find_model, is_known
from .models.resolve import model_file
from .references.fetch import fetch_references
from .references.systems import systems_of
from .settings import RankSettings

SETTINGS_FILE = "campaign.yaml"
CANDIDATES, SCORES, RELAXED = "candidates.zarr", "scores.zarr", "relaxed.zarr"
HULL, BEST, REPORT, KNOWN = "hull.zarr", "best", "report.html", "references.graphs.zarr"
GATHERED, RELAXED_REFERENCES = "references.parquet", "references.relaxed.zarr"
_FOLDER = StepsFolder(
    noun="campaign",
    differences={
        "sources": "other structures",
        "model": "another model",
        "references": "other references",
        "dispersion": "another dispersion correction",
        "equiscreen": "another version of equiscreen",
    },
    outputs=(
        *(SETTINGS_FILE, graphs_path(CANDIDATES), SCORES, RELAXED, graphs_path(RELAXED), "relaxed.trajectories"),
        *(GATHERED, KNOWN, RELAXED_REFERENCES, graphs_path(RELAXED_REFERENCES), "references-*.relaxed*.zarr"),
        *(HULL, BEST, REPORT, "*.report.html"),
    ),
    notes=frozenset({SETTINGS_FILE}),
    first_use={
        **dict.fromkeys(("relax", "relaxation", "dispersion", "device"), (SCORES, RELAXED)),
        **dict.fromkeys(("references", "scheme"), (HULL, KNOWN, RELAXED_REFERENCES)),
        "relax_references": (HULL, RELAXED_REFERENCES),
        "within": (HULL,),
        **dict.fromkeys(("where", "top"), (BEST,)),
    },
    made_from={GATHERED: ("references", "scheme")},
)

Note = Callable[[str], None]


def rank(
    sources: Paths,
    out: str | Path = "results",
    *,
    scheduler: str | None = None,
    allow_mixed_devices: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    note: Note = lambda text: None,  # noqa: ARG005
    **settings: Any,
) -> xr.Dataset:
    """Rank crystals by their energy above the hull of references, or by their formation energy.

    The structures are converted to graphs and relaxed (or scored without relaxation); their formation energies and
    energies above hull are computed, and the best structures are written as CIF files and as a table. The folder holds
    the store of each step. To resume an interrupted campaign, call the function again with the same arguments.

    Example:
        >>> from equiscreen.campaigns import rank
        >>> best = rank("crystals.extxyz", "results", model="model.onnx", relax=False, scheduler="threads")
        >>> best["rank"].values.tolist()
        [1, 2, 3, 4]

    Args:
        sources: Structure files in any supported format; or one graph store or scores dataset, whose graphs are used.
        out: Folder to write.
        scheduler: Dask cluster to work on; see `pipeline.runs.cluster.connect`.
        allow_mixed_devices: Accept workers, and parts of earlier runs, with other kinds of devices or instruction sets;
            results then differ by rounding (`export.runtime.model_workers`).
        overwrite: Delete the campaign in the folder and start again.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a message about each step.
        settings: Fields of `RankSettings`.

    Returns:
        The best structures, best first, as `equiscreen.screening.select` returns them.

    Raises:
        ConfigError: A setting is invalid, a reference cannot be used, or a package is not installed.
        ModelFileError: The model is unknown or cannot be used.
        CheckpointError: The checkpoint is damaged or unfinished, or the weights cannot be imported.
        UnreachableError: The weights of the model cannot be downloaded.
        ExportError: A check of the exported model failed.
        DeviceError: The device does not exist here, or on a worker.
        SourceError: A file does not exist, or holds no structure that can be read.
        StoreError: None of the structures could be evaluated or selected.
        OutputExistsError: The folder holds a campaign with other settings, something else, or an input.
    """
    chosen = RankSettings.of(sources=path_names(sources), **settings)
    return run(
        chosen,
        Path(out),
        scheduler=scheduler,
        allow_mixed_devices=allow_mixed_devices,
        overwrite=overwrite,
        progress=progress,
        note=note,
    )


@jobs_kept()
def run(
    settings: RankSettings,
    out: Path,
    *,
    scheduler: str | None = None,
    allow_mixed_devices: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
    note: Note,
) -> xr.Dataset:
    """Run a campaign, or the steps that are still missing; arguments and errors as for `rank`."""
    model = model_file(settings.model, progress=shows_progress(progress), note=note)
    potential = OnnxPotential.load(model, threads=1)
    inputs = [*settings.sources, *(name for name in settings.references if not is_live(name)), str(model)]
    dispersion = Dispersion.of(settings.dispersion, {settings.model: potential.metadata})
    plan = {**_plan(settings, potential.sha256, out), "dispersion": recorded(dispersion)}
    options = RunOptions(
        scheduler=scheduler,
        limit=settings.limit,
        progress=progress,
        device=settings.device,
        allow_mixed_devices=allow_mixed_devices,
    )
    with _FOLDER.opened(out, plan, inputs, overwrite=overwrite):
        settings.save(out / SETTINGS_FILE)
        step = _Steps(settings, model, potential, out, options, note)
        step.candidates()
        step.gather()  # first, so that unusable references are reported before hours of relaxation
        step.evaluate()
        step.elements()
        step.relax_references()
        step.hull()
        found = step.select()
        step.report()
    return found


def ranking_column(settings: RankSettings) -> str:
    """Return the column by which a campaign ranks: energy above hull with references, otherwise formation energy."""
    name = "energy_above_hull" if settings.references else "formation_energy_per_atom"
    return name if settings.relax else f"{name}{UNRELAXED}"


class _Steps:
    """The steps of a campaign. A step is finished if its output exists, since outputs appear only when complete."""

    def __init__(
        self,
        settings: RankSettings,
        model: Path,
        potential: OnnxPotential,
        folder: Path,
        options: RunOptions,
        note: Note,
    ) -> None:
        self.settings, self.model, self.folder, self.note = settings, model, folder, note
        self.options = options
        self.scores = folder / (RELAXED if settings.relax else SCORES)
        self.graphs = ""
        self.references, self.elemental = list(settings.references), list[Path]()
        self.model_references: list[Path] = []
        self.potential, self.scheme = potential, potential.metadata.energy_scheme
        self.has_dispersion = settings.dispersion != NO_DISPERSION

    def candidates(self) -> None:
        """Featurize the sources, with the cutoff of the model."""
        prepared = prepare_graphs(self.settings.sources, self.model, self.folder / CANDIDATES, self.options)
        self.graphs = prepared.path
        if prepared.summary:
            self.note(prepared.summary)

    def evaluate(self) -> None:
        """Relax the structures, or score them without relaxation."""
        self._tell_not_covered()
        is_store = self.graphs != graphs_path(
            self.folder / CANDIDATES
        )  # no earlier step has limited the number of records
        common = {**self._common(), "limit": self.options.limit if is_store else None}
        if self.settings.relax:
            make = partial(relaxation.relax, self.graphs, self.model, self.scores, self.settings.relaxation, **common)
            self._once(self.scores, make, relaxation.summary)
        else:
            make = partial(scoring.screen, self.graphs, self.model, self.scores, **common)
            self._once(self.scores, make, scoring.summary)

    def _tell_not_covered(self) -> None:
        """Report elements that occur in the structures and that the model does not cover."""
        numbers = set(np.unique(GraphStore(self.graphs).column("atomic_number")).tolist())
        lacking = [chemical_symbols[number] for number in sorted(numbers - {*self.potential.metadata.elements})]
        if lacking:
            self.note(
                f"{self.settings.model} does not cover {', '.join(lacking)}: structures with these elements are not "
                "ranked (`equiscreen models` lists other models)"
            )

    def gather(self) -> None:
        """Gather references in the chemical systems of the candidates into one table; datasets are used directly."""
        given = [name for name in self.references if is_live(name) or not is_dataset(name)]
        if not given:
            return
        if not self.settings.relax_references:
            check_without_dispersion(plus_dispersion(self.scheme, self.settings.dispersion), given[0])
        out = self.folder / GATHERED
        if not out.exists():
            systems, _ = systems_of(self.graphs)
            gathered = fetch_references(
                given,
                systems,
                out,
                scheme=self.scheme,
                assumed=self.settings.scheme,
                progress=shows_progress(self.options.progress),
            )
            self.note(gathered.summary(out))
        if self.settings.relax_references:
            _check_structures(out, given)
        self.references = [str(out), *(name for name in self.references if name not in given)]

    def elements(self) -> None:
        """Take the energies of the elements from the model, if nothing else provides them."""
        if not self.has_dispersion and (self.references or elemental_energies(self.scheme)):
            return
        out = self._own_elements()
        self.note(
            f"{out}: energies of the elements are computed with the model, since equiscreen has none for the energy "
            f"scheme {plus_dispersion(self.scheme, self.settings.dispersion)}"
        )
        self.elemental = [out]

    def relax_references(self) -> None:
        """Relax the structures of the references with the model, for a hull with all energies computed by the model."""
        if not self.settings.relax_references:
            return
        self.model_references = [self._own_elements()]
        for number, path in enumerate(self.references):
            if is_dataset(path) and _is_relaxed_with(path, self.potential, self.settings.dispersion):
                self.model_references.append(Path(path))
                continue
            graphs = self._structures_of(path)
            out = self.folder / RELAXED_REFERENCES
            if number:
                out = out.with_name(f"references-{number + 1}.relaxed.zarr")
            make = partial(relaxation.relax, graphs, self.model, out, self.settings.relaxation, **self._common())
            self._once(out, make, relaxation.summary)
            self.model_references.append(out)

    def hull(self) -> None:
        """Compute formation energies and energies above hull."""
        settings, out = self.settings, self.folder / HULL
        references: list[str | Path] = [*self.references, *self.elemental]
        of_model = self.model_references
        if self.has_dispersion and of_model:  # only the energies of the relaxed references include it
            references, of_model = [*of_model], []
        make = partial(
            convex_hull.hull,
            self.scores,
            references,
            out,
            scheme=settings.scheme,
            model_references=of_model,
            within=settings.within,
            error=self._known_error(),
            progress=self.options.progress,
        )
        self._once(out, make, convex_hull.summary)

    def _known_error(self) -> float | None:
        """Return the error of the model's energies above hull, eV/atom; None if it is unknown or does not apply."""
        settings = self.settings
        if self.has_dispersion or not (settings.references and settings.relax and is_known(settings.model)):
            return None
        return find_model(settings.model).hull_error

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
            title = f"Crystals ranked by {self.settings.model}"
            by = ranking_column(self.settings)
            report(self.folder / HULL, out, title=title, by=by, selection=self.folder / BEST)

    def _common(self) -> dict[str, Any]:
        """Run options of the steps that evaluate the model."""
        return {
            "dispersion": self.settings.dispersion,
            "device": self.options.device,
            "allow_mixed_devices": self.options.allow_mixed_devices,
            "scheduler": self.options.scheduler,
            "progress": self.options.progress,
        }

    def _own_elements(self) -> Path:
        return own_elements(self.model, self.potential, self.options, self.note, dispersion=self.settings.dispersion)

    def _once(self, out: Path, make: Callable[[], xr.Dataset], summary: Callable[[xr.Dataset, Path], str]) -> None:
        self.note(summary(open_scores(out) if out.exists() else make(), out))

    def _known(self) -> Path | str | None:
        """Return a graph store of the references, to tell known structures from new ones; None if they have none."""
        dataset = next(filter(is_dataset, self.references), None)
        if dataset is not None:
            return self._structures_of(dataset)
        if not self.references or "lattice_vectors" not in pq.read_schema(self.folder / GATHERED).names:
            return None
        try:
            return self._structures_of(self.references[0])
        except SourceError as error:
            self.note(f"structures are not marked as known or new: {error}")
            return None

    def _structures_of(self, references: str) -> Path | str:
        """Return a graph store of the structures in a dataset of references, or in the table of all others."""
        if is_dataset(references):
            return place_of_graphs(references, ScoresReader(references).attrs, None)
        out = self.folder / KNOWN
        if not out.exists():
            featurize(
                references,
                out,
                cutoff=self.potential.cutoff,
                scheduler=self.options.scheduler,
                progress=self.options.progress,
            )
        return out


def _is_relaxed_with(dataset: str, potential: OnnxPotential, dispersion: str) -> bool:
    """Whether a dataset holds structures relaxed with a model and a dispersion correction."""
    rows = ScoredEnergies(dataset)
    same_scheme = dispersion_of(rows.scheme) == dispersion
    return rows.relaxed and rows.model == potential.metadata.weights_sha256 and same_scheme


def _check_structures(table: Path, given: Sequence[str]) -> None:
    """Check that all compounds in a table of references have structures; elements may have none.

    Args:
        table: The table, as `fetch_references` writes it.
        given: Names of the references in it, as given by the user.

    Raises:
        SourceError: Some compounds have no structure.
    """
    structure = "lattice_vectors"
    has_any = structure in pq.read_schema(table).names
    rows = pq.read_table(table, columns=["id", "formula", "source", *([structure] if has_any else [])]).to_pylist()
    lacking = [row for row in rows if row.get(structure) is None and len(parsed(row["formula"])) > 1]
    if lacking:
        first = lacking[0]
        name = next((one for one in given if recorded_path(one, table) == first["source"]), first["source"])
        raise SourceError(
            f"{name}: {len([row for row in lacking if row['source'] == first['source']]):,} of these references have "
            f"no structure ({first['formula']} {first['id']} is the first), but --relax-references needs one for every "
            "compound; use references with structures, or leave out --relax-references"
        )


def _plan(settings: RankSettings, model_sha256: str, folder: Path) -> dict[str, Any]:
    """Return all that the results of a campaign depend on, including the content of the model and the references."""
    place = folder / _FOLDER.plan_file
    references = [[name, "live"] if is_live(name) else content_version(name) for name in settings.references]
    return {
        "sources": [
            server_name(source) if is_server(source) else recorded_path(source, place) for source in settings.sources
        ],
        "model": model_sha256,
        "references": [[recorded_path(path, place), *versions] for path, *versions in references],
        **settings.model_dump(mode="json", exclude={"sources", "model", "references", "relaxation"}),
        "relaxation": asdict(settings.relaxation) if settings.relax or settings.relax_references else None,
        "equiscreen": version("equiscreen"),
    }


def is_live(reference: str) -> bool:
    """Whether references come from a server, whose answer may change."""
    return reference == "mp" or reference.startswith(OPTIMADE_PREFIX)
