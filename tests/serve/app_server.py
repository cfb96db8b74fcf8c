"""The page of demo-app on a free port of this machine, in a thread of the test's process."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.serve.app import Example, Limits, build_app, make_server
from dsts_pipeline.serve.neighbours import Neighbours
from tests.serve.small_bundle import CLASSES

UPLOAD = {"X-DSTS-Upload": "video"}


class SmallStore:
    """What `Neighbours` asks of a feature store: maps [n, 128, 1, 1, 1] of train and test clips."""

    map_shape = (128, 1, 1, 1)
    groups = None

    def __init__(self, ids: list[str], seed: int = 0) -> None:
        self.video_ids = ids
        self.views = np.zeros(len(ids), np.int64)
        self.labels = np.arange(len(ids)) % len(CLASSES)
        shape = (len(ids), *self.map_shape)
        self.maps = np.random.default_rng(seed).random(shape).astype(np.float16)

    def rows_of_split(self, split: str) -> np.ndarray:
        assert split == "train"
        return np.arange(len(self.video_ids))

    def read(self, rows: np.ndarray) -> np.ndarray:
        return self.maps[rows]


def make_neighbours(paths: list[Path], *more: str) -> Neighbours:
    """Of these videos as training clips, and of `more` names whose files are not there."""
    names = [*(path.name for path in paths), *more]
    clips = tuple(Clip(name, name, 0, "train", 16, 0, 16, 0, "") for name in names)
    index = ClipIndex("small", str(paths[0].parent), CLASSES, (), (), clips)
    return Neighbours(SmallStore(names), index)  # type: ignore[arg-type]


@contextmanager
def running_app(
    predictor: Any,
    folder: Path,
    *,
    neighbours: Neighbours | None = None,
    limits: Limits = Limits(),
    examples: Sequence[Example] = (),
) -> Iterator[str]:
    """The address, such as "http://127.0.0.1:43215"; the server ends with the block."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hosts = [f"127.0.0.1:{port}", f"localhost:{port}"]
        app = build_app(
            predictor, neighbours, folder, limits=limits, hosts=hosts, examples=examples
        )
        server = make_server(app, limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            server.should_exit = True
            thread.join(timeout=60)
    assert not thread.is_alive()


def call(address: str, method: str, path: str, **options):
    """(status, headers, body) of one request."""

    async def ask():
        async with aiohttp.ClientSession() as session:
            async with session.request(method, address + path, **options) as answer:
                return answer.status, answer.headers, await answer.read()

    return asyncio.run(ask())


def post(address: str, content: bytes, **headers: str):
    status, _, body = call(address, "POST", "/answers", data=content, headers=UPLOAD | headers)
    return status, json.loads(body)
