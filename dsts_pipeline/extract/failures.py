"""Clips without a map: what they are called, and how many are too many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dsts_pipeline.base.errors import DataError

_NUM_LISTED = 3


@dataclass(frozen=True)
class ClipFailure:
    """A clip without a map, and why."""

    clip_id: str
    reason: str


def check_failures(
    failures: Sequence[ClipFailure], num_clips: int, *, max_failed_fraction: float
) -> None:
    """Fail if more than `max_failed_fraction` of `num_clips` clips lack a map.

    A clip counts once, whichever of its views failed.

    Raises:
        DataError: Naming the first few clips with their reasons.
    """
    allowed = math.floor(max_failed_fraction * num_clips + 1e-9)
    reasons: dict[str, str] = {}
    for failure in failures:
        reasons.setdefault(failure.clip_id, failure.reason)
    if len(reasons) <= allowed:
        return
    shown = list(reasons.items())[:_NUM_LISTED]
    listed = "; ".join(f"{clip_id}: {reason}" for clip_id, reason in shown)
    more = "; ..." if len(reasons) > _NUM_LISTED else ""
    raise DataError(
        f"{len(reasons)} of {num_clips} clips have no map, {allowed} are allowed by "
        f"backbone.max_failed_fraction = {max_failed_fraction:g} ({listed}{more}). Replace these "
        "files and run `python cli.py prepare`, or raise the setting"
    )
