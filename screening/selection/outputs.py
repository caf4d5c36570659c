"""Writer of a selection in the requested output formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from ...pipeline.energy_schemes import NO_DISPERSION, dispersion_of
from ...pipeline.runs.progress import ProgressReport
from ...pipeline.store.schema import STRUCTURE, TEXT
from ..dataset.parquet import ParquetFile, as_words
from ..dataset.reader import ScoresReader, flag_meanings
from ..dataset.scores import open_scores
from ..dataset.subset import GraphSubset, Subset
from .criteria import Chosen, SelectionPlan
from .derived_columns import ROLE, DerivedColumns, derived_array
from .optimade_folder import OptimadeFolder
from .structure_files import Batch, CifFolder, ExtxyzFile, file_names
from .vasp_inputs import VaspFolders

SELECTION_SCHEMA = "equiscreen-selection/1"
RECIPE_FILE, SCORES_FOLDER, GRAPHS_FOLDER = "recipe.json", "scores.zarr", "scores.graphs.zarr"
STEM, FRONT = "candidates", "pareto_front"
_BATCH = 1024


class OutputFormat(StrEnum):
    """Format of the output of a selection."""

    CIF = "cif"
    CSV = "csv"
    EXTXYZ = "extxyz"
    OPTIMADE = "optimade"
    PARQUET = "parquet"
    VASP = "vasp"
    VASP_STATIC = "vasp-static"
    ZARR = "zarr"


class SelectionWriter:
    """Writes the chosen rows, a batch at a time.

    Args:
        scores: Dataset that the rows were chosen from.
        plan: Criteria of the selection.
        chosen: Chosen rows.
        folder: Folder to write to.
        out: Final path of the folder.
        wanted: Output formats.

    Attributes:
        left_out: Structures that could not be written, by format: their file names and the reasons.
    """

    def __init__(
        self,
        scores: ScoresReader,
        plan: SelectionPlan,
        chosen: Chosen,
        folder: Path,
        out: Path,
        wanted: Sequence[OutputFormat],
    ) -> None:
        self.scores, self.chosen, self.folder, self.out, self.wanted = scores, chosen, folder, out, wanted
        self.derived: DerivedColumns = chosen.derived
        own = [
            derived_array("rank", "int64", "rank in the selection, from 1", units="1"),
            derived_array(
                "rank_value", "float64", f"value that the structure was ranked by; lower is better: {plan.text}"
            ),
            derived_array("scores_row", "int64", "row of the structure in the source dataset, from 0", units="1"),
            derived_array("file_name", TEXT, "name of the structure's files, without suffix"),
            *(
                [derived_array(FRONT, "int32", "number of the structure's Pareto front; 1 = not dominated", units="1")]
                if plan.pareto
                else []
            ),
        ]
        self.own = [spec.name for spec in own]
        added = {spec.name: spec for spec in (*own, *self.derived.specs.values())}
        kept = {name: spec for name, spec in scores.specs.items() if name != FRONT or spec.attrs.get("role") != ROLE}
        self.specs = {**kept, **added}
        self._added: list[dict[str, NDArray[Any]]] = []
        parts = folder.with_name("parts")
        self._subset = self._graphs = None
        if OutputFormat.ZARR in wanted:
            self._subset = Subset(parts / "scores", folder / SCORES_FOLDER, list(self.specs.values()))
            self._graphs = GraphSubset(parts / "graphs", folder / GRAPHS_FOLDER, scores.graphs, out / GRAPHS_FOLDER)
        self._statuses = np.bincount(scores.rows("status", chosen.rows), minlength=256)

    def run(self, recipe: Mapping[str, Any], bar: ProgressReport) -> None:
        """Write all rows, but not yet the root metadata that marks the stores as complete.

        Args:
            recipe: Facts about the selection that are known before it is written.
            bar: Progress bar.
        """
        writers = self._writers()
        self.table: ParquetFile | None = None
        for start in range(0, len(self.chosen.rows), _BATCH):
            places = slice(start, start + _BATCH)
            arrays = self._arrays(places)
            rows = self.chosen.rows[places]
            if writers:
                batch = self._batch(arrays, rows)
                for writer in writers.values():
                    writer.write(batch)
            if OutputFormat.PARQUET in self.wanted:
                self.table = self.table or ParquetFile(
                    self.folder / f"{STEM}.parquet", list(self.specs.values()), self._attrs(recipe)
                )
                self.table.write(arrays)
            if self._subset is not None and self._graphs is not None:
                self._subset.write(arrays)
                self._graphs.write(rows)
            else:
                self._added.append({name: arrays[name] for name in (*self.own, *self.derived.specs)})
            bar.advance(len(rows))
        for writer in writers.values():
            writer.close()
        if self.table is not None:
            self.table.close()
        self.left_out = {name: writer.left_out for name, writer in writers.items() if writer.left_out}

    def finish(self, recipe: Mapping[str, Any]) -> None:
        """Write the root metadata of the stores, which marks them as complete."""
        if self._subset is not None and self._graphs is not None:
            found = self._graphs.finish(len(self.chosen.rows))
            graphs = {"path": GRAPHS_FOLDER, "store_hash": found}
            self._subset.finish({**self._attrs(recipe), "graph_store": graphs})

    def dataset(self, recipe: Mapping[str, Any]) -> xr.Dataset:
        """Return the selected rows of the scores, lazily, with the added columns."""
        found = open_scores(self.scores.path).isel({STRUCTURE: self.chosen.rows})
        for name in (*self.own, *self.derived.specs):
            values = np.concatenate([arrays[name] for arrays in self._added])
            found[name] = xr.Variable((STRUCTURE,), values, dict(self.specs[name].attrs))
        stores = {name: found.attrs[name] for name in ("graph_store", "relaxed_from") if name in found.attrs}
        attrs = {**self._attrs(recipe), **stores}  # the dataset in memory keeps the paths of the opened one
        found.attrs = {name: value for name, value in attrs.items() if name != "coordinates"}
        return found

    def _arrays(self, places: slice) -> dict[str, NDArray[Any]]:
        """Return all columns of some of the chosen rows."""
        rows = self.chosen.rows[places]
        ids = self.scores.rows("structure_id", rows)
        own: dict[str, NDArray[Any]] = {
            "rank": self.chosen.rank[places],
            "rank_value": self.chosen.value[places],
            "scores_row": rows,
            "file_name": self._names(ids.tolist(), places.start),
        }
        if self.chosen.front is not None:
            own[FRONT] = self.chosen.front[places]
        own |= self.derived.columns(list(self.derived.specs), rows)
        return {name: own[name] if name in own else self.scores.rows(name, rows) for name in self.specs}

    def _names(self, ids: Sequence[str], start: int) -> NDArray[Any]:
        width = max(4, len(str(len(self.chosen.rows))))
        return np.array(file_names(ids, start + 1, width), dtype=np.dtypes.StringDType())

    def _batch(self, arrays: Mapping[str, NDArray[Any]], rows: NDArray[np.int64]) -> Batch:
        table = dict(arrays)
        words = {name: found for name, spec in self.specs.items() if (found := flag_meanings(spec.attrs))}
        for name, meanings in words.items():
            table[name] = as_words(arrays[name], meanings)
        return Batch(arrays["file_name"].tolist(), self.scores.structures(rows), table, words.keys())

    def _writers(self) -> dict[str, CifFolder | ExtxyzFile | OptimadeFolder | VaspFolders]:
        made: dict[str, CifFolder | ExtxyzFile | OptimadeFolder | VaspFolders] = {}
        for one in self.wanted:
            if one == OutputFormat.CIF:
                made[one] = CifFolder(self.folder / one)
            elif one == OutputFormat.EXTXYZ:
                made[one] = ExtxyzFile(self.folder / f"{STEM}.extxyz")
            elif one == OutputFormat.OPTIMADE:
                made[one] = OptimadeFolder(self.folder / one, self.specs)
            elif one in (OutputFormat.VASP, OutputFormat.VASP_STATIC):
                scheme = str(self.scores.attrs.get("model", {}).get("energy_scheme", ""))
                static, dispersion = one == OutputFormat.VASP_STATIC, dispersion_of(scheme) != NO_DISPERSION
                made[one] = VaspFolders(self.folder / one, static=static, dispersion=dispersion)
        return made

    def _attrs(self, recipe: Mapping[str, Any]) -> dict[str, Any]:
        """Return the attributes of the dataset of chosen rows."""
        moved = self.scores.attrs_for(self.out / SCORES_FOLDER)
        attrs = {name: value for name, value in moved.items() if name not in ("complete", "store_hash")}
        meanings = self.scores.meanings("status")
        counts = {word: int(self._statuses[value]) for word, value in meanings.items()}
        return {**attrs, "selection": dict(recipe), "status_counts": counts}
