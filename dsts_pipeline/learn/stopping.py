"""SIGTERM as a request: the training saves after the batch in work and exits to be requeued.

The exit status is 99 unless set otherwise. Grid Engine requeues a job that exits with 99 by
itself; LSF requeues on its REQUEUE_EXIT_VALUES and Slurm on its RequeueExit, where sites name the
statuses and 99 is the usual one. It is none of those that shells and kernels give (126 to 165), so
a job that crashed is not started again and again. Slurm's own preemption requeues whatever the
status; HTCondor's checkpoint_exit_code is often 85.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dsts_pipeline.base.errors import UserError

REQUEUE_STATUS = 99


class TrainingStopped(UserError):
    """The training was asked to stop and saved itself."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class StopRequest:
    """Whether the training should stop, and the status to exit with."""

    def __init__(self, exit_status: int = REQUEUE_STATUS) -> None:
        self.exit_status, self.requested = exit_status, False


@contextmanager
def stop_on_sigterm(exit_status: int = REQUEUE_STATUS) -> Iterator[StopRequest]:
    """Within the block SIGTERM sets the request; without effect outside of the main thread.

    Once requested, further SIGTERMs are ignored until the process ends: it is about to.
    """
    request = StopRequest(exit_status)
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(*_: object) -> None:
        request.requested = True

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield request
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if request.requested else previous)
