"""The web application: an xpublish server of one dataset, with additional routes.

The files of the store are served unchanged, with range requests. The plugin xpublish-zarr 0.1.0 would encode the
dataset again with new chunks, and it fails for stores with shards, where several Dask chunks overlap one new chunk.
"""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi import Path as InPath
from fastapi import Query as InQuery
from fastapi.exceptions import RequestValidationError
from pydantic import PrivateAttr
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from xpublish.plugins import Dependencies
from xpublish.plugins.hooks import Plugin, hookimpl
from xpublish.plugins.included.dataset_info import DatasetInfoPlugin
from xpublish.rest import SingleDatasetRest

from ...pipeline.errors import ConfigError, EquiscreenError, StoreError
from ...pipeline.runs.target import ROOT_FILE
from ...screening.dataset.reader import ScoresReader
from ...screening.dataset.scores import open_scores
from ..html_page import POLICY
from ..public_attributes import public_attributes, public_root
from .answers import MEDIA_TYPES, answer, structure_cif
from .pages import PAGE_ROWS, browse_page, routes_page
from .queries import Conditions, Query, ServedScores

_HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
}
_CHANGED = "the dataset has changed since the server was started; start the server again"


class DatasetRoutes(Plugin):
    """Routes of the server: queries, structures, the files of the store, and pages.

    Args:
        scores: Path of the dataset.
        store: Graph store of the scores, if it was moved.
        title: Title of the pages.
    """

    _served: ServedScores = PrivateAttr()
    _scores: Path = PrivateAttr()
    _title: str = PrivateAttr()
    _files: dict[str, Path] = PrivateAttr()
    _root: bytes = PrivateAttr()
    _state: tuple[int, ...] = PrivateAttr()

    def __init__(self, scores: Path, store: Path | None, title: str) -> None:
        super().__init__(name="equiscreen")
        self._scores, self._title = scores, title
        self._state = _state_of(scores)
        self._served = ServedScores(ScoresReader(scores, store))
        self._root = public_root((scores / ROOT_FILE).read_bytes(), {})
        # Only these files are served: the key of a request is looked up here and never used as a path.
        self._files = {
            path.relative_to(scores).as_posix(): path
            for path in scores.rglob("*")
            if path.is_file() and not path.is_symlink()
        }

    def check_unchanged(self) -> None:
        """Check that the dataset was not replaced, since columns in memory and on disk would not match.

        Raises:
            HTTPException: The dataset was replaced (status 503).
        """
        if _state_of(self._scores) != self._state:
            raise HTTPException(503, _CHANGED)

    def public(self, error: EquiscreenError) -> str:
        """Return the message of an error without the path of the dataset."""
        return str(error).replace(str(self._scores), self._scores.name).replace("--where", "where")

    @hookimpl
    def dataset_router(self, deps: Dependencies) -> APIRouter:  # noqa: ARG002 - the signature of the hook
        """Return the routes, which xpublish adds to the application."""
        router = APIRouter()
        add = router.add_api_route
        add("/", self._browse, response_class=HTMLResponse, summary="Browse the structures")
        add("/query", self._query, response_class=Response, summary="Rows that meet conditions")
        add("/structures/{row}.cif", self._structure, response_class=Response, summary="A structure as CIF")
        add("/zarr/{key:path}", self._file, response_class=Response, summary="The Zarr store")
        add("/zarr/{key:path}", self._file, methods=["HEAD"], include_in_schema=False)
        add("/docs", self._routes, response_class=HTMLResponse, summary="This page")
        return router

    def _browse(self, conditions: Annotated[Conditions, InQuery()]) -> HTMLResponse:
        """A page with a form for the conditions and a table of the rows that meet them."""
        try:
            found = self._served.find(conditions, PAGE_ROWS)
        except ConfigError as error:
            page = browse_page(self._served, self._title, conditions, None, self.public(error))
            return HTMLResponse(page, status_code=400)
        return HTMLResponse(browse_page(self._served, self._title, conditions, found))

    def _query(self, query: Annotated[Query, InQuery()]) -> Response:
        """One page of the rows that meet all conditions, sorted, as JSON, CSV or Arrow.

        The column `row` is the place of a structure in the dataset: `structures/ROW.cif` is its CIF.
        """
        return Response(answer(self._served, query), media_type=MEDIA_TYPES[query.format])

    def _structure(
        self, row: Annotated[int, InPath(ge=0, description="row of the structure in the dataset, from 0")]
    ) -> Response:
        """The CIF lists all atoms of the cell, without symmetry, and the values in the row of the structure."""
        text, name = structure_cif(self._served, row)
        return Response(
            text,
            media_type="chemical/x-cif; charset=utf-8",
            headers={"content-disposition": f'attachment; filename="{name}.cif"'},
        )

    def _file(self, key: Annotated[str, InPath(description="file of the store, such as zarr.json")]) -> Response:
        """Files of the Zarr store, for `xarray.open_zarr("ADDRESS/zarr")`; byte ranges are supported."""
        if key == ROOT_FILE:
            return Response(self._root, media_type="application/json")
        if key not in self._files:
            raise HTTPException(404, "the store has no such file")
        return FileResponse(self._files[key], media_type="application/octet-stream")

    def _routes(self, request: Request) -> HTMLResponse:
        """All routes and their parameters."""
        return HTMLResponse(routes_page(self._title, request.app.openapi()))


def application(scores: Path, store: Path | None = None, *, title: str, hosts: list[str]) -> FastAPI:
    """Make the web application of a dataset.

    Args:
        scores: Path of the dataset.
        store: Graph store of the scores, if it was moved.
        title: Title of the pages.
        hosts: Names by which clients may address the server; ``*`` for any. If only the names of this machine are
            allowed, web pages from elsewhere cannot read the server through a host name that resolves to this machine
            (DNS rebinding).

    Raises:
        StoreError: The dataset cannot be read.
        ConfigError: The dataset is too large.
    """
    routes = DatasetRoutes(scores, store, title)
    dataset = open_scores(scores)
    dataset.attrs = public_attributes(dataset.attrs)
    rest = SingleDatasetRest(
        dataset,
        plugins={"equiscreen": routes, "dataset_info": DatasetInfoPlugin(dataset_router_prefix="/dataset")},
        app_kws={
            "title": title,
            "version": version("equiscreen"),
            "docs_url": None,  # FastAPI's own page of the routes loads scripts from another server
            "redoc_url": None,
            "dependencies": [Depends(routes.check_unchanged)],
        },
    )
    app = rest.app
    app.add_middleware(_Headers)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{first['loc'][-1]}: {first['msg']}"}, status_code=422)

    @app.exception_handler(ConfigError)
    async def refused(_: Request, error: ConfigError) -> JSONResponse:
        return JSONResponse({"detail": routes.public(error)}, status_code=400)

    @app.exception_handler(StoreError)
    async def unreadable(_: Request, error: StoreError) -> JSONResponse:
        print(f"equiscreen: {error}", file=sys.stderr, flush=True)  # noqa: T201 - for the person who runs the server
        return JSONResponse({"detail": "the dataset or its graph store cannot be read"}, status_code=503)

    return app


class _Headers:
    """Middleware that adds headers to every answer, so that browsers run nothing that an answer contains."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(_HEADERS)
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _state_of(scores: Path) -> tuple[Any, ...]:
    """Return metadata that change when a dataset is replaced; empty if it is gone."""
    try:
        facts = (scores / ROOT_FILE).stat()
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
