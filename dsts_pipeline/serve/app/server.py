"""The page's routes, and the server on the loopback address.

Enters: a predictor, neighbours, limits. Leaves: a FastAPI application behind a `Guard`.
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Collection
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, Response
from jinja2 import Environment, FunctionLoader, StrictUndefined

from dsts_pipeline.base.progress import console
from dsts_pipeline.extract.stopping import exit_on_sigterm
from dsts_pipeline.serve.app.connections import connections_within
from dsts_pipeline.serve.app.guard import App, Guard
from dsts_pipeline.serve.app.limits import Limits
from dsts_pipeline.serve.app.result import answer_video
from dsts_pipeline.serve.app.uploads import UploadRefused, received_file
from dsts_pipeline.serve.neighbours import Neighbours
from dsts_pipeline.serve.predictor import Predictor

# A header that a form or an image of another site cannot send without asking first.
UPLOAD_HEADER = "x-dsts-upload"
_TYPES = {"css": "text/css", "js": "text/javascript"}


def build_app(
    predictor: Predictor,
    neighbours: Neighbours | None,
    folder: Path,
    *,
    limits: Limits = Limits(),
    hosts: Collection[str] | None,
) -> App:
    """The application.

    Args:
        folder: Where uploads lie while they are worked on.
        hosts: See `Guard`.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = _render_page(predictor, neighbours, limits).encode()
    assets = {f"app.{kind}": _read(f"app.{kind}") for kind in _TYPES}
    assets["colours.css"] = _read("figures.css", "dsts_pipeline.report", "templates")
    turns, pending = asyncio.Semaphore(limits.num_at_once), set[int]()

    @app.get("/")
    async def show_page() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/assets/{name}")
    async def show_asset(name: str) -> Response:
        if name not in assets:
            return Response("no such file", 404, media_type="text/plain")
        return Response(assets[name], media_type=_TYPES[name.rpartition(".")[2]])

    @app.post("/answers")
    async def answer(request: Request) -> Response:
        if request.headers.get(UPLOAD_HEADER) != "video":
            return _tell(403, f"expected the header {UPLOAD_HEADER}: video")
        if len(pending) >= limits.num_at_once + limits.num_waiting:
            return _tell(503, "too many videos at once; try again in a moment")
        pending.add(ticket := id(request))
        try:
            async with received_file(request, folder, limits) as path, turns:
                result = await run_in_threadpool(answer_video, path, predictor, neighbours)
        except UploadRefused as refusal:
            return _tell(refusal.status, str(refusal))
        finally:
            pending.discard(ticket)
        return JSONResponse(result, 422 if "error" in result else 200)

    return Guard(app, hosts)


def _tell(status: int, text: str) -> Response:
    # What is left of the body is not read: the connection ends.
    return JSONResponse({"error": text}, status, headers={"connection": "close"})


def _read(name: str, package: str = "dsts_pipeline.serve.app", folder: str = "page") -> str:
    return files(package).joinpath(folder, name).read_text(encoding="utf-8")


def _render_page(predictor: Predictor, neighbours: Neighbours | None, limits: Limits) -> str:
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined
    )
    values: dict[str, Any] = {
        "title": predictor.bundle.title,
        "class_names": predictor.bundle.class_names,
        "limits": limits,
        "neighbours": neighbours,
        "figures": predictor.bundle.figures,
    }
    return environment.get_template("index.html.j2").render(values)


def serve(
    predictor: Predictor,
    neighbours: Neighbours | None,
    *,
    host: str,
    port: int,
    is_open: bool,
    limits: Limits,
) -> None:
    """Answer requests until interrupted.

    Args:
        port: 0 takes a free one; the address is printed.
        is_open: Whether other machines are let in, under whatever name they use.

    Raises:
        OSError: The address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, port), family=family) as listener,
        tempfile.TemporaryDirectory(prefix="dsts-uploads-") as folder,
    ):
        port = listener.getsockname()[1]
        names = ("127.0.0.1", "localhost", "[::1]")
        hosts = None if is_open else [f"{name}:{port}" for name in names]
        app = build_app(predictor, neighbours, Path(folder), limits=limits, hosts=hosts)
        shown = f"[{host}]" if ":" in host else host
        console.print(f"open http://{shown}:{port}/ in a browser; Ctrl-C ends it", soft_wrap=True)
        # uvicorn ends by itself on Ctrl-C and then passes it on.
        with exit_on_sigterm(), suppress(KeyboardInterrupt):
            make_server(app, limits).run(sockets=[listener])
        console.print("ended")


def make_server(app: App, limits: Limits = Limits()) -> uvicorn.Server:
    """uvicorn for `app`: no log of requests, no name of its own in answers."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        http=connections_within(limits),
        ws="none",
        lifespan="off",
        limit_concurrency=2 * limits.num_silent,
        timeout_graceful_shutdown=5,
    )
    return uvicorn.Server(config)
