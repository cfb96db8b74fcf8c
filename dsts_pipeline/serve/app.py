"""The page of demo-app: a video goes in, the answer, its route and its neighbours come out.

Enters: a predictor, neighbours, limits. Leaves: a server on the loopback address, its application
behind a `Guard`. Whoever can reach the page may send anything: each section below bounds one thing.
"""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from dsts_pipeline.base.children import exit_on_sigterm
from dsts_pipeline.base.files import NO_ROOM
from dsts_pipeline.base.progress import console
from dsts_pipeline.extract.flow import as_pictures
from dsts_pipeline.report.previews import NUM_FRAMES, Seen, strip_uri
from dsts_pipeline.serve.neighbours import FARTHEST, Neighbour, Neighbours
from dsts_pipeline.serve.predictor import Prediction, Predictor, Refusal

# A header that a form or an image of another site cannot send without asking first.
UPLOAD_HEADER = "x-dsts-upload"
_TYPES = {"css": "text/css", "js": "text/javascript"}
STRIP_PX = 128


@dataclass(frozen=True)
class Example:
    """A video that the page offers: its name, its class, where it is, and a strip of frames."""

    name: str
    class_name: str
    path: Path
    strip: str


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Attributes:
        upload_bytes: Of one file; a larger one is cut off with status 413.
        upload_seconds: For the file to arrive; then status 408.
        head_seconds: For a request's head to arrive; then its connection is closed.
        answer_seconds: For the other side to take what was sent; then it is closed.
        num_silent: Connections that may wait for a head at once; one more closes the one that has
            waited for longest.
        num_at_once: Videos that are worked on side by side.
        num_waiting: Further ones that wait for their turn; more get status 503.
    """

    upload_bytes: int = 64 * 2**20
    upload_seconds: float = 60.0
    head_seconds: float = 5.0
    answer_seconds: float = 30.0
    num_silent: int = 32
    num_at_once: int = 2
    num_waiting: int = 4


def serve(
    predictor: Predictor,
    neighbours: Neighbours | None,
    *,
    host: str,
    port: int,
    is_open: bool,
    limits: Limits,
    examples: Sequence[Example] = (),
    use: Callable[[str], None] | None = None,
) -> None:
    """Answer requests until interrupted.

    Args:
        port: 0 takes a free one; the address is printed.
        is_open: Whether other machines are let in, under whatever name they use.
        examples: Videos that the page offers.
        use: Is called with the page's address, and the serving ends with it; None: it goes on.

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
        app = build_app(
            predictor, neighbours, Path(folder), limits=limits, hosts=hosts, examples=examples
        )
        shown = f"[{host}]" if ":" in host else host
        if use is not None:
            server = make_server(app, limits)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                use(f"http://{shown}:{port}")
            finally:
                server.should_exit = True
                thread.join()
            return
        console.print(f"open http://{shown}:{port}/ in a browser; Ctrl-C ends it", soft_wrap=True)
        # uvicorn ends by itself on Ctrl-C and then passes it on.
        with exit_on_sigterm(), suppress(KeyboardInterrupt):
            make_server(app, limits).run(sockets=[listener])
        console.print("ended")


def make_server(app: ASGIApp, limits: Limits = Limits()) -> uvicorn.Server:
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


# ---- the routes --------------------------------------------------------------------------------


