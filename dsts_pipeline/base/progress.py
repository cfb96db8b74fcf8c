"""Progress of long loops: a bar with rate and time left on a terminal, a line now and then else."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class _PlainConsole:
    """Lines on stderr, where rich is missing: a library that was installed without what it asks."""

    is_terminal = False

    def print(self, *words: object, end: str = "\n", **_style: object) -> None:
        print(*words, end=end, file=sys.stderr)


def _make_console() -> Any:
    try:
        from rich.console import Console
    except ModuleNotFoundError:
        return _PlainConsole()
    return Console(stderr=True, highlight=False, markup=False)  # "[x]" is no markup


LINE_INTERVAL_SECONDS = 20.0
console = _make_console()


class Track(Protocol):
    """Call `advance(n)` after n units of work; `note` replaces the text beside the bar."""

    def advance(self, count: int = 1, note: str | None = None) -> None: ...


class _BarTrack:
    def __init__(self, progress: Progress, task: TaskID, unit: str) -> None:
        self._progress = progress
        self._task = task
        self._unit = unit
        self._done = 0  # in this run
        self._start = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._done += count
        rate = self._done / max(time.monotonic() - self._start, 1e-9)
        if note is not None:
            self._progress.update(self._task, note=note)
        self._progress.update(self._task, advance=count, rate=f"{rate:,.1f} {self._unit}/s")


class _LineTrack:
    def __init__(self, title: str, total: int, unit: str, done: int) -> None:
        self._title = title
        self._total = total
        self._unit = unit
        self._done = self._before = done
        self._start = self._last = time.monotonic()

    def advance(self, count: int = 1, note: str | None = None) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < LINE_INTERVAL_SECONDS and self._done < self._total:
            return
        self._last = now
        rate = (self._done - self._before) / max(now - self._start, 1e-9)
        left = (self._total - self._done) / max(rate, 1e-9)
        console.print(
            f"{self._title}: {self._done}/{self._total} {self._unit}, {rate:,.1f}/s, "
            f"{left:.0f} s left{'' if not note else ', ' + note}"
        )


@contextmanager
def track(title: str, total: int, unit: str = "clips", *, done: int = 0) -> Iterator[Track]:
    """Show the progress of `total` units of work named `unit` under `title`.

    `done` of them were done before: they count as progress, not in the rate.
    """
    if not console.is_terminal:
        yield _LineTrack(title, total, unit, done)
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total, completed=done, rate="", note="")
        yield _BarTrack(progress, task, unit)
