"""How much the page lets in: sizes, times, how many at once."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Limits of the page.

    Attributes:
        upload_bytes: Of one file; a larger one is cut off with status 413.
        upload_seconds: For the file to arrive; then status 408.
        num_at_once: Videos that are worked on side by side.
        num_waiting: Further ones that wait for their turn; more get status 503.
    """

    upload_bytes: int = 64 * 2**20
    upload_seconds: float = 60.0
    num_at_once: int = 2
    num_waiting: int = 4
