"""What the page does not take: files too large, too slow or broken off, and too many at once."""

from __future__ import annotations

import asyncio
import errno
import io
import threading
import time

import aiohttp
import pytest

from dsts_pipeline.serve import Predictor, Refusal
from dsts_pipeline.serve.app import Limits
from tests.clips.videos import write_video
from tests.serve.app_server import UPLOAD, call, post, running_app
from tests.serve.hanging import break_on_request, sleep_for_ever
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


@pytest.mark.slow
def test_a_slow_body_is_given_up(place):
    address, folder = place
    started = time.monotonic()
    answer = send_raw(address, head_of(address, "Content-Length: 1000"), b"abc")
    assert answer.startswith(b"HTTP/1.1 408 ") and b"longer than 4 s" in answer
    assert time.monotonic() - started < 60
    assert list(folder.iterdir()) == []


async def until(condition, seconds: float = 60.0) -> None:
    """Wait until `condition()` holds, for so long at most."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_broken_off_upload_leaves_nothing(tmp_path):
    async def begin_and_leave(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head_of(address, "Content-Length: 1000") + b"abc")
        await until(lambda: any(folder.iterdir()))
        writer.close()
        await until(lambda: not any(folder.iterdir()))

    # So long a time limit that only the broken connection can end the upload.
    folder = tmp_path / "uploads"
    with running_app(NoPredictor(), folder, limits=Limits(upload_seconds=600.0)) as address:
        asyncio.run(begin_and_leave(int(address.rpartition(":")[2])))
        assert call(address, "GET", "/")[0] == 200


class Holding:
    """A predictor that answers no video before it is let go."""

    def __init__(self) -> None:
        self.num_inside = 0
        self.let_go = threading.Event()
        self.bundle = make_bundle()

    def predict(self, paths):
        self.num_inside += 1
        assert self.let_go.wait(timeout=60)
        return iter([Refusal(path, "held") for path in paths])


async def post_many(address: str, count: int) -> list[int]:
    """Statuses of so many uploads at once."""

    async def one(session: aiohttp.ClientSession) -> int:
        async with session.post(f"{address}/answers", data=b"x" * 100, headers=UPLOAD) as answer:
            return answer.status

    async with aiohttp.ClientSession() as session:
        return await asyncio.gather(*(one(session) for _ in range(count)))


def test_two_at_once_and_more_than_can_wait_are_sent_away(tmp_path):
    async def ask() -> None:
        first = asyncio.create_task(post_many(address, 2))
        await until(lambda: holding.num_inside == 2)
        assert await post_many(address, 3) == [503, 503, 503]
        holding.let_go.set()
        assert await first == [422, 422]
        assert await post_many(address, 1) == [422]  # there is room again

    holding, limits = Holding(), Limits(num_at_once=2, num_waiting=0)
    with running_app(holding, tmp_path / "u", limits=limits) as address:
        asyncio.run(ask())


def test_one_waits_for_its_turn(tmp_path):
    async def ask() -> None:
        both = asyncio.create_task(post_many(address, 2))
        await until(lambda: len(list(folder.iterdir())) == 2 and holding.num_inside > 0)
        await asyncio.sleep(0.2)  # time in which a second one could go in
        assert holding.num_inside == 1
        holding.let_go.set()
        assert await both == [422, 422]

    holding, folder = Holding(), tmp_path / "u"
    limits = Limits(num_at_once=1, num_waiting=1)
    with running_app(holding, folder, limits=limits) as address:
        asyncio.run(ask())


def test_a_decoder_that_hangs_is_ended(monkeypatch, tmp_path):
    video = write_video(tmp_path / "clip.mp4", num_frames=4)
    monkeypatch.setattr("dsts_pipeline.serve.predictor.work", sleep_for_ever)
    with Predictor(make_bundle(), clip_timeout_seconds=0.5) as hanging:
        with running_app(hanging, tmp_path / "u") as address:
            status, result = post(address, video.read_bytes())
    assert status == 422 and "decoding took longer than 0.5 s" in result["error"]


# ---- connections that say nothing ---------------------------------------------------------------

SHORT = Limits(head_seconds=1.0, answer_seconds=1.5, num_silent=8)


async def open_many(address: str, count: int, *first: bytes):
    """So many connections, each with a few bytes of a request."""
    port = int(address.rpartition(":")[2])
    made = []
    for number in range(count):
        pair = await asyncio.open_connection("127.0.0.1", port)
        if first:
            pair[1].write(first[number % len(first)])
        made.append(pair)
    return made


async def ended(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the other side closes within so long."""
    try:
        async with asyncio.timeout(seconds):
            while await reader.read(65536):
                pass
        return True
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


