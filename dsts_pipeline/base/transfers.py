"""Bytes over the network: what stops half-way, or crawls, is an error and not a wait without end.

Enters: an address and where its bytes go. Leaves: the bytes, or `Stalled`. A transfer stalls when
less than `MIN_BYTES_PER_SECOND` on average came within `stall_seconds`; a question with a short
answer (is it there, how large) when there is none by then. However long a transfer takes that gets
on, it may take: no limit holds for the whole.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

STALL_SECONDS = 30.0
MIN_BYTES_PER_SECOND = 1000
_BLOCK_BYTES = 8 * 2**20

T = TypeVar("T")


class Stalled(Exception):
    """Nothing, or next to nothing, came for so long; the message says how much."""


class Taker(Protocol):
    """What takes bytes, such as a file that was opened for writing."""

    def write(self, block: bytes, /) -> object: ...

    def tell(self) -> int: ...


class Pace:
    """Whether a transfer gets on.

    Args:
        stall_seconds: For so long it may bring less than `MIN_BYTES_PER_SECOND`.
    """

    def __init__(self, stall_seconds: float) -> None:
        self._stall_seconds = stall_seconds
        self._since = time.monotonic()
        self._num_bytes = 0
        self.poll_seconds = min(1.0, stall_seconds / 10)  # how often to ask

    def check(self, num_bytes: int) -> None:
        """Note that `num_bytes` have come in all.

        Raises:
            Stalled: Too few for too long.
        """
        now = time.monotonic()
        gained = num_bytes - self._num_bytes
        if gained < 0 or gained >= self._stall_seconds * MIN_BYTES_PER_SECOND:
            self._since = now
            self._num_bytes = num_bytes
        elif now - self._since >= self._stall_seconds:
            raise Stalled(
                f"stalled: {gained} bytes came in {now - self._since:.0f} s, after {num_bytes} in "
                "all"
            )


def open_filesystem(url: str, stall_seconds: float = STALL_SECONDS) -> tuple[Any, str]:
    """fsspec's file system of `url`, and the path on it.

    Raises:
        ImportError: A package that it takes is not installed.
        ValueError: There is no such kind of address.
    """
    from fsspec.core import url_to_fs

    options = {}
    if url.partition("://")[0] in ("http", "https"):
        from aiohttp import ClientTimeout

        # By default it ends every transfer after five minutes, however fast.
        options["client_kwargs"] = {"timeout": ClientTimeout(total=None, connect=stall_seconds)}
    return url_to_fs(url, **options)


def copy_file(filesystem: Any, path: str, taker: Taker, stall_seconds: float) -> None:
    """Write the file at `path` into `taker`, as it comes.

    Raises:
        Stalled: Too few bytes for too long (of file systems that fsspec reads without waiting:
            those of http, s3 and the like).
        FileNotFoundError: There is no such file.
    """
    from fsspec.asyn import AsyncFileSystem

    is_asynchronous = isinstance(filesystem, AsyncFileSystem)  # its waits can be given up
    if not is_asynchronous or type(filesystem).open_async is AsyncFileSystem.open_async:
        with filesystem.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="none") as source:
            while block := source.read(_BLOCK_BYTES):
                taker.write(block)
        return
    protocols = filesystem.protocol
    is_http = "http" in ((protocols,) if isinstance(protocols, str) else protocols)

    async def stream() -> None:
        source = await filesystem.open_async(path, "rb")
        while block := await source.read(_BLOCK_BYTES):
            taker.write(block)

    def begin() -> Awaitable[None]:
        return filesystem._get_file(path, taker) if is_http else stream()

    _run(filesystem, begin, Pace(stall_seconds), taker.tell)


def ask(filesystem: Any, method: str, *arguments: Any, stall_seconds: float, **options: Any) -> Any:
    """`filesystem.<method>(...)`, a question with a short answer, such as `info`.

    Raises:
        Stalled: No answer in time.
    """
    from fsspec.asyn import AsyncFileSystem

    if not isinstance(filesystem, AsyncFileSystem):
        return getattr(filesystem, method)(*arguments, **options)
    question = getattr(filesystem, f"_{method}")
    return _run(filesystem, lambda: question(*arguments, **options), Pace(stall_seconds))


def call_within(seconds: float, action: Callable[[], T]) -> T:
    """What `action` returns or raises, if it does so in time.

    Raises:
        Stalled: It does not. It goes on in its thread, which keeps no process from ending.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(action())
        except BaseException as error:  # raised again below, in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if errors:
        raise errors[0]
    if not results:
        raise Stalled(f"stalled: no answer in {seconds:g} s")
    return results[0]


def _run(
    filesystem: Any,
    begin: Callable[[], Awaitable[T]],
    pace: Pace,
    count: Callable[[], int] = lambda: 0,
) -> T:
    from fsspec.asyn import sync

    return sync(filesystem.loop, _watched, begin, pace, count)


async def _watched(begin: Callable[[], Awaitable[T]], pace: Pace, count: Callable[[], int]) -> T:
    """The result of what `begin` starts, which is cancelled when it does not get on."""
    task = asyncio.ensure_future(begin())
    try:
        while not (await asyncio.wait({task}, timeout=pace.poll_seconds))[0]:
            pace.check(count())
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