def build_app(
    predictor: Predictor,
    neighbours: Neighbours | None,
    folder: Path,
    *,
    limits: Limits = Limits(),
    hosts: Collection[str] | None,
    examples: Sequence[Example] = (),
) -> ASGIApp:
    """The application.

    Args:
        folder: Where uploads lie while they are worked on.
        examples: Videos that the page offers, by number.
        hosts: See `Guard`.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    page = _render_page(predictor, neighbours, limits).encode()
    offered = [{"name": e.name, "class": e.class_name, "strip": e.strip} for e in examples]
    assets = {f"app.{kind}": _read(f"app.{kind}") for kind in _TYPES}
    assets["colours.css"] = _read("figures.css", "dsts_pipeline.report", "templates")
    turns = asyncio.Semaphore(limits.num_at_once)
    pending = set[int]()

    @app.get("/")
    async def show_page() -> Response:
        return Response(page, media_type="text/html")

    @app.get("/assets/{name}")
    async def show_asset(name: str) -> Response:
        if name not in assets:
            return PlainTextResponse("no such file", 404)
        return Response(assets[name], media_type=_TYPES[name.rpartition(".")[2]])

    @app.get("/examples")
    async def show_examples() -> Response:
        return JSONResponse({"examples": offered, "num_frames": NUM_FRAMES})

    @app.post("/answers")
    async def answer(request: Request) -> Response:
        return await answer_in_turn(request, received_file(request, folder, limits))

    @app.post("/examples/{number}")
    async def answer_example(number: int, request: Request) -> Response:
        if not 0 <= number < len(examples):
            return _tell(404, "no such example")
        return await answer_in_turn(request, nullcontext(examples[number].path))

    async def answer_in_turn(
        request: Request, video: AbstractAsyncContextManager[Path]
    ) -> Response:
        if request.headers.get(UPLOAD_HEADER) != "video":
            return _tell(403, f"expected the header {UPLOAD_HEADER}: video")
        if len(pending) >= limits.num_at_once + limits.num_waiting:
            return _tell(503, "too many videos at once; try again in a moment")
        pending.add(ticket := id(request))
        try:
            async with video as path, turns:
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


def _read(name: str, package: str = "dsts_pipeline.serve", folder: str = "page") -> str:
    return files(package).joinpath(folder, name).read_text(encoding="utf-8")


def _render_page(predictor: Predictor, neighbours: Neighbours | None, limits: Limits) -> str:
    environment = Environment(
        loader=FunctionLoader(_read), autoescape=True, undefined=StrictUndefined
    )
    return environment.get_template("index.html.j2").render(
        title=predictor.bundle.title,
        class_names=predictor.bundle.class_names,
        limits=limits,
        neighbours=neighbours,
        farthest=FARTHEST,
        figures=predictor.bundle.figures,
    )


# ---- an answer as plain values: the page puts them in as text, never as HTML -------------------


def answer_video(path: Path, predictor: Predictor, neighbours: Neighbours | None) -> dict[str, Any]:
    """The answer for the video at `path`, or {"error": the reason}."""
    (answer,) = predictor.predict([path])
    if isinstance(answer, Refusal):
        return {"error": f"This file cannot be used: {answer.reason}."}
    names = predictor.bundle.class_names
    info = answer.info
    pictures = as_pictures(answer.frames[0])
    seen = None if answer.attention is None else Seen(pictures, answer.attention)
    found = [] if neighbours is None else neighbours.find(answer.pooled)
    return {
        "top": [{"name": names[number], "probability": p} for number, p in answer.top()],
        "layers": _layers(answer, predictor),
        "num_views": len(answer.logits),
        "strip": strip_uri(pictures, STRIP_PX),
        "strip_frames": NUM_FRAMES,
        "shade": None if seen is None else seen.shade(),
        "shares": None if seen is None else seen.shares,
        "video": {
            "num_frames": info.num_frames,
            "fps": info.fps,
            "width_px": info.width,
            "height_px": info.height,
        },
        "neighbours": None if neighbours is None else _near(found, predictor, neighbours),
        "is_far": None if neighbours is None else neighbours.is_far(found),
        "seconds": answer.seconds,
    }


def _layers(answer: Prediction, predictor: Predictor) -> list[dict[str, Any]]:
    """Per layer: how many neurons, which one each view went to, their shares of gates."""
    if answer.neurons is None:
        return []
    shares = predictor.temporal_shares
    return [
        {
            "num_neurons": predictor.num_neurons,
            "chosen": answer.neurons[:, layer].tolist(),
            "temporal_shares": shares[layer],
        }
        for layer in range(answer.neurons.shape[1])
    ]


def _near(
    found: Sequence[Neighbour], predictor: Predictor, neighbours: Neighbours
) -> list[dict[str, Any]]:
    names = predictor.bundle.class_names
    strips = neighbours.previews([clip.clip_id for clip in found], predictor)
    return [
        {
            "id": clip.clip_id,
            "name": names[clip.label],
            "similarity": clip.similarity,
            "strip": strip,
        }
        for clip, strip in zip(found, strips, strict=True)
    ]


# ---- uploads: a body becomes a file, cut off as soon as it is too large or too slow ------------
#
# The file's name is ours: what a visitor calls it is never part of a path.


class UploadRefused(Exception):
    """A file that is not taken.

    Attributes:
        status: Of the HTTP answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@asynccontextmanager
