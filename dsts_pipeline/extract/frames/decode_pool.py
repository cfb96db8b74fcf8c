"""Decode processes under a watchdog: jobs in, frames or reasons out, in the order of the jobs.

Each of `num_workers` threads owns one process and waits for its answer. A process that takes too
long is killed, one that dies is replaced; the clip is tried once more, then with the job's other
decoder if it names one, and then failed with a reason. An error that nobody foresaw fails its clip
alone, too, and leaves a line in the log that says where it came up. At most `prefetch_bytes` of
frames are decoded ahead of the consumer, whatever the size and length of the videos.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from types import TracebackType

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.extract.frames.decode_job import (
    Decoded,
    DecodeFunction,
    DecodeJob,
    answer,
    decode_clip,
)
from dsts_pipeline.extract.frames.decode_process import Worker, WorkerLost

NUM_ATTEMPTS = 2
PREFETCH_BYTES = 256 * 2**20
_NUM_STARTS = 3


class DecodePool:
    """`num_workers` decode processes; 0 decodes in this process, without a watchdog.

    Args:
        clip_timeout_seconds: A process that works longer on one clip is killed.
        prefetch_bytes: Frames decoded ahead of the consumer, at most; one job per process always.
        decode: What the processes do with a job; must be importable by name, like `warm_up`.
        warm_up: What each process does before its first job, outside of any clip's time.
    """

    def __init__(
        self,
        num_workers: int,
        *,
        clip_timeout_seconds: float = 60.0,
        prefetch_bytes: int = PREFETCH_BYTES,
        decode: DecodeFunction = decode_clip,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self._timeout_seconds, self._prefetch_bytes = clip_timeout_seconds, prefetch_bytes
        self._num_workers, self._decode, self._warm_up = num_workers, decode, warm_up
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
            yield from (_logged(job, answer(self._decode, job)) for job in jobs if job is not None)
            return
        ahead: deque[tuple[Future[Decoded], int]] = deque()
        num_bytes = 0
        for job in jobs:
            if job is not None:
                # Room is made before the job starts, or its frames would come on top.
                while len(ahead) >= self._num_workers and (
                    num_bytes + job.frame_bytes > self._prefetch_bytes
                ):
                    future, due_bytes = ahead.popleft()
                    num_bytes -= due_bytes
                    yield future.result()
                ahead.append((self._threads.submit(self._decode_watched, job), job.frame_bytes))
                num_bytes += job.frame_bytes
            elif ahead:
                future, due_bytes = ahead.popleft()
                num_bytes -= due_bytes
                yield future.result()
        while ahead:
            yield ahead.popleft()[0].result()

    def _decode_watched(self, job: DecodeJob) -> Decoded:
        return _logged(job, self._decode_persistently(job))

    def _decode_persistently(self, job: DecodeJob) -> Decoded:
        answered = self._try(job, NUM_ATTEMPTS)
        if isinstance(answered, Decoded):
            return answered
        if job.fallback is None or job.fallback == job.decoder:
            return Decoded(None, answered)
        other = self._try(replace(job, decoder=job.fallback), 1)
        if isinstance(other, Decoded):
            return other
        return Decoded(None, f"{answered}; {job.fallback}: {other}")

    def _try(self, job: DecodeJob, num_attempts: int) -> Decoded | str:
        """The answer to `job`, or what became of the processes that should have given it."""
        reason = ""
        for _ in range(num_attempts):
            if self._closing:
                return Decoded(None, "the pool is closed")
            try:
                return self._get_worker().ask(job, self._timeout_seconds)
            except WorkerLost as loss:
                reason = str(loss)
                self._drop_worker()
        return f"{reason}, {num_attempts} times" if num_attempts > 1 else reason

    def _get_worker(self) -> Worker:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = self._own.worker = _start_worker(self._decode, self._warm_up)
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


def _logged(job: DecodeJob, answered: Decoded) -> Decoded:
    """`answered`, after a line in the log where a fault of a program is behind it."""
    if answered.trace:
        console.print(
            f"{job.path}: {answered.reason} (at {answered.trace})", markup=False, soft_wrap=True
        )
    return answered


def _start_worker(decode: DecodeFunction, warm_up: Callable[[], None] | None) -> Worker:
    """A process that does not even start says nothing about the clip: that is an error of its own.

    Raises:
        UserError: No process starts, several times in a row.
    """
    reason = ""
    for _ in range(_NUM_STARTS):
        try:
            return Worker(decode, warm_up)
        except WorkerLost as loss:
            reason = str(loss)
    raise UserError(
        f"no decode process could be started ({reason}); free memory, or decode in the main "
        "process with backbone.num_decode_workers = 0"
    )
