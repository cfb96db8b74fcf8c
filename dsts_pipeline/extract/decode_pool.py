"""Decode processes under a watchdog: jobs in, frames or reasons out, in the order of the jobs.

Each of `num_workers` threads owns one process and waits for its answer. A process that takes too
long is killed, one that dies is replaced; the clip is tried once more and then failed with a
reason. At most `prefetch` clips are decoded ahead of the consumer, so memory is bounded.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.extract.decode_process import (
    Decoded,
    DecodeFunction,
    DecodeJob,
    Worker,
    WorkerLost,
    answer,
    decode_clip,
)

NUM_ATTEMPTS = 2
_NUM_STARTS = 3


class DecodePool:
    """`num_workers` decode processes; 0 decodes in this process, without a watchdog.

    Args:
        clip_timeout_seconds: A process that works longer on one clip is killed.
        prefetch: Clips decoded ahead of the consumer, at most.
        decode: What the processes do with a job; must be importable by name.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        clip_timeout_seconds: float = 60.0,
        prefetch: int = 64,
        decode: DecodeFunction = decode_clip,
    ) -> None:
        self._timeout_seconds, self._prefetch = clip_timeout_seconds, max(prefetch, num_workers, 1)
        self._decode = decode
        self._threads = ThreadPoolExecutor(num_workers, "decode") if num_workers else None
        self._own = threading.local()
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._closing = False

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decode processes; unfinished jobs are dropped."""
        self._closing = True
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            for worker in self._workers:
                worker.process.kill()
        if self._threads is not None:
            self._threads.shutdown(wait=True)

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the living decode processes."""
        with self._lock:
            return [worker.process.pid for worker in self._workers if worker.process.pid]

    def run(self, jobs: Iterable[DecodeJob | None]) -> Iterator[Decoded]:
        """Decode `jobs`; answers come in their order. None: no job just now, answer what is due."""
        if self._threads is None:
            yield from (answer(self._decode, job) for job in jobs if job is not None)
            return
        ahead: deque[Future[Decoded]] = deque()
        for job in jobs:
            if job is not None:
                ahead.append(self._threads.submit(self._decode_watched, job))
            if ahead and (job is None or len(ahead) >= self._prefetch):
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _decode_watched(self, job: DecodeJob) -> Decoded:
        reason = ""
        for _ in range(NUM_ATTEMPTS):
            if self._closing:
                return Decoded(None, "the pool is closed")
            try:
                return self._get_worker().ask(job, self._timeout_seconds)
            except WorkerLost as loss:
                reason = str(loss)
                self._drop_worker()
        return Decoded(None, f"{reason}, {NUM_ATTEMPTS} times")

    def _get_worker(self) -> Worker:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _start_worker(self._decode)
            with self._lock:
                self._workers.add(worker)
        if self._closing:
            raise WorkerLost("the pool is closed")
        return worker

    def _drop_worker(self) -> None:
        worker: Worker | None = getattr(self._own, "worker", None)
        self._own.worker = None
        if worker is not None:
            with self._lock:
                self._workers.discard(worker)
            worker.kill()


def _start_worker(decode: DecodeFunction) -> Worker:
    """A process that does not even start says nothing about the clip: that is an error of its own.

    Raises:
        UserError: No process starts, several times in a row.
    """
    reason = ""
    for _ in range(_NUM_STARTS):
        try:
            return Worker(decode)
        except WorkerLost as loss:
            reason = str(loss)
    raise UserError(
        f"no decode process could be started ({reason}); free memory, or decode in the main "
        "process with backbone.num_decode_workers = 0"
    )
