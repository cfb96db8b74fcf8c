"""Decode processes under a watchdog: jobs in, frames or reasons out, in the order of the jobs.

Enters: `FrameRequest`s (see `views`), or other jobs about one video each. Leaves, for each, uint8
[V, T, H, W, 3], a row per view, or the reason why there is none. Nothing here needs torch.

Each of `num_workers` threads owns one process and waits for its answer; where their number is left
open (`auto`) there is one at first, and more once `adapt` knows how fast the consumer is. A process
that takes too long is killed, one that dies is replaced; the clip is tried once more, then with the
job's other decoder if it names one, and then failed with a reason. An error that nobody foresaw
fails its clip alone, too, and leaves a line in the log that says where it came up. At most
`prefetch_bytes` of frames are decoded ahead of the consumer, whatever the size and length of the
videos.

Why processes: decord can hang and can crash (its issues 269 and 363), and a thread cannot be
killed. They are spawned, not forked, since a fork copies torch's threads in an unknown state. Why a
pipe for each: in a pool that shares one, as concurrent.futures and pebble do, a process that dies
while it sends leaves half a message, after which no other answer can be read.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.children import end_with_parent
from dsts_pipeline.base.errors import UserError, tell_briefly, tell_trace
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.progress import console
from dsts_pipeline.clips.decode import Tally, decode_frames
from dsts_pipeline.clips.probe import VideoError
from dsts_pipeline.extract.augmentation import augment
from dsts_pipeline.extract.flow import NUM_CHANNELS, NUM_FRAMES, FlowStacks
from dsts_pipeline.extract.num_decoders import NumWorkers, choose_num_decoders, count_cores
from dsts_pipeline.extract.pipelines import cut_square, scale_frames
from dsts_pipeline.extract.views import Content, DecodeJob, FrameRequest

NUM_ATTEMPTS = 2
PREFETCH_BYTES = 256 * 2**20
_NUM_STARTS = 3
_START_SECONDS = 120.0
FIRST_LOOK_SECONDS = 4.0


@dataclass(frozen=True)
class Decoded:
    """Frames uint8 [V, T, H, W, 3], or None and the reason why there are none.

    Attributes:
        trace: Where an error came up that nobody foresaw: one of this program's or a library's.
        num_decoded: Frames that were decoded for it, see `Tally`; of clips that were read at once
            the first has them all. 0: not counted.
    """

    frames: np.ndarray | None
    reason: str = ""
    trace: str = ""
    num_decoded: int = 0


DecodeFunction = Callable[[Any], np.ndarray | Decoded]
"""Frames of a `DecodeJob` (of the kind that it is for), or a `Decoded` that says more than that."""


def decode_clip(request: FrameRequest) -> np.ndarray:
    """Decode `request` after checking that the file is still the one that was indexed.

    The check also catches the damage that decord would paper over.

    Raises:
        VideoError: The file changed since it was indexed, or cannot be decoded.
    """
    frames = decode_counted(request).frames
    assert frames is not None
    return frames


def decode_counted(request: FrameRequest) -> Decoded:
    """What `decode_clip` does, with the number of frames that were decoded for it.

    Raises:
        VideoError: See `decode_clip`.
    """
    if request.content is not None:
        check_content(request.path, request.content)
    tally = Tally()
    frames = decode_views(request, Stopwatch(), tally)
    return Decoded(frames, num_decoded=tally.num_frames)


class DecodePool:
    """Decode processes under a watchdog, or this process without one.

    Args:
        num_workers: Decode processes; 0 decodes in this process; "auto": see `adapt`.
        clip_timeout_seconds: A process that works longer on one clip is killed; clips that are
            read at once have as much each.
        prefetch_bytes: Frames decoded ahead of the consumer, at most; one job per process always.
        decode: What the processes do with a job; must be importable by name, like `warm_up`.
        warm_up: What each process does before its first job, outside of any clip's time.

    Attributes:
        num_workers: Decode processes now.
        is_auto: Whether they become more.
    """

    def __init__(
        self,
        num_workers: NumWorkers,
        *,
        clip_timeout_seconds: float = 60.0,
        prefetch_bytes: int = PREFETCH_BYTES,
        decode: DecodeFunction = decode_clip,
        warm_up: Callable[[], None] | None = None,
    ) -> None:
        self.is_auto = num_workers == "auto"
        self.num_workers: int = 1 if num_workers == "auto" else num_workers
        self._timeout_seconds = clip_timeout_seconds
        self._prefetch_bytes = prefetch_bytes
        self._decode = decode
        self._warm_up = warm_up
        self._waiting: queue.SimpleQueue[_Asked | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._own = threading.local()
        self._workers: set[Worker] = set()
        self._lock = threading.Lock()
        self._closing = False
        self._busy_seconds = 0.0  # of the processes, on `_num_views` views that they decoded
        self._num_views = 0
        self._started = time.monotonic()
        self._look_seconds = FIRST_LOOK_SECONDS

    def __enter__(self) -> DecodePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill the decode processes; unfinished jobs are dropped."""
        with self._lock:
            self._closing = True
            for worker in self._workers:
                worker.process.kill()
            threads = list(self._threads)
        for _ in threads:
            self._waiting.put(None)
        for thread in threads:
            thread.join()

    @property
    def process_ids(self) -> list[int]:
        """Process ids of the living decode processes."""
        with self._lock:
            return [worker.process.pid for worker in self._workers if worker.process.pid]

    def run(self, jobs: Iterable[DecodeJob | None]) -> Iterator[Decoded]:
        """Decode `jobs`; answers come in their order, one for each of a job's `parts`.

        None among them: no job just now, answer what is due.
        """
        if not self.num_workers:
            for job in jobs:
                if job is not None:
                    yield from _answer_parts(job, partial(answer, self._decode))
            return
        ahead: deque[tuple[Future[list[Decoded]], int]] = deque()
        num_bytes = 0

        def take() -> list[Decoded]:
            nonlocal num_bytes
            future, due_bytes = ahead.popleft()
            num_bytes -= due_bytes
            return future.result()

        for job in jobs:
            if job is None:
                if ahead:
                    yield from take()
                continue
            # Room is made before the job starts, or its frames would come on top.
            while len(ahead) >= self.num_workers and (
                num_bytes + job.answer_bytes > self._prefetch_bytes
            ):
                yield from take()
            ahead.append((self._submit(job), job.answer_bytes))
            num_bytes += job.answer_bytes
        while ahead:
            yield from take()

    @property
    def decode_seconds(self) -> float | None:
        """What a view takes one process, on average; None before one was decoded."""
        with self._lock:
            return self._busy_seconds / self._num_views if self._num_views else None

    def adapt(self, work_seconds: float | None, *, num_work_threads: int) -> None:
        """After a batch: where the number of processes is left open, start those that it takes.

        What was measured is looked at `FIRST_LOOK_SECONDS` after the pool's start, since a process
        more costs a second or two to start, then each time that has doubled. They never become
        fewer.

        Args:
            work_seconds: What a view takes the consumer; None: not known yet.
            num_work_threads: See `choose_num_decoders`.
        """
        decode_seconds = self.decode_seconds
        if not self.is_auto or work_seconds is None or decode_seconds is None:
            return
        passed_seconds = time.monotonic() - self._started
        if passed_seconds < self._look_seconds:
            return
        is_first = self._look_seconds == FIRST_LOOK_SECONDS
        self._look_seconds = 2 * passed_seconds
        num_cores = count_cores()
        chosen = choose_num_decoders(decode_seconds, work_seconds, num_cores, num_work_threads)
        if chosen > self.num_workers or is_first:
            with self._lock:
                self.num_workers = max(chosen, self.num_workers)
                while len(self._threads) < self.num_workers and not self._closing:
                    self._start_thread()  # for what waits already
            console.print(
                f"decoding by {self.num_workers} of {num_cores} cores (backbone.num_decode_workers "
                f"= auto): a view takes {1000 * decode_seconds:.1f} ms to decode, then "
                f"{1000 * work_seconds:.1f} ms",
                soft_wrap=True,
            )

    def _submit(self, job: DecodeJob) -> Future[list[Decoded]]:
        """Hand `job` to the threads, of which there are no more than there is work for."""
        future: Future[list[Decoded]] = Future()
        with self._lock:
            if self._closing:
                raise RuntimeError("the pool is closed")
            self._waiting.put((future, job))
            if len(self._threads) < self.num_workers:
                self._start_thread()
        return future

    def _start_thread(self) -> None:
        name = f"decode_{len(self._threads)}"
        self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
        self._threads[-1].start()

    def _serve(self) -> None:
        """The life of a thread: answer jobs until the pool closes."""
        while (asked := self._waiting.get()) is not None:
            future, job = asked
            if self._closing:
                future.cancel()
                continue
            try:
                future.set_result(_answer_parts(job, self._decode_persistently))
            except BaseException as error:
                future.set_exception(error)

    def _decode_persistently(self, job: DecodeJob) -> Decoded:
        answered = self._try(job, NUM_ATTEMPTS if len(job.parts) == 1 else 1)
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
                return self._ask(job)
            except WorkerLost as loss:
                reason = str(loss)
                self._drop_worker()
        return f"{reason}, {num_attempts} times" if num_attempts > 1 else reason

    def _ask(self, job: DecodeJob) -> Decoded:
        started = time.perf_counter()
        answered = self._reach(job, self._timeout_seconds * len(job.parts))
        if answered.frames is not None:
            with self._lock:
                self._busy_seconds += time.perf_counter() - started
                self._num_views += len(answered.frames)
        return answered

    def _reach(self, job: DecodeJob, limit_seconds: float) -> Decoded:
        """The answer to `job` by this thread's process.

        Raises:
            WorkerLost: None came in time.
        """
        return self._get_worker().ask(job, limit_seconds)

    def _get_worker(self) -> Worker:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None:
            worker = _start_worker(self._decode, self._warm_up)
            self._own.worker = worker
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


