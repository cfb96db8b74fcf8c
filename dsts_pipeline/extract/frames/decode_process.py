"""One decode process: a job in, frames or a reason out.

The child answers jobs until its parent is gone; the parent waits for each answer only so long.
Why processes: decord can hang and can crash (its issues 269 and 363), and a thread cannot be
killed. They are spawned, not forked, since a fork copies torch's threads in an unknown state.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from dsts_pipeline.base.children import end_with_parent
from dsts_pipeline.extract.frames.decode_job import (
    Decoded,
    DecodeFunction,
    DecodeJob,
    answer,
    fail_unforeseen,
)

_START_SECONDS = 120.0


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
            connection.send(fail_unforeseen(job, error))


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