async def received_file(request: Request, folder: Path, limits: Limits) -> AsyncIterator[Path]:
    """The body as a file below `folder`, deleted at the end of the block.

    Raises:
        UploadRefused: It is too large, too slow, empty, or was broken off, or the disk is full.
    """
    promised = request.headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > limits.upload_bytes:
        raise UploadRefused(413, _too_large(limits))
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".upload")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            num_bytes = 0
            try:
                async with asyncio.timeout(limits.upload_seconds):
                    async for block in request.stream():
                        num_bytes += len(block)
                        if num_bytes > limits.upload_bytes:
                            raise UploadRefused(413, _too_large(limits))
                        file.write(block)
            except TimeoutError:
                seconds = f"{limits.upload_seconds:g}"
                raise UploadRefused(408, f"the file took longer than {seconds} s") from None
            except ClientDisconnect:
                raise UploadRefused(400, "the upload was broken off") from None
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise UploadRefused(507, "there is no room for the file here") from None
        if not num_bytes:
            raise UploadRefused(400, "the file is empty")
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _too_large(limits: Limits) -> str:
    return f"the file is larger than {limits.upload_bytes / 2**20:g} MiB"


# ---- the guard: what every request must be like, and every answer carries ----------------------
#
# A page of another site must not be able to use this one through the visitor's browser: the Host
# must be ours (else a name that was rebound to 127.0.0.1 could read answers), an Origin too, and no
# CORS header is ever sent. The policy lets the page load nothing but its own files, run no inline
# script, and be framed by nobody. Source: https://www.w3.org/TR/CSP3/

POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


class Guard:
    """Lets requests through to `app` that are meant for this page.

    Args:
        hosts: What a Host header may say, such as "localhost:8765"; None: anything, for a page
            that was opened to the network on purpose.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None) -> None:
        self._app = app
        self._hosts = None if hosts is None else {host.lower() for host in hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse, one request."""
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        if (problem := self._judge(scope)) is not None:
            status, text = problem
            refusal = PlainTextResponse(text, status, headers={"connection": "close"})
            await refusal(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _judge(self, scope: Scope) -> tuple[int, str] | None:
        """Status and text for a request that is not meant for this page."""
        host = _header(scope, b"host").lower()
        if self._hosts is not None and host not in self._hosts:
            return 421, "this page answers under its own address only"
        origin = _header(scope, b"origin").lower()
        if origin and origin != f"http://{host}":
            return 403, "requests of other sites are refused"
        return None


def _header(scope: Scope, name: bytes) -> str:
    values = [value.decode("latin-1") for key, value in scope["headers"] if key == name]
    return values[0] if len(values) == 1 else ""


# ---- connections that say nothing end: they must not keep the page from everyone else ----------
#
# uvicorn ends a connection that is idle after an answer, and no other. Here each one has a time to
# bring a request's head, and to take its answer; the body's time is the upload's own. Where many
# wait, a new one takes the place of the one that has said nothing for longest.

_POLL_SECONDS = 0.25


def connections_within(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol with these limits."""
    return type("LimitedConnection", (_Connection,), {"limits": limits})


class _Connection(H11Protocol):
    limits = Limits()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        waiting = [one for one in self.connections if isinstance(one, _Connection) and one._waits]
        if len(waiting) >= self.limits.num_silent:
            longest = min(waiting, key=lambda one: one._since)
            self.connections.discard(longest)  # now: it is told of its end a moment later
            longest.transport.abort()
        super().connection_made(transport)
        self._state = self._look()
        self._since = self.loop.time()
        self._timer = self.loop.call_later(_POLL_SECONDS, self._watch)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        super().connection_lost(exc)

    @property
    def _waits(self) -> bool:
        """Whether a request's head is to come, or what is left of a body that nobody wants."""
        return self.cycle is None or self.cycle.response_complete

    def _look(self) -> tuple[str, object]:
        """What this connection is about; the request, too, since each has its own time."""
        if self.flow.write_paused:
            return "taking", None
        return ("waiting" if self._waits else "working"), self.cycle

    def _watch(self) -> None:
        now = self.loop.time()
        state = self._look()
        if state != self._state:
            self._state = state
            self._since = now
        seconds = {"waiting": self.limits.head_seconds, "taking": self.limits.answer_seconds}
        if now - self._since >= seconds.get(state[0], float("inf")):
            self.transport.abort()
        else:
            self._timer = self.loop.call_later(_POLL_SECONDS, self._watch)
