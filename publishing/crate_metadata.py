"""Metadata that make a publication an RO-Crate, which archives and repositories of research data read.

RO-Crate 1.1 (https://w3id.org/ro/crate/1.1) with the profile Process Run Crate 0.5
(https://w3id.org/ro/wfrun/process/0.5): data, and the run of a program that made them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..screening.dataset.scores import KINDS
from .catalogue import CATALOGUE_FILE, CHECKSUMS_FILE, GRAPHS, PAGE_FILE, REPORT_FILE, Catalogue

CRATE_FILE = "ro-crate-metadata.json"
_CRATE, _PROFILE = "https://w3id.org/ro/crate/1.1", "https://w3id.org/ro/wfrun/process/0.5"
_SOFTWARE, _MODEL, _RUN, _PUBLISHER = "#equiscreen", "#model", "#run", "#publisher"
_NO_LICENSE = "not stated; ask whoever published this dataset"
_FORMATS = {
    PAGE_FILE: ("text/html", "page about the publication"),
    REPORT_FILE: ("text/html", "report of the best candidates"),
    CATALOGUE_FILE: ("application/json", "catalogue for programs"),
    CHECKSUMS_FILE: ("text/plain", "SHA-256 of all other files except the catalogue"),
}


@dataclass(frozen=True, slots=True)
class Credits:
    """Who made and published a dataset, and under which licence.

    Attributes:
        license_url: URL of the licence; None if the user stated none.
        authors: Names of the persons who made the dataset.
        publisher: Name of the organisation that publishes it; empty if the user stated none.
    """

    license_url: str | None = None
    authors: tuple[str, ...] = ()
    publisher: str = ""


def crate_metadata(
    catalogue: Catalogue, attrs: Mapping[str, Any], written: str, credited: Credits, *, report: bool
) -> bytes:
    """Return the content of `ro-crate-metadata.json`.

    Args:
        catalogue: Content of the publication.
        attrs: Public attributes of the scores.
        written: When the scores were written, ISO 8601; empty if unknown.
        credited: Authors, publisher and licence.
        report: Whether there is a report.
    """
    stores = [f"{name}/" for name in catalogue.stores]
    files = [name for name in _FORMATS if report or name != REPORT_FILE]
    version = str(dict(attrs.get("software") or {}).get("equiscreen", "")) or "unknown"
    authors = {f"#author-{place}": name for place, name in enumerate(credited.authors, start=1)}
    model = catalogue.model if isinstance(catalogue.model, Mapping) else {}
    run = {
        "@id": _RUN,
        "@type": "CreateAction",
        "name": f"equiscreen: {KINDS.get(catalogue.kind, 'scores')}",
        "description": str(
            attrs.get("command") or f"{KINDS.get(catalogue.kind, 'scores')}: {catalogue.rows:,} structures"
        ),
        **({"endTime": written} if written else {}),
        "instrument": {"@id": _SOFTWARE},
        **({"agent": _references(list(authors))} if authors else {}),
        "object": _references([_MODEL, *(name for name in stores if name == f"{GRAPHS}/")]),
        "result": _references([name for name in stores if name != f"{GRAPHS}/"]),
    }
    entities: list[dict[str, Any]] = [
        {
            "@id": CRATE_FILE,
            "@type": "CreativeWork",
            "conformsTo": {"@id": _CRATE},
            "about": {"@id": "./"},
        },
        {
            "@id": "./",
            "@type": "Dataset",
            "name": catalogue.title,
            "description": f"Predicted properties of {catalogue.rows:,} crystal structures",
            "datePublished": catalogue.created,
            "license": _NO_LICENSE if credited.license_url is None else {"@id": credited.license_url},
            **({"author": _references(list(authors))} if authors else {}),
            **({"publisher": {"@id": _PUBLISHER}} if credited.publisher else {}),
            "conformsTo": {"@id": _PROFILE},
            "hasPart": _references([*stores, *files]),
            "mentions": {"@id": _RUN},
        },
        {"@id": _PROFILE, "@type": "CreativeWork", "name": "Process Run Crate", "version": "0.5"},
        {"@id": _SOFTWARE, "@type": "SoftwareApplication", "name": "equiscreen", "softwareVersion": version},
        {"@id": _MODEL, "@type": "CreativeWork", "name": str(model.get("name") or model.get("path") or "the model")},
        run,
        *({"@id": name, "@type": "Dataset", "name": f"Zarr store {name.rstrip('/')}"} for name in stores),
        *(
            {"@id": name, "@type": "File", "name": _FORMATS[name][1], "encodingFormat": _FORMATS[name][0]}
            for name in files
        ),
    ]
    entities += [{"@id": name, "@type": "Person", "name": person} for name, person in authors.items()]
    if credited.publisher:
        entities.append({"@id": _PUBLISHER, "@type": "Organization", "name": credited.publisher})
    if credited.license_url is not None:
        entities.append({"@id": credited.license_url, "@type": "CreativeWork", "name": credited.license_url})
    return json.dumps({"@context": f"{_CRATE}/context", "@graph": entities}, indent=1).encode() + b"\n"


def _references(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"@id": name} for name in names]
