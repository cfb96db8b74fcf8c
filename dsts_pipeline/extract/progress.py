"""How far an extraction is, what it did, and how many clips without a map are too many.

While it runs, a bar on a terminal, else a line a minute: clips a second, the share of the time in
which the backbone worked and in which it waited for the decoders, the time left, and how many clips
failed so far; where one waits much for the other, which it is and what would change it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.progress import console

LINE_INTERVAL_SECONDS = 60.0
ADVICE_SECONDS = 10.0  # before that, starting up is most of the time
_MUCH = 0.2  # of the time
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


@dataclass(frozen=True)
class ExtractionSummary:
    """What one run did: clips looked at, those that failed, and where the time went.

    Attributes:
        num_clips: Maps that were to be made; views of a clip count one each.
        forward_seconds: The backbone was at work.
        decode_wait_seconds: The backbone waited for frames.
        num_shards: Shards that this run wrote.
        num_decode_workers: Decode processes at the end.
        advice: What waited for what, and what would change it; empty: nothing worth it.
        num_shown: Frames of all maps, each counted in every map that shows it.
        num_decoded: Frames that were decoded for them, see `Tally`; 0: not counted.
    """

    num_clips: int
    failures: tuple[ClipFailure, ...]
    seconds: float
    forward_seconds: float
    decode_wait_seconds: float
    num_shards: int = 0
    num_decode_workers: int = 0
    advice: str = ""
    num_shown: int = 0
    num_decoded: int = 0


def summarize(store: str, counts: Mapping[str, Any], summary: ExtractionSummary) -> Table:
    """What the end of a run tells: the store, this run, where its time went.

    Args:
        counts: Of the store's manifest.
    """
    table = Table(show_header=False)
    table.add_row("store", store)
    table.add_row("maps", f"{counts['stored']:,} stored, {counts['failed']:,} failed")
    done = f"{summary.num_clips:,} maps in {summary.num_shards:,} shards"
    table.add_row("this run", f"{done}, {format_duration(summary.seconds)}")
    if summary.num_clips:
        seconds = summary.seconds or 1e-9
        table.add_row("rate", f"{summary.num_clips / seconds:,.1f} clips/s")
        table.add_row("backbone", f"{summary.forward_seconds / seconds:.0%} of the time at work")
        waited = f"{summary.decode_wait_seconds / seconds:.0%} of the time"
        table.add_row("waiting for decoders", waited)
        table.add_row("decode processes", f"{summary.num_decode_workers:,}")
    if summary.num_decoded:
        decoded = f"{summary.num_decoded:,} decoded, for {summary.num_shown:,} in maps"
        table.add_row("frames", decoded)
    if summary.advice:
        table.add_row("to be faster", summary.advice)
    return table


# ---- what waits for what ------------------------------------------------------------------------


@dataclass(frozen=True)
class Means:
    """What an extraction has to work with.

    Attributes:
        num_decode_workers, is_auto: Decode processes now, and whether the program chose.
        num_cores: That these may use.
        device, precision: Of the backbone, as torch and the settings name them.
    """

    num_decode_workers: int
    is_auto: bool
    num_cores: int
    device: str
    precision: str


def advise(forward_share: float, wait_share: float, means: Means) -> str:
    """What waits for what, and which setting would change it; empty where little is to be had.

    Args:
        forward_share: Of the time, the backbone was at work.
        wait_share: Of the time, the next batch was waited for; a GPU may work meanwhile.
    """
    idle_share = min(wait_share, 1.0 - forward_share)
    if idle_share >= _MUCH:
        return (
            f"the backbone waits for decoding {idle_share:.0%} of the time: "
            f"{_quicken_decoding(means)}"
        )
    if forward_share >= 1.0 - _MUCH:
        return f"decoding waits for the backbone: {_quicken_backbone(means)}"
    return ""


def _quicken_decoding(means: Means) -> str:
    number = means.num_decode_workers
    if not number:
        return "set backbone.num_decode_workers to auto"
    has_free_cores = number < means.num_cores - (means.device != "cpu")
    if has_free_cores and not means.is_auto:
        return f"more backbone.num_decode_workers ({number} of {means.num_cores} cores decode)"
    return (
        f"{number} of {means.num_cores} cores decode; smaller files, a lower backbone.num_frames, "
        "or more machines (docs/extraction-on-clusters.md)"
    )


def _quicken_backbone(means: Means) -> str:
    if means.device == "cpu":
        return "a GPU (backbone.device), or a lower backbone.num_frames or size_px"
    if means.precision == "float32":
        return "backbone.precision=bfloat16, or more GPUs"
    return "more GPUs (docs/extraction-on-clusters.md)"


# ---- while it runs ------------------------------------------------------------------------------


class ExtractionProgress(Protocol):
    """Told after every batch; the seconds are sums since the start."""

    def advance(
        self,
        count: int,
        *,
        num_failed: int,
        forward_seconds: float,
        decode_wait_seconds: float,
        means: Means | None = None,
    ) -> None: ...


class _Rates:
    """What is told, from what is known so far."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0
        self._start = time.monotonic()
        self._first: tuple[float, float, float] | None = None

    def describe(
        self,
        num_failed: int,
        forward_seconds: float,
        decode_wait_seconds: float,
        means: Means | None = None,
    ) -> str:
        elapsed = max(time.monotonic() - self._start, 1e-9)
        rate = self.done / elapsed
        left = format_duration((self.total - self.done) / rate) if rate else "?"
        now = (elapsed, forward_seconds, decode_wait_seconds)
        advice = self._advise(now, means)
        return (
            f"{rate:,.1f} clips/s, backbone {forward_seconds / elapsed:.0%}, waiting for decoders "
            f"{decode_wait_seconds / elapsed:.0%}, {left} left, {num_failed} failed"
        ) + (f"; {advice}" if advice else "")

    def _advise(self, now: tuple[float, float, float], means: Means | None) -> str:
        """By what came after the first batch, which waits for processes to start."""
        self._first = self._first or now
        elapsed, forward, wait = (a - b for a, b in zip(now, self._first, strict=True))
        if means is None or elapsed < ADVICE_SECONDS:
            return ""
        return advise(forward / elapsed, wait / elapsed, means)