_Asked = tuple[Future[list[Decoded]], DecodeJob]


def _answer_parts(job: DecodeJob, decode: Callable[[DecodeJob], Decoded]) -> list[Decoded]:
    """An answer for each part of `job`; where they fail together, each is tried alone."""
    made = decode(job)
    parts = job.parts
    if len(parts) == 1:
        return [_logged(job, made)]
    if made.frames is None:
        return [_logged(part, decode(part)) for part in parts]
    answers = []
    begin = 0
    for part in parts:
        assert isinstance(part, FrameRequest)
        frames = made.frames[begin : begin + len(part.views)]
        answers.append(Decoded(frames, num_decoded=0 if begin else made.num_decoded))
        begin += len(part.views)
    return answers


def _logged(job: DecodeJob, answered: Decoded) -> Decoded:
    """`answered`, after a line in the log where a fault of a program is behind it."""
    if answered.trace:
        console.print(f"{job.path}: {answered.reason} (at {answered.trace})", soft_wrap=True)
    return answered


# ---- one decode process -------------------------------------------------------------------------


class WorkerLost(Exception):
    """The process did not answer; the message says what became of it."""


class Worker:
    """One decode process, seen from its parent.

    Args:
        decode: What it does with a job; must be importable by name, like `warm_up`.
        warm_up: What it does once, before its first job.

    Raises:
        WorkerLost: It does not start.
    """

    def __init__(self, decode: DecodeFunction, warm_up: Callable[[], None] | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self.process = context.Process(
            target=_serve,
            args=(child, decode, warm_up, os.getpid()),
            daemon=True,
            name="decode",
        )
        self.process.start()
        child.close()
        try:
            self._receive(_START_SECONDS)
        except WorkerLost:
            self.kill()
            raise

    def ask(self, job: DecodeJob, timeout_seconds: float) -> Decoded:
        """The answer to `job`.

        Raises:
            WorkerLost: None came in time; `kill` the worker.
        """
        try:
            self._connection.send(job)
        except OSError:
            raise WorkerLost(self._tell_death()) from None
        answer = self._receive(timeout_seconds)
        assert isinstance(answer, Decoded)
        return answer

    def _receive(self, timeout_seconds: float) -> object:
        try:
            if self._connection.poll(timeout_seconds):
                return self._connection.recv()
        except (EOFError, OSError):
            raise WorkerLost(self._tell_death()) from None
        raise WorkerLost(f"decoding took longer than {timeout_seconds:g} s")

    def _tell_death(self) -> str:
        self.process.join(5.0)
        code = self.process.exitcode or 0
        return f"the decode process died ({f'signal {-code}' if code < 0 else f'status {code}'})"

    def kill(self) -> None:
        """End the process at once."""
        self.process.kill()
        self.process.join(5.0)
        self._connection.close()


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


def _serve(
    connection: Connection,
    decode: DecodeFunction,
    warm_up: Callable[[], None] | None,
    parent: int,
) -> None:
    """The life of a decode process: answer jobs until the other end closes or the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    # Decoders print about broken files by themselves; the reason goes into the manifest instead.
    end_with_parent(parent, is_quiet=True)
    if warm_up is not None:
        warm_up()
    connection.send("ready")
    while True:
        try:
            job = connection.recv()
        except (EOFError, OSError):
            return
        try:
            connection.send(answer(decode, job))
        except BrokenPipeError:
            return
        except Exception as error:  # an answer that can't be sent
            connection.send(_fail_unforeseen(job, error))


# ---- one job ------------------------------------------------------------------------------------


def answer(decode: DecodeFunction, job: DecodeJob) -> Decoded:
    """What became of `job`: frames, or the reason why there are none.

    Whatever a decoder makes of a file, it is that file's failure: one must not stop all others.
    """
    try:
        made = decode(job)
        return made if isinstance(made, Decoded) else Decoded(made)
    except VideoError as error:
        return Decoded(None, error.reason)
    except MemoryError:
        return Decoded(None, "decoding it takes more memory than there is")
    except Exception as error:
        failed = _fail_unforeseen(job, error)
        if job.fallback is None or job.fallback == job.decoder:
            return failed
        other = answer(decode, replace(job, decoder=job.fallback))
        if other.frames is not None:
            return other
        return replace(failed, reason=f"{failed.reason}; {job.fallback}: {other.reason}")


def _fail_unforeseen(job: DecodeJob, error: Exception) -> Decoded:
    """The answer to a job that ended with an error that nobody foresaw; it names no folder."""
    told = tell_briefly(error).replace(job.path, Path(job.path).name)
    return Decoded(None, f"decoding failed: {told}", tell_trace(error))


def check_content(path: str, expected: Content) -> None:
    """Compare a file with what it held when it was indexed.

    Raises:
        VideoError: It holds something else, or cannot be read.
    """
    try:
        num_bytes = Path(path).stat().st_size
        if num_bytes != expected.size_bytes:
            reason = f"{num_bytes} bytes, {expected.size_bytes} when it was indexed"
            raise VideoError(path, reason)
        if sha256_file(path) != expected.sha256:
            raise VideoError(path, "its content changed since it was indexed")
    except OSError as error:
        raise VideoError(path, f"it cannot be read ({error.strerror})") from None


class Stopwatch:
    """How long the blocks inside `running` took together, in seconds."""

    seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started


def decode_views(
    request: FrameRequest, transforming: Stopwatch, tally: Tally | None = None
) -> np.ndarray:
    """Frames of `request`, whatever the file's content is.

    Args:
        transforming: Is told the time of scaling, where that is not the decoder's, and of cutting.
        tally: Is told how many frames were decoded.

    Raises:
        VideoError: It cannot be decoded.
    """
    try:
        return _decode_views(request, transforming, tally)
    except VideoError as error:
        if request.fallback is None or request.fallback == request.decoder:
            raise
        first = error.reason
    try:
        return _decode_views(replace(request, decoder=request.fallback), transforming, tally)
    except VideoError as error:
        both = first if error.reason == first else f"{first}; {request.fallback}: {error.reason}"
        raise VideoError(request.path, both) from None


def _decode_views(
    request: FrameRequest, transforming: Stopwatch, tally: Tally | None
) -> np.ndarray:
    """Every frame is decoded once, whichever views and clips show it."""
    numbers = np.unique(np.concatenate([view.indices for view in request.views]))
    shorter_px = request.resize_px or request.size_px
    scaling: dict[str, Any] = {"size_px": shorter_px, "is_cut": False}
    if request.scaling is not None and shorter_px is not None:
        scaling = {"scale": partial(_scale, request, transforming=transforming)}
    whole = decode_frames(
        request.path,
        numbers,
        decoder=request.decoder,
        info=request.info,
        may_switch=not request.shared_by,
        tally=tally,
        **scaling,
    )
    height, width = whole.shape[1:3]
    if request.size_px is not None and min(height, width) < request.size_px:
        raise VideoError(request.path, f"frames of {width} x {height} px are too small")
    with transforming.running():
        return _cut_views(request, whole, numbers)


def _scale(request: FrameRequest, frames: np.ndarray, *, transforming: Stopwatch) -> np.ndarray:
    shorter_px = request.resize_px or request.size_px
    assert request.scaling is not None and shorter_px is not None
    with transforming.running():
        return scale_frames(frames, request.scaling, shorter_px, squeezes=request.squeezes)


def _cut_views(request: FrameRequest, whole: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    height, width = whole.shape[1:3]
    size_px = request.size_px
    if size_px is not None:
        height = width = size_px
    length = len(request.views[0].indices)
    num_channels = 3
    stacks = None
    if request.modality == "flow":
        length //= NUM_FRAMES
        num_channels = NUM_CHANNELS
        stacks = FlowStacks(whole, numbers)
    frames = np.empty((len(request.views), length, height, width, num_channels), np.uint8)
    for row, view in zip(frames, request.views, strict=True):
        indices = np.asarray(view.indices)
        shown = (
            whole[np.searchsorted(numbers, indices)] if stacks is None else stacks.stack(indices)
        )
        if size_px is None:
            row[:] = shown
        elif view.seed is None:
            row[:] = cut_square(shown, size_px, view.crop, request.scaling)
        else:
            row[:] = augment(
                shown,
                request.augmentation,
                size_px,
                seed=view.seed,
                is_flipped=view.is_flipped,
                scaling=request.scaling,
            )
    return frames
