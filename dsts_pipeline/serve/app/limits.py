"""How much the page lets in: sizes, times, how many at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Attributes:
        upload_bytes: Of one file; a larger one is cut off with status 413.
        upload_seconds: For the file to arrive; then status 408.
        head_seconds: For a request's head to arrive; then its connection is closed.
        answer_seconds: For the other side to take what was sent; then it is closed.
        num_silent: Connections that may wait for a head at once; one more closes the one that has
            waited for longest.
        num_at_once: Videos that are worked on side by side.
        num_waiting: Further ones that wait for their turn; more get status 503.
    """

    upload_bytes: int = 64 * 2**20
    upload_seconds: float = 60.0
    head_seconds: float = 5.0
    answer_seconds: float = 30.0
    num_silent: int = 32
    num_at_once: int = 2
    num_waiting: int = 4
