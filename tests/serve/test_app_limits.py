"""What the page does not take: files too large, too slow or broken off, and too many at once."""

from __future__ import annotations

import asyncio
import threading
import time

import aiohttp
import pytest

from dsts_pipeline.serve import Predictor, Refusal
from dsts_pipeline.serve.app.limits import Limits
from tests.clips.videos import write_video
from tests.serve.app_server import UPLOAD, call, post, running_app
from tests.serve.hanging import sleep_for_ever
from tests.serve.small_bundle import make_bundle

SMALL = Limits(upload_bytes=200_000, upload_seconds=4.0)


class NoPredictor:
    """None is needed where no file gets through."""

    bundle = make_bundle()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """(address, folder of uploads) of a running page with small limits."""
    folder = tmp_path_factory.mktemp("app") / "uploads"
    with running_app(NoPredictor(), folder, limits=SMALL) as address:
        yield address, folder


def send_raw(address: str, *parts: bytes, pause_seconds: float = 0.0) -> bytes:
    """Bytes over a bare connection, and what comes back until the other side closes."""

    async def talk() -> bytes:
        port = int(address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_seconds)
        try:
            return await asyncio.wait_for(reader.read(), timeout=60)
        except ConnectionResetError:  # closed with bytes of ours unread: TCP drops the answer
            return b""
        finally:
            writer.close()

    return asyncio.run(talk())


def head_of(address: str, *more: str) -> bytes:
    host = address.removeprefix("http://")
    lines = ["POST /answers HTTP/1.1", f"Host: {host}", "X-DSTS-Upload: video", *more]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def test_announced_size_is_refused_before_the_body(place):
    address, folder = place
    answer = send_raw(address, head_of(address, "Content-Length: 999999999"))
    assert answer.startswith(b"HTTP/1.1 413 ") and b"larger than 0.190735 MiB" in answer
    assert list(folder.iterdir()) == []


def test_a_body_of_unknown_size_is_cut_off(place):
    address, folder = place
    block = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    # Four of them are above the limit; the end is never sent.
    head = head_of(address, "Transfer-Encoding: chunked")
    answer = send_raw(address, head, *[block] * 4)
    assert not answer or answer.startswith(b"HTTP/1.1 413 ")
    assert list(folder.iterdir()) == []


def test_a_slow_body_is_given_up(place):
    address, folder = place
    started = time.monotonic()
    answer = send_raw(address, head_of(address, "Content-Length: 1000"), b"abc")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"longer than 4 s" in answer
    assert time.monotonic() - started < 60
    assert list(folder.iterdir()) == []


def test_a_broken_off_upload_leaves_nothing(place):
    address, folder = place

    async def leave():
        _, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
        writer.write(head_of(address, "Content-Length: 1000") + b"abc")
        await writer.drain()
        writer.close()

    asyncio.run(leave())
    deadline = time.monotonic() + 20
    while list(folder.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert list(folder.iterdir()) == []
    assert call(address, "GET", "/")[0] == 200


class Meeting:
    """A predictor in which two videos wait for each other: it answers only if both are there."""

    def __init__(self, num_videos: int) -> None:
        self.barrier = threading.Barrier(num_videos)
        self.bundle = make_bundle()

    def predict(self, paths):
        self.barrier.wait(timeout=60)
        return iter([Refusal(path, "met") for path in paths])


def post_together(address: str, count: int) -> list[tuple[int, dict]]:
    async def one(session: aiohttp.ClientSession):
        async with session.post(f"{address}/answers", data=b"x" * 100, headers=UPLOAD) as answer:
            return answer.status, await answer.json()

    async def ask():
        async with aiohttp.ClientSession() as session:
            return await asyncio.gather(*(one(session) for _ in range(count)))

    return asyncio.run(ask())


def test_two_at_once(tmp_path):
    with running_app(Meeting(2), tmp_path / "u", limits=Limits(num_at_once=2)) as address:
        answers = post_together(address, 2)
    assert [status for status, _ in answers] == [422, 422]
    assert all("met" in result["error"] for _, result in answers)


def test_more_than_can_wait_are_sent_away(tmp_path):
    limits = Limits(num_at_once=2, num_waiting=0)
    with running_app(Meeting(2), tmp_path / "u", limits=limits) as address:
        statuses = sorted(status for status, _ in post_together(address, 5))
        assert statuses == [422, 422, 503, 503, 503]
        assert [status for status, _ in post_together(address, 2)] == [422, 422]


def test_a_decoder_that_hangs_is_ended(monkeypatch, tmp_path):
    video = write_video(tmp_path / "clip.mp4", num_frames=4)
    monkeypatch.setattr("dsts_pipeline.serve.predictor.work", sleep_for_ever)
    with Predictor(make_bundle(), clip_timeout_seconds=0.5) as hanging:
        with running_app(hanging, tmp_path / "u") as address:
            status, result = post(address, video.read_bytes())
    assert status == 422 and "decoding took longer than 0.5 s" in result["error"]
