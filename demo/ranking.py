"""Comparison of two rankings of the candidates of act two: the model's and EMT's."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from ase.data import atomic_numbers
from numpy.typing import NDArray
from scipy.stats import spearmanr

from ..pipeline import GraphStore
from ..pipeline.errors import StoreError
from .alloys import METALS
from .composition import element_fractions, formation_energies, reliable_energies

TOP_FRACTION = 0.02
SHOWN = 10


@dataclass(frozen=True, slots=True)
class Candidate:
    """One row of the list of best candidates.

    Attributes:
        structure_id: Id of the candidate.
        formula: Reduced formula.
        prototype: AFLOW label of the prototype.
        predicted: Formation energy from the model, eV/atom.
        emt: Formation energy from EMT, eV/atom.
        emt_rank: Rank by EMT's formation energy, from 1.
    """

    structure_id: str
    formula: str
    prototype: str
    predicted: float
    emt: float
    emt_rank: int


@dataclass(frozen=True, slots=True)
class Ranking:
    """Formation energies of the candidates that have one, and the quality of their ranking.

    Attributes:
        predicted: float64[n], formation energies from the model, eV/atom.
        emt: float64[n], formation energies from EMT, eV/atom.
        mae: Mean absolute error of the formation energies, eV/atom.
        spearman: Spearman rank correlation.
        n_top: Number of candidates in each list of best candidates, the model's and EMT's.
        n_shared: Number of candidates in both lists.
        best: The model's best candidates.
        left_out: Number of candidates that are not ranked because their status, or the status of one of their metals,
            is not ok.
    """

    predicted: NDArray[np.float64]
    emt: NDArray[np.float64]
    mae: float
    spearman: float
    n_top: int
    n_shared: int
    best: tuple[Candidate, ...]
    left_out: int


def compare(store: Path, scores: xr.Dataset) -> Ranking:
    """Rank candidates by their formation energy relative to the pure metals, for the model and for EMT.

    The model and EMT each use their own energies of the metals. Scores whose status is not ok are not used, and
    candidates that depend on them are left out.

    Args:
        store: Graph store of the candidates, with EMT's energies as labels and the pure metals as ``reference-*``.
        scores: Scores of that store.

    Raises:
        StoreError: No candidate can be ranked.
    """
    graphs = GraphStore(store)
    block = graphs.block(0, len(graphs))
    fractions = element_fractions(block, [atomic_numbers[metal] for metal in METALS])
    names = scores["structure_id"].values.astype(object)
    pure = np.array([int(np.flatnonzero(names == f"reference-{metal}")[0]) for metal in METALS])
    predicted = reliable_energies(scores)
    emt = block.structure_labels["energy"] / block.n_atoms
    model_formation = formation_energies(predicted, fractions, predicted[pure])
    emt_formation = formation_energies(emt, fractions, emt[pure])
    chosen = np.isfinite(model_formation)
    chosen[pure] = False
    if not chosen.any():
        raise StoreError(
            f"{store}: no candidate can be ranked, because the status of every candidate or of one of its metals is "
            "not ok; train on more structures or for more epochs"
        )
    model_formation, emt_formation = model_formation[chosen], emt_formation[chosen]
    order = np.argsort(model_formation)
    emt_rank = np.empty(len(order), dtype=np.int64)
    emt_rank[np.argsort(emt_formation)] = np.arange(1, len(order) + 1)
    n_top = max(SHOWN, round(TOP_FRACTION * len(order)))
    rows = np.flatnonzero(chosen)
    best = tuple(
        Candidate(
            str(names[rows[i]]),
            str(scores["formula"].values[rows[i]]),
            str(scores["prototype"].values[rows[i]]),
            float(model_formation[i]),
            float(emt_formation[i]),
            int(emt_rank[i]),
        )
        for i in order[:SHOWN]
    )
    return Ranking(
        model_formation,
        emt_formation,
        mae=float(np.abs(model_formation - emt_formation).mean()),
        spearman=float(spearmanr(model_formation, emt_formation).statistic) if len(order) > 1 else np.nan,
        n_top=n_top,
        n_shared=int((emt_rank[order[:n_top]] <= n_top).sum()),
        best=best,
        left_out=len(names) - len(pure) - len(order),
    )


def draw(ranking: Ranking, path: Path) -> None:
    """Plot the model's formation energies against EMT's, and the fraction of EMT's best in the model's top N."""
    import matplotlib as mpl  # noqa: PLC0415 - takes half a second, and only this plot needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    left.scatter(ranking.emt, ranking.predicted, s=4, alpha=0.4, linewidths=0)
    ends = [float(ranking.emt.min()), float(ranking.emt.max())]
    left.plot(ends, ends, color="black", linewidth=0.8)
    left.set(
        xlabel="formation energy, EMT (eV/atom)",
        ylabel="formation energy, model (eV/atom)",
        title=f"{len(ranking.emt):,} candidates, MAE {1e3 * ranking.mae:.1f} meV/atom",
    )
    n = len(ranking.emt)
    best = np.zeros(n, dtype=bool)
    best[np.argsort(ranking.emt)[: ranking.n_top]] = True
    found = np.cumsum(best[np.argsort(ranking.predicted)]) / ranking.n_top
    right.plot(np.arange(1, n + 1), found)
    right.axvline(ranking.n_top, color="black", linewidth=0.8, linestyle=":")
    right.set(
        xscale="log",
        xlabel="number of candidates, in the model's order",
        ylabel=f"share of EMT's best {ranking.n_top} among them",
        title=f"{ranking.n_shared} of {ranking.n_top} among the first {ranking.n_top}",
        ylim=(0, 1.02),
    )
    figure.suptitle("Labels are from ASE's EMT, not from DFT")
    figure.savefig(path, dpi=150)
    plt.close(figure)
