"""The machine-readable catalogue of a publication, and the check that the data match it."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import xarray as xr
from pydantic import BaseModel, ConfigDict, ValidationError

from ..pipeline.errors import StoreError
from ..pipeline.runs.target import ROOT_FILE
from .place import Place

CATALOGUE_SCHEMA = "equiscreen-catalogue/1"
CATALOGUE_FILE, PAGE_FILE, CHECKSUMS_FILE, REPORT_FILE = (
    "catalogue.json",
    "index.html",
    "checksums.sha256",
    "report.html",
)
# Names of the stores in the catalogue, which are also their folders.
SCORES, RANKING, GRAPHS = "scores.zarr", "ranking.zarr", "scores.graphs.zarr"
# Largest catalogue, root file and table of checksums that are read, bytes.
_MOST = 256 << 20


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True)


class Column(_Record):
    """A column of the scores.

    Attributes:
        name: Name of the column's array.
        units: Unit; empty for text and flags.
        description: Description of the values.
        dtype: Name of a NumPy type, or ``text``.
        shape: Shape of the value of one structure.
    """

    name: str
    units: str
    description: str
    dtype: str
    shape: tuple[int, ...]


class PublishedStore(_Record):
    """A store of the publication.

    Attributes:
        store_hash: Hash of the store's content.
        files: Number of files.
        size: Size of all files, bytes.
    """

    store_hash: str
    files: int
    size: int


class Catalogue(_Record):
    """Contents of a publication: its columns, its stores and their origin.

    Attributes:
        schema_version: Schema of the catalogue, `CATALOGUE_SCHEMA`.
        title: Title of the page.
        created: Date and time of publication, ISO 8601.
        rows: Number of structures.
        kind: Kind of the scores: ``screened``, ``relaxed``, ``properties`` or ``labelled``.
        status_counts: Number of structures by status.
        ranked_by: Description of the order of the ranked list; empty if there is none.
        model: Facts about the model, from the scores.
        columns: Columns of the scores.
        stores: Stores by the name of their folder.
        checksums_sha256: SHA-256 of `checksums.sha256`, which lists all files except the catalogue and itself.
        software: ``equiscreen`` and its version.
    """

    schema_version: str
    title: str
    created: str
    rows: int
    kind: str
    status_counts: dict[str, int]
    ranked_by: str
    model: Any
    columns: tuple[Column, ...]
    stores: dict[str, PublishedStore]
    checksums_sha256: str
    software: str


class OpenedCatalogue:
    """The catalogue of a publication, after a check that the data match it.

    Args:
        place: Folder of the publication.
        content: The catalogue.
        location: Path or URL of the folder, from which the stores are opened.

    Attributes:
        content: The catalogue.
    """

    def __init__(self, place: Place, content: Catalogue, location: str) -> None:
        self.content = content
        self._place, self._location = place, location

    def scores(self) -> xr.Dataset:
        """Open the scores of all structures; values are read on access."""
        return self._dataset(SCORES)

    def ranking(self) -> xr.Dataset:
        """Open the ranked list, best first; values are read on access.

        Raises:
            StoreError: The publication has no ranked list.
        """
        if RANKING not in self.content.stores:
            raise StoreError(
                f"{self._place} has no ranked list, since its scores cannot be ranked; run `equiscreen hull` and "
                "publish its output"
            )
        return self._dataset(RANKING)

    def _dataset(self, name: str) -> xr.Dataset:
        # Without Dask, a slice reads the chunks that it touches and no graph of tasks is built.
        found: xr.Dataset = xr.open_zarr(f"{self._location.rstrip('/')}/{name}", chunks=None)
        return found


def open_catalogue(location: str | Path) -> OpenedCatalogue:
    """Open a publication, and check that the catalogue describes its stores.

    Example:
        >>> from equiscreen.publishing import open_catalogue, publish
        >>> published = publish("relaxed.hull.zarr", "public", report=False)
        >>> open_catalogue("public").ranking()["formula"][:2].values.tolist()
        ['Cu', 'Al']

    Args:
        location: Path or URL of the folder written by `publish`.

    Raises:
        StoreError: There is no catalogue, it cannot be read, or the data have changed since it was written.
        OutputExistsError: The location is neither a folder nor a URL that can be opened.
    """
    place = Place(location)
    text = place.read(CATALOGUE_FILE, _MOST)
    if text is None:
        raise StoreError(
            f"{place} has no {CATALOGUE_FILE}: nothing was published there, or publishing was interrupted; run "
            "`equiscreen publish` again"
        )
    try:
        content = Catalogue.model_validate_json(text)
    except ValidationError as error:
        raise StoreError(
            f"{place}/{CATALOGUE_FILE} is damaged ({error.error_count()} errors); publish again"
        ) from error
    if content.schema_version != CATALOGUE_SCHEMA:
        raise StoreError(
            f"{place}/{CATALOGUE_FILE} has schema {content.schema_version!r} instead of {CATALOGUE_SCHEMA!r}; read it "
            "with the version of equiscreen that wrote it, or publish again"
        )
    for name, store in content.stores.items():
        if name not in (SCORES, RANKING, GRAPHS):
            raise StoreError(f"{place}/{CATALOGUE_FILE} lists {name[:80]!r}, which no publication holds; publish again")
        if _hash_of(place, name) != store.store_hash:
            raise StoreError(
                f"{place}: {name} is missing or has changed since the catalogue was written; publish again"
            )
    checksums = place.read(CHECKSUMS_FILE, _MOST)
    if checksums is None or hashlib.sha256(checksums).hexdigest() != content.checksums_sha256:
        raise StoreError(
            f"{place}: {CHECKSUMS_FILE} is missing or has changed since the catalogue was written; publish again"
        )
    return OpenedCatalogue(place, content, str(location))


def _hash_of(place: Place, store: str) -> str | None:
    """Return the hash stored in the root file of a store; None if there is none."""
    content = place.read(f"{store}/{ROOT_FILE}", _MOST)
    try:
        return None if content is None else str(json.loads(content)["attributes"]["store_hash"])
    except (ValueError, KeyError, TypeError):
        return None
