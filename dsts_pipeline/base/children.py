"""Processes that we start end with the one that started them; SIGTERM stops work in good order.

Enters: the process id of the parent. Leaves: a child that ends when that process does, however it
does (kill -9 and a lack of memory give it no chance to say so), and that holds none of its caller's
pipes: who waits for the end of our output waits for the parent alone.

Linux tells a child of its parent's death by a signal; where there is no such thing, and where the
parent died before the child could ask for it, a thread compares the parent's number now and then.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

from dsts_pipeline.base.errors import UserError

_POLL_SECONDS = 1.0
_SAVING_SECONDS = 30.0  # for what `on_loss` began
_PR_SET_PDEATHSIG = 1  # Source: linux/prctl.h

T = TypeVar("T")


def end_with_parent(
    parent: int, *, is_quiet: bool = False, on_loss: Callable[[], None] | None = None
) -> None:
    """Let this process end when `parent` does. Call it first thing in a child.

    The thread of the parent that started this process has to stay until this process is done: on
    Linux its end counts as the parent's.

    Args:
        parent: Process id of who started this one, as that process told it: by the time that
            `os.getppid` is asked it may be gone.
        is_quiet: Send standard error nowhere, too, as input and output always are.
        on_loss: What to do, in a thread of its own, before this process ends by itself; None: it
            ends at once.
    """
    _let_go_of_pipes(is_quiet)
    if on_loss is None and sys.platform == "linux":
        # Beside the thread, which a decoder that hangs in C with Python's lock would stop.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    watch_parent(parent, on_loss)


def watch_parent(parent: int, on_loss: Callable[[], None] | None = None) -> None:
    """`end_with_parent` where the output belongs to others: nothing but a thread that looks."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_POLL_SECONDS)
        if on_loss is not None:
            on_loss()
            time.sleep(_SAVING_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="watch parent", daemon=True).start()


def map_in_processes(
    function: Callable[..., T], *arguments: Sequence[Any], num_workers: int
) -> Iterator[T]:
    """Results of `function` on the items of `arguments`, in their order, from spawned processes.

    Ctrl-C reaches this process alone, and no worker outlives it.

    Args:
        function: Importable by name.
        arguments: As for `map`: one sequence per argument.
        num_workers: Processes.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=end_with_parent, initargs=(os.getpid(),)
    ) as pool:
        with _interrupts_held():  # Handing in the work starts the processes.
            done = pool.map(function, *arguments)
        yield from done


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back: this process gets it afterwards, those that it starts meanwhile never.

    A terminal sends it to all of them, and one that is still starting would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _let_go_of_pipes(is_quiet: bool) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        for descriptor in (0, 1, 2) if is_quiet else (0, 1):
            os.dup2(nothing, descriptor)
    finally:
        if nothing > 2:
            os.close(nothing)


# ---- SIGTERM as an end ---------------------------------------------------------------------------
#
# It unwinds the stack as Ctrl-C does, so that decode processes end and locks are dropped.

SIGTERM_STATUS = 128 + signal.SIGTERM


@contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Within the block SIGTERM raises SystemExit; without effect outside of the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(*_: object) -> None:
        raise SystemExit(SIGTERM_STATUS)

    previous = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


# ---- SIGTERM as a request ------------------------------------------------------------------------
#
# The training saves after the batch in work and exits to be requeued, with status 99 unless set
# otherwise. Grid Engine requeues a job that exits with 99 by itself; LSF requeues on its
# REQUEUE_EXIT_VALUES and Slurm on its RequeueExit, where sites name the statuses and 99 is the
# usual one. It is none of those that shells and kernels give (126 to 165), so a job that crashed is
# not started again and again. Slurm's own preemption requeues whatever the status; HTCondor's
# checkpoint_exit_code is often 85.

REQUEUE_STATUS = 99


class TrainingStopped(UserError):
    """The training was asked to stop and saved itself."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class BudgetOver(TrainingStopped):
    """No time is left for another epoch; what was trained is saved."""

    def __init__(self, message: str) -> None:
        super().__init__(message, exit_status=1)


class Budget:
    """The time that a command may take: no epoch is begun that would end after it.

    The last epoch says how long one takes. The first one is trained in any case, so that a command
    that is repeated comes to its end.

    Args:
        minutes: From now on; None: without end.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.minutes = minutes
        self._end = None if minutes is None else time.monotonic() + 60.0 * minutes
        self._last = time.monotonic()
        self._epoch_seconds: float | None = None

    def end_epoch(self) -> None:
        """Note that an epoch ended just now."""
        now = time.monotonic()
        self._epoch_seconds = now - self._last
        self._last = now

    @property
    def minutes_left(self) -> float | None:
        """What another process may take from now on; None: no end."""
        return None if self._end is None else (self._end - time.monotonic()) / 60.0

    @property
    def is_over(self) -> bool:
        """Whether another epoch would end after it."""
        if self._end is None or self._epoch_seconds is None:
            return False
        return time.monotonic() + self._epoch_seconds > self._end


class StopRequest:
    """Whether the training should stop, and the status to exit with.

    Args:
        budget: Looked at between epochs.
    """

    def __init__(self, exit_status: int = REQUEUE_STATUS, budget: Budget | None = None) -> None:
        self.exit_status = exit_status
        self.budget = budget or Budget()
        self.requested = False

    def end_epoch(self) -> None:
        """Note that an epoch ended; ask to stop where no time is left for another."""
        self.budget.end_epoch()
        self.look_at_budget()

    def look_at_budget(self) -> None:
        """Ask to stop where no time is left for another epoch."""
        self.requested = self.requested or self.budget.is_over


@contextmanager
def stop_on_sigterm(
    exit_status: int = REQUEUE_STATUS, budget: Budget | None = None
) -> Iterator[StopRequest]:
    """Within the block SIGTERM sets the request; without effect outside of the main thread.

    Once requested by it, further SIGTERMs are ignored until the process ends: it is about to.

    Args:
        budget: Sets the request, too, between epochs.
    """
    request = StopRequest(exit_status, budget)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    asked = False

    def note(*_: object) -> None:
        nonlocal asked
        asked = request.requested = True

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if asked else previous)