class _Lines:
    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._rates = _Rates(total)
        self._last = time.monotonic()

    def advance(self, count: int, **state: Any) -> None:
        self._rates.done += count
        text = self._rates.describe(**state)
        now = time.monotonic()
        is_last = self._rates.done >= self._rates.total
        if now - self._last < LINE_INTERVAL_SECONDS and not is_last:
            return
        self._last = now
        done = f"{self._rates.done:,}/{self._rates.total:,} clips"
        console.print(f"{self._title}: {done}, {text}", soft_wrap=True)


class _Bar:
    def __init__(self, progress: Progress, task: TaskID, total: int) -> None:
        self._progress = progress
        self._task = task
        self._rates = _Rates(total)

    def advance(self, count: int, **state: Any) -> None:
        self._rates.done += count
        text = self._rates.describe(**state)
        self._progress.update(self._task, advance=count, note=text)


@contextmanager
def show_progress(title: str, total: int) -> Iterator[ExtractionProgress]:
    """Show how far the extraction of `total` maps is, under `title`."""
    if not console.is_terminal:
        yield _Lines(title, total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, progress.add_task(title, total=total, note=""), total)


def format_duration(seconds: float) -> str:
    """In the unit that a reader expects: 45 s, 12 min, 3.5 h, 2.1 days."""
    for limit, unit, length, digits in (
        (120, "s", 1, 0),
        (7200, "min", 60, 0),
        (172_800, "h", 3600, 1),
    ):
        if seconds < limit:
            return f"{seconds / length:.{digits}f} {unit}"
    return f"{seconds / 86_400:.1f} days"
