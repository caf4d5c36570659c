"""The graph store of relaxed structures, which is written and published together with a dataset about them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...pipeline.errors import OutputExistsError, StoreError
from ...pipeline.featurization.report import SOFTWARE
from ...pipeline.provenance import recorded_path
from ...pipeline.runs.parts import PartManifest
from ...pipeline.runs.staging import Staging, check_place
from ...pipeline.runs.target import Target
from ...pipeline.sources.discovery import inputs_digest
from ...pipeline.store.compaction import finish_store
from ...pipeline.store.dedup import Dedup
from ...pipeline.store.graph_store import GraphStore, location
from ...pipeline.store.schema import GRAPH_SCHEMA
from ...pipeline.store.tables import write_empty_tables
from ...pipeline.store.writer import StoreRun
from ..dataset.paths import graphs_path
from .output import relaxed_graph_arrays

# Names of folders in the working folder of the run.
GRAPH_PARTS, GRAPHS = "graph_parts", "graphs"


class RelaxedGraphs:
    """The graph store of relaxed structures.

    Args:
        out: Dataset that the store belongs to.
        source: Graph store of the structures before their relaxation.
        columns: Input columns to copy.
        identity: Everything that the result depends on, by name.
        limit: Largest number of structures, as the user gave it.
        name: Name of a further store of the same dataset, which holds other structures; part of its path.

    Attributes:
        path: Path or URL of the store.
        target: Target at this path, to which the store is written.
        digest: Digest of the identity; it marks the store as an output of this run.
    """

    def __init__(
        self,
        out: str,
        source: GraphStore,
        columns: Sequence[str],
        identity: Mapping[str, Any],
        limit: int | None,
        name: str = "",
    ) -> None:
        self.path = location(graphs_path(f"{out.rstrip('/').removesuffix('.zarr')}.{name}" if name else out))
        self.target = Target.of(self.path)
        self._name = name
        self._source, self._columns, self._limit = source, tuple(columns), limit
        self.digest = hashlib.sha256(repr(sorted(identity.items())).encode()).hexdigest()

    def check_free(self, inputs: Iterable[Path], *, overwrite: bool, beside: Sequence[Target] = ()) -> None:
        """Check that the outputs would not replace an input, or an output of another run.

        Args:
            inputs: Local stores and files that the run reads.
            overwrite: Whether existing outputs may be replaced.
            beside: Further outputs that are published with the store.

        Raises:
            OutputExistsError: An output exists and may not be overwritten, or the run reads it.
        """
        read = list(inputs)
        for target in (self.target, *beside):
            if target.path is not None:
                check_place(target.path, read)
                if Path(target.url).is_symlink():
                    raise OutputExistsError(
                        f"{target} is a symbolic link, so it is not overwritten; choose another --out"
                    )
            if target.exists() and not overwrite and not self._is_from_this_run():
                raise OutputExistsError(f"{target} already exists; choose another --out, or use --overwrite")
        if self.target.exists() and not self.target.is_equiscreen_store(GRAPH_SCHEMA):
            raise OutputExistsError(
                f"{self.target} already exists and is not an equiscreen store of graphs, so it is not overwritten; "
                "choose another --out"
            )

    def _is_from_this_run(self) -> bool:
        """Return whether an earlier run with the same identity wrote the store."""
        try:
            found: str = GraphStore(self.path).attrs.get("relaxation", "")
        except StoreError:
            return False
        return found == self.digest

    def parts(self, staging: Staging) -> Path:
        """Return the folder of the parts of the store; it is made if it does not exist."""
        folder = staging.work / f"{self._name}{GRAPH_PARTS}"
        folder.mkdir(exist_ok=True)
        return folder

    def write(self, run: StoreRun, manifests: Sequence[PartManifest]) -> str:
        """Write the store into the working folder.

        Returns:
            Hash of the store.
        """
        scratch = run.staging.work / f"{self._name}{GRAPHS}"
        if scratch.exists():
            shutil.rmtree(scratch)
        specs = relaxed_graph_arrays(self._columns)
        digests = run.concatenate(specs, manifests, store=scratch, parts=self.parts(run.staging))
        write_empty_tables(scratch)
        size = sum(manifest.counts["read"] for manifest in manifests)
        path = recorded_path(self._source.path, self.path)
        inputs = [(path, size, self._source.store_hash)]
        attrs = {
            "schema": GRAPH_SCHEMA,
            "cutoff": self._source.cutoff,
            "cutoff_units": "angstrom",
            "recipe": {"dedup": Dedup.EXACT.value, "limit": self._limit},
            "relaxed_from": {"path": path, "store_hash": self._source.store_hash},
            "relaxation": self.digest,
            "inputs_sha256": inputs_digest(inputs),
            "inputs": inputs,
            "software": {name: version(name) for name in SOFTWARE},
            "counts": {"read": size, "stored": size, "failed": 0, "duplicate": 0},
        }
        return finish_store(scratch, digests, attrs)

    def publish(self, staging: Staging) -> None:
        """Move the store to its final path, or upload it to its URL, replacing an older one.

        A further store without structures is not written, and an older one is removed.
        """
        made = staging.work / f"{self._name}{GRAPHS}"
        if self._name and not made.exists():
            self.target.remove()
        elif self.target.path is None:
            self.target.upload(made)
        else:
            self.target.remove()
            made.rename(self.target.path)