@pytest.mark.slow
def test_a_hundred_half_open_connections_keep_nobody_out(tmp_path):
    async def ask() -> None:
        made = await open_many(address, 100, b"", b"G", b"POST /answers HTTP/1.1\r\nHost: x\r\n")
        async with aiohttp.ClientSession() as session, session.get(address) as answer:
            assert answer.status == 200  # at once, while they are open
        assert all(await asyncio.gather(*(ended(reader, 20) for reader, _ in made)))
        for _, writer in made:
            writer.close()

    with running_app(NoPredictor(), tmp_path / "u") as address:  # with the page's own limits
        asyncio.run(ask())


DRIPS = {
    "head": (b"GET / HTTP/1.1\r\nX-A: ", b"a"),
    "nothing": (b"", b""),
    "body that nobody wants": (
        b"GET / HTTP/1.1\r\nHost: %s\r\nContent-Length: 100000\r\n\r\n",
        b"a",
    ),
    "second head": (b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n", b"G"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", DRIPS)
def test_a_request_that_drips_is_closed(tmp_path, what):
    begin, drop = DRIPS[what]

    async def ask() -> None:
        host = address.removeprefix("http://").encode()
        ((reader, writer),) = await open_many(address, 1, begin.replace(b"%s", host))

        async def drip() -> None:
            while True:
                writer.write(drop)
                await asyncio.sleep(0.1)

        task = asyncio.create_task(drip())
        assert await ended(reader, 10)
        task.cancel()
        writer.close()

    with running_app(NoPredictor(), tmp_path / "u", limits=SHORT) as address:
        asyncio.run(ask())


def test_who_does_not_take_the_answers_is_closed(tmp_path):
    async def ask() -> None:
        port = int(address.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
        writer.transport.pause_reading()
        writer.write(request * 20_000)
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(30):
                while True:  # until what we send is refused
                    writer.write(request)
                    await writer.drain()
                    await asyncio.sleep(0.05)

    with running_app(NoPredictor(), tmp_path / "u", limits=SHORT) as address:
        asyncio.run(ask())


def test_work_that_takes_long_keeps_its_connection(tmp_path):
    """Longer than any of the limits: those are for who says or takes nothing."""
    holding = Holding()

    async def ask() -> None:
        first = asyncio.create_task(post_many(address, 1))
        await until(lambda: holding.num_inside == 1)
        await asyncio.sleep(3.0)
        holding.let_go.set()
        assert await first == [422]

    with running_app(holding, tmp_path / "u", limits=SHORT) as address:
        asyncio.run(ask())


def test_a_full_disk_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("dsts_pipeline.serve.app.os.fdopen", lambda d, *_, **__: Full(d))
    with running_app(NoPredictor(), tmp_path / "u") as address:
        status, result = post(address, b"abc")
    assert status == 507 and "no room" in result["error"]


class Full(io.FileIO):
    """A file on a full disk."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb")

    def write(self, block: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")


# ---- videos that no code foresaw ----------------------------------------------------------------


def test_a_video_that_breaks_the_decoder_is_unusable_and_the_next_is_answered(
    monkeypatch, tmp_path, capfd
):
    video = write_video(tmp_path / "clip.mp4", num_frames=4)
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>'
    monkeypatch.setattr("dsts_pipeline.serve.predictor.work", break_on_request)
    with Predictor(make_bundle()) as predictor, running_app(predictor, tmp_path / "u") as address:
        assert post(address, svg)[0] == 422
        status, result = post(address, b"break")
        assert status == 422
        assert "decoding failed: AttributeError: 'NoneType'" in result["error"]
        assert post(address, video.read_bytes())[0] == 200
    log = capfd.readouterr().err
    assert "in break_on_request" in log and "Traceback" not in log
