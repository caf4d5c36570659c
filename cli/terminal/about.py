"""The text that `info` prints: about ten lines on a store, scores dataset, checkpoint or model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from ase.data import chemical_symbols

from ...pipeline.plain_text import one_line
from ...pipeline.store.schema import GRAPH_SCHEMA
from ...pipeline.store.tables import FAILURES_FILE
from ...screening.dataset.reader import ScoresReader
from ...screening.dataset.scores import KINDS, SCORES_SCHEMA

# Maximum numbers printed: of reasons, of names for each reason or status, and of inputs.
_REASONS, _NAMES, _INPUTS = 4, 3, 3
_ALL_SYMBOLS = 12


def about(description: Mapping[str, Any]) -> str:
    """Describe a file or folder in a few lines of text.

    Args:
        description: Description of the file or folder, from `describe.describe`.
    """
    schema = description.get("schema")
    if schema == GRAPH_SCHEMA:
        lines = _graphs(description)
    elif schema == SCORES_SCHEMA:
        lines = _scores(description)
    else:
        lines = _model(description)
    return "\n".join(filter(None, (*lines, "for all stored metadata: equiscreen info PATH --json")))


def _graphs(found: Mapping[str, Any]) -> Iterator[str]:
    arrays, counts = found["arrays"], found.get("counts", {})
    size, edges = arrays["n_atoms"]["shape"][0], arrays["neighbor"]["shape"][0]
    yield f"{found['path']}: graph store, {size:,} structures"
    yield (
        f"{arrays['atomic_number']['shape'][0]:,} atoms, {edges:,} edges within {found['cutoff']:g} "
        f"{found.get('cutoff_units', 'angstrom')}"
    )
    if counts:
        yield "last run: read {read:,} = stored {stored:,} + failed {failed:,} + duplicate {duplicate:,}".format(
            **counts
        )
    yield from _failures(str(found["path"]))
    yield _arrays("labels", arrays, ("energy", "forces", "stress"))
    inputs = found.get("inputs") or []
    names = [str(one[0] if isinstance(one, list) else one) for one in inputs[:_INPUTS]]
    yield f"from {', '.join(map(one_line, names))}{_more(len(inputs) - _INPUTS)}" if names else ""
    yield from _provenance(found)


def _failures(path: str) -> Iterator[str]:
    """Lines on failures: the most common reasons, each with the names of some structures."""
    table = Path(path) / FAILURES_FILE
    if "://" in path or not table.is_file():
        return
    rows = pq.read_table(table, columns=["source", "source_index", "structure_id", "reason"]).to_pylist()
    reasons = Counter(str(row["reason"]) for row in rows)
    for reason, count in reasons.most_common(_REASONS):
        names = [
            row["structure_id"] or f"{row['source']}[{row['source_index']}]" for row in rows if row["reason"] == reason
        ]
        yield f"failed: {count:,} {one_line(reason)}: {_named(names)}"
    if len(reasons) > _REASONS:
        yield f"failed for {len(reasons) - _REASONS:,} other reasons; all are in {table}"


def _scores(found: Mapping[str, Any]) -> Iterator[str]:
    arrays, model, steps = found["arrays"], found.get("model") or {}, found.get("selection")
    size = arrays["status"]["shape"][0]
    kind = "selection from scores" if steps else KINDS.get(str(found.get("kind")), "scores")
    counts = {word.replace("_", " "): count for word, count in found.get("status_counts", {}).items() if count}
    yield f"{found['path']}: {kind}, {size:,} structures: " + ", ".join(f"{n:,} {word}" for word, n in counts.items())
    yield from _statuses(ScoresReader(found["path"]))
    usual = ("structure_id", "formula", "n_atoms", "volume", "status", "source", "source_index")
    names = [name for name, one in arrays.items() if name not in usual and one["units"] not in ("", "1")]
    yield _arrays("columns", arrays, names)
    if steps:
        yield f"ranked by {steps['ranked_by']}; rows selected: {steps['selected']:,} of {steps['rows']:,}"
    if found.get("hull"):
        references = [one["path"] for one in found["hull"].get("references", ())]
        yield f"hull: {', '.join(references) or 'of the candidates and the elements'}"
    digest = str(model.get("sha256", ""))[:12]
    yield f"model: {model.get('path')} (sha256 {digest}), energy scheme: {model.get('energy_scheme')}" if model else ""
    yield f"structures: {(found.get('graph_store') or {}).get('path')}"
    yield from _provenance(found)


def _statuses(scores: ScoresReader) -> Iterator[str]:
    """Lines on the structures without a full result: for each status, some names with the notes of the run."""
    meanings = scores.meanings("status")
    counts: Counter[str] = Counter()
    examples: dict[str, list[str]] = {}
    for start, stop in scores.chunks():
        values = scores.column("status", start, stop)
        for word, value in meanings.items():
            rows = np.flatnonzero(values == value) + start if word != "ok" else np.empty(0, dtype=np.int64)
            counts[word] += len(rows)
            few = rows[: _NAMES - len(examples.get(word, ()))]
            if len(few):
                names = scores.rows("structure_id", few).tolist()
                notes = scores.rows("status_note", few).tolist() if "status_note" in scores.specs else [""] * len(few)
                both = [f"{name} ({note})" if note else str(name) for name, note in zip(names, notes, strict=True)]
                examples.setdefault(word, []).extend(both)
    for word, count in counts.items():
        if count:
            shown = ", ".join(map(one_line, examples[word])) + _more(count - len(examples[word]))
            yield f"{word.replace('_', ' ')}: {shown}"


def _model(found: Mapping[str, Any]) -> Iterator[str]:
    is_onnx = str(found["path"]).endswith(".onnx")
    members = found.get("members", 1)
    kind = ("ONNX model" if is_onnx else "checkpoint") + (f", ensemble of {members}" if members > 1 else "")
    yield f"{found['path']}: {kind}"
    outputs = [f"{one['name']} ({one['unit']})" if one["unit"] else one["name"] for one in found.get("outputs", ())]
    yield f"predicts {', '.join(outputs)}"
    symbols = [chemical_symbols[number] for number in found.get("elements", ())]
    shown = ", ".join(symbols[:_ALL_SYMBOLS]) + _more(len(symbols) - _ALL_SYMBOLS)
    cutoff = found.get("cutoff", (found.get("network") or {}).get("cutoff"))
    yield f"{len(symbols)} elements: {shown}; cutoff {cutoff} angstrom; symmetry {found.get('symmetry', '-')}"
    yield f"{found['parameters']:,} parameters" if "parameters" in found else f"computes in {found.get('dtype')}"
    yield f"energy scheme: {found.get('energy_scheme')}; trained on {found.get('training_data') or 'unknown data'}"
    for name in ("test", "validation"):
        values = found.get(name) or {}
        text = ", ".join(f"{key} {value:.3g}" for key, value in values.items() if isinstance(value, float))
        yield f"mean absolute errors, {name}: {text}" if text else ""
    laws = [value for value in (found.get("laws") or {}).values() if isinstance(value, float)]
    yield f"checked at export: largest symmetry violation, in the output's unit: {max(laws):.1e}" if laws else ""
    origin = found.get("origin") or {}
    yield "from " + ", ".join(f"{key} {value}" for key, value in origin.items()) if origin else ""
    yield f"sha256 {found['sha256']}" if found.get("sha256") else ""
    yield from _provenance(found)


def _provenance(found: Mapping[str, Any]) -> Iterator[str]:
    software = found.get("software") or ({"equiscreen": found["equiscreen"]} if found.get("equiscreen") else {})
    versions = ", ".join(f"{name} {text}" for name, text in software.items())
    yield f"written by {versions}" if versions else ""
    yield f"command: {found['command']}" if found.get("command") else ""
    yield f"content hash {found['store_hash']}" if found.get("store_hash") else ""


def _arrays(title: str, arrays: Mapping[str, Any], names: Any) -> str:
    shown = [f"{name} ({arrays[name]['units']})" for name in names if name in arrays]
    return f"{title}: {', '.join(shown)}" if shown else ""


def _named(names: list[str]) -> str:
    return ", ".join(map(one_line, map(str, names[:_NAMES]))) + _more(len(names) - _NAMES)


def _more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""
