"""One decode process: a job in, frames or a reason out.

The child answers jobs until its parent is gone; the parent waits for each answer only so long.
Why processes: decord can hang and can crash (its issues 269 and 363), and a thread cannot be
killed. They are spawned, not forked, since a fork copies torch's threads in an unknown state.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from dsts_pipeline.clips.decode import Decoder, VideoError, decode_frames

_START_SECONDS = 120.0
_ORPHAN_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class DecodeJob:
    """Frames `indices` of the video at `path`, whose content must have this size and digest."""

    path: str
    indices: tuple[int, ...]
    decoder: Decoder
    size_px: int
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class Decoded:
    """Frames uint8 [T, H, W, 3], or None and the reason why there are none."""

    frames: np.ndarray | None
    reason: str = ""


DecodeFunction = Callable[[DecodeJob], np.ndarray]


def decode_clip(job: DecodeJob) -> np.ndarray:
    """Decode `job` after checking that the file is still the one that was indexed.

    The check also catches the damage that decord would paper over.

    Raises:
        VideoError: The file changed since it was indexed, or cannot be decoded.
    """
    try:
        content = Path(job.path).read_bytes()
    except OSError as error:
        raise VideoError(job.path, f"it cannot be read ({error.strerror})") from None
    if len(content) != job.size_bytes:
        raise VideoError(job.path, f"{len(content)} bytes, {job.size_bytes} when it was indexed")
    if hashlib.sha256(content).hexdigest() != job.sha256:
        raise VideoError(job.path, "its content changed since it was indexed")
    return decode_frames(job.path, job.indices, decoder=job.decoder, size_px=job.size_px)


def answer(decode: DecodeFunction, job: DecodeJob) -> Decoded:
    """What became of `job`: frames, or the reason why there are none."""
    try:
        return Decoded(decode(job))
    except VideoError as error:
        return Decoded(None, error.reason)


def _serve(connection: Connection, decode: DecodeFunction, parent: int) -> None:
    """The life of a decode process: answer jobs until the other end closes or the parent dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    threading.Thread(target=_exit_when_orphaned, args=(parent,), daemon=True).start()
    # Decoders print about broken files by themselves; the reason goes into the manifest instead.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
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
        except Exception:
            connection.send(traceback.format_exc())


def _exit_when_orphaned(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_ORPHAN_POLL_SECONDS)
    os._exit(1)


class WorkerLost(Exception):
    """The process did not answer; the message says what became of it."""


class Worker:
    """One decode process, seen from its parent.

    Raises:
        WorkerLost: It does not start.
    """

    def __init__(self, decode: DecodeFunction) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, child = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(child, decode, os.getpid()), daemon=True, name="decode"
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
            RuntimeError: Our code failed in the process; its traceback is in the message.
        """
        try:
            self._connection.send(job)
        except OSError:
            raise WorkerLost(self._tell_death()) from None
        answer = self._receive(timeout_seconds)
        if isinstance(answer, str):
            raise RuntimeError(f"decode process failed on {job.path}:\n{answer}")
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
