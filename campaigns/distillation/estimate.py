"""Estimate of the cost of labelling, from a sample of the crystals."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...export.runtime.onnx_potential import OnnxPotential, check_cutoff, check_gradients
from ...pipeline.graphs.graph_block import GraphBlock
from ...pipeline.sources.discovery import Paths, path_names
from ...pipeline.store.graph_store import GraphStore
from ...pipeline.store.schema import ATOM, EDGE, STRUCTURE
from ...screening.candidate_graphs import graph_store_of, sampled_graphs
from ...screening.dataset.parts import uncompressed_bytes
from .labelling import labelled_arrays
from .settings import DistillSettings

SAMPLE = 16


@dataclass(frozen=True, slots=True)
class DistillEstimate:
    """Estimated cost of the labels of a distillation; as text, one line.

    Attributes:
        crystals: Number of crystals.
        structures: Largest number of structures to label.
        seconds: Time to label them on one core, s; NaN if the teacher covers no crystal of the sample.
        bytes_on_disk: Largest size of the labelled store, without text columns.
    """

    crystals: int
    structures: int
    seconds: float
    bytes_on_disk: float

    def __str__(self) -> str:
        labels = (
            "an unknown time to label them, since the teacher covers no crystal of the sample"
            if math.isnan(self.seconds)
            else f"about {self.seconds:,.0f} s on one core to label them"
        )
        return (
            f"{self.crystals:,} crystals, at most {self.structures:,} structures: {labels}, at most "
            f"{self.bytes_on_disk / 1e6:,.1f} MB on disk (text columns not counted); the training is not included"
        )


def estimate(sources: Paths, teacher: Path, settings: DistillSettings) -> DistillEstimate:
    """Estimate the cost of the labels: evaluate some crystals in this process and scale up by edges.

    Args:
        sources: As for `distill`.
        teacher: ONNX file.
        settings: Settings of the distillation.

    Raises:
        ConfigError, SourceError, StoreError, ModelFileError: As for `distill`.
    """
    potential, named = OnnxPotential.load(teacher, threads=1), path_names(sources)
    check_gradients(potential, teacher, "a distillation needs")
    store = graph_store_of(named)
    if store is not None:
        graphs = GraphStore(store)
        check_cutoff(graphs, potential, teacher)
        return _estimate(graphs, potential, settings, len(graphs))
    with sampled_graphs(named, potential.cutoff, None) as (_, sample, expected):
        return _estimate(GraphStore(sample), potential, settings, expected)


def _estimate(graphs: GraphStore, potential: OnnxPotential, settings: DistillSettings, size: int) -> DistillEstimate:
    rows = np.unique(np.linspace(0, len(graphs) - 1, SAMPLE).astype(int)).tolist()
    blocks = [graphs.block(row, row + 1, labels=False) for row in rows]
    covered = [block for block in blocks if np.isin(block.atomic_number, potential.elements).all()]
    seconds = math.nan
    if covered:
        sample = GraphBlock.concatenate(covered)
        potential.evaluate(sample)  # allocates memory
        begin = time.perf_counter()
        potential.evaluate(sample)
        seconds = (time.perf_counter() - begin) / len(sample.neighbor)
    crystals = size if settings.crystals is None else min(size, settings.crystals)
    share = crystals / len(graphs)
    each = 1 + settings.variants.variants + settings.variants.frames
    counts = {
        STRUCTURE: crystals * each,
        ATOM: round(float(graphs.n_atoms.sum(dtype=np.int64)) * share * each),
        EDGE: round(float(graphs.n_edges.sum(dtype=np.int64)) * share * each),
    }
    return DistillEstimate(
        crystals,
        crystals * each,
        seconds * counts[EDGE] / each * settings.variants.evaluations,
        uncompressed_bytes(labelled_arrays(), counts),
    )
