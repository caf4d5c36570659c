"""Estimated cost of a campaign: time, disk space and memory of each step, extrapolated from a sample."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ..export.runtime.onnx_potential import OnnxPotential
from ..pipeline.energy_schemes import NO_DISPERSION
from ..pipeline.runs.progress import shows_progress
from ..pipeline.sources.discovery import path_names
from ..pipeline.store.graph_store import GraphStore
from ..screening.candidate_graphs import graph_store_of, sampled_graphs
from ..screening.chemistry.elemental_energies import elemental_energies
from ..screening.convex_hull.reference_files import is_dataset
from ..screening.relaxation import relax as relaxation
from ..screening.scoring import screen as scoring
from .elements import ELEMENTS, elements_path
from .models.resolve import model_file
from .ranking import GATHERED, is_live
from .references.fetch import fetch_references
from .references.systems import systems_of
from .settings import RankSettings

# Hull, selection and report: fixed time (s), rate (structures/s), disk space per structure (bytes), memory (bytes; all
# from tests/benchmarks/hull_rate.txt and select_rate.txt), and size of the report (bytes).
_LAST_SECONDS, _LAST_RATE, _LAST_ROW, _LAST_MEMORY, _REPORT = 10, 3_000, 500, 1_200_000_000, 5_000_000


@dataclass(frozen=True, slots=True)
class CampaignEstimate:
    """Estimated cost of a campaign; as text, one line per step.

    Attributes:
        steps: Estimate of each step, as text or as an object with a text form, by the name of the step.
    """

    steps: Mapping[str, object]

    def __str__(self) -> str:
        return "\n".join(f"{name}: {cost}" for name, cost in self.steps.items())


def estimate(
    settings: RankSettings,
    *,
    progress: bool | None = None,
    note: Callable[[str], None] = lambda text: None,  # noqa: ARG005
) -> CampaignEstimate:
    """Estimate the cost of a campaign.

    A sample of the structures is featurized, and some structures and references are relaxed or scored. References on
    servers are not downloaded, and their cost is not estimated.

    Example:
        >>> print(estimate(RankSettings(sources=["candidates.extxyz"])))  # doctest: +SKIP

    Args:
        settings: Settings of the campaign.
        progress: Show progress on standard error; by default, only on a terminal or in a notebook.
        note: Called with a message if a model is exported first.

    Returns:
        The estimate of each step.

    Raises:
        SourceError: A source is a server, whose number of structures is unknown before the download.
        EquiscreenError: Other cases as for `campaigns.rank`.
    """
    model = model_file(settings.model, progress=shows_progress(progress), note=note)
    return CampaignEstimate(dict(_steps(settings, model, OnnxPotential.load(model, threads=1))))


def _steps(settings: RankSettings, model: Path, potential: OnnxPotential) -> Iterator[tuple[str, object]]:
    """Yield the name and the estimate of each step."""
    sources = path_names(settings.sources)
    store = graph_store_of(sources)
    evaluation = "relaxation" if settings.relax else "scores"
    if store is not None:
        size = len(GraphStore(store))
        size = size if settings.limit is None else min(size, settings.limit)
        yield evaluation, _evaluation(settings, store, model, size)
        yield from _references(settings, store, model, potential)
    else:
        with sampled_graphs(sources, potential.cutoff, settings.limit) as (featurizing, sample, size):
            yield "graphs", featurizing
            yield evaluation, _evaluation(settings, sample, model, size)
            yield from _references(settings, sample, model, potential)
    yield (
        "hull, selection and report",
        f"about {_LAST_SECONDS + size / _LAST_RATE:,.0f} s, "
        f"{(_REPORT + size * _LAST_ROW) / 1e6:,.1f} MB on disk plus the files of the best structures, at most "
        f"{_LAST_MEMORY / 1e6:,.0f} MB of memory",
    )


def _evaluation(settings: RankSettings, graphs: str | Path, model: Path, size: int) -> object:
    """Return the cost of relaxing or scoring `size` structures, of which the store `graphs` holds a sample."""
    if settings.relax:
        return relaxation.estimate(
            graphs, model, settings.relaxation, settings.limit, dispersion=settings.dispersion, sample_of=size
        )
    return scoring.estimate(graphs, model, settings.limit, dispersion=settings.dispersion, sample_of=size)


def _references(
    settings: RankSettings, candidates: str | Path, model: Path, potential: OnnxPotential
) -> Iterator[tuple[str, object]]:
    """Yield the estimates for the references and for the crystals of the elements."""
    scheme = potential.metadata.energy_scheme
    live = [name for name in settings.references if is_live(name)]
    files = [name for name in settings.references if name not in live and not is_dataset(name)]
    if live:
        yield f"references from {', '.join(live)}", "unknown before the download"
    if files:
        with tempfile.TemporaryDirectory() as folder:
            table, begin = Path(folder) / GATHERED, time.monotonic()
            fetch_references(files, systems_of(candidates)[0], table, scheme=scheme, assumed=settings.scheme)
            yield (
                "references",
                f"{pq.read_metadata(table).num_rows:,} phases in the chemical systems of the sample (other "
                f"candidates may need more), about {time.monotonic() - begin:,.0f} s, "
                f"{table.stat().st_size / 1e6:,.1f} MB on disk",
            )
            if settings.relax_references:
                yield "relaxation of these references", _relaxation(settings, table, model, potential)
    given = settings.dispersion == NO_DISPERSION and (settings.references or elemental_energies(scheme))
    if (settings.relax_references or not given) and not elements_path(potential, settings.dispersion).exists():
        yield "relaxation of the elements, once for each model", _relaxation(settings, ELEMENTS, model, potential)


def _relaxation(settings: RankSettings, structures: Path, model: Path, potential: OnnxPotential) -> object:
    """Return the cost of relaxing the structures in a file."""
    with sampled_graphs([str(structures)], potential.cutoff, None) as (_, sample, size):
        return relaxation.estimate(sample, model, settings.relaxation, dispersion=settings.dispersion, sample_of=size)
