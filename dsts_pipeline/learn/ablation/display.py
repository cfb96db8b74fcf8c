"""How far an ablation is: on a terminal a table that moves, else a line a minute.

Enters: the status of every training. Leaves: loss and accuracy of each variant (means over its
seeds), the epoch, the share of the work that is done and the time left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from dsts_pipeline.base.progress import console
from dsts_pipeline.learn.ablation.member import Status

LINE_INTERVAL_SECONDS = 60.0
MAX_LIVE_ROWS = 40


class Display:
    """Keeps the last status of every training; any number of processes may tell theirs."""

    def __init__(self, num_runs: int, show: Callable[[Display], None]) -> None:
        self.num_runs, self._show = num_runs, show
        self.statuses: dict[tuple[str, int], Status] = {}
        self.start = time.monotonic()
        self._done_before: dict[tuple[str, int], float] = {}

    def tell(self, statuses: Sequence[Status]) -> None:
        """Take in what trainings say of themselves."""
        for status in statuses:
            key = status.name, status.seed
            self._done_before.setdefault(key, status.done)
            self.statuses[key] = status
        self._show(self)

    @property
    def done(self) -> float:
        """Share of the work that is done, 0 to 1."""
        ends = (1.0 if s.failure else s.done for s in self.statuses.values())
        return sum(ends) / max(self.num_runs, 1)

    def time_left(self) -> str:
        """Such as "12 min left"; by the pace of this run, without what was done before."""
        made = self.done - sum(self._done_before.values()) / max(self.num_runs, 1)
        if made <= 0:
            return "time left not known yet"
        seconds = (time.monotonic() - self.start) * (1.0 - self.done) / made
        return f"{seconds / 60:.0f} min left" if seconds > 90 else f"{seconds:.0f} s left"

    def by_variant(self) -> dict[str, list[Status]]:
        """The statuses of each variant, in the order of their first appearance."""
        found: dict[str, list[Status]] = {}
        for status in self.statuses.values():
            found.setdefault(status.name, []).append(status)
        return found


def describe(name: str, statuses: Sequence[Status]) -> str:
    """One variant in a few words: means over its seeds."""
    failed = sum(status.failure is not None for status in statuses)
    going = [status for status in statuses if status.failure is None] or list(statuses)
    text = f"{name} loss {_mean([s.loss for s in going]):.2f}"
    text += f" acc {100 * _mean([s.accuracy for s in going]):.0f} %"
    held = [s.heldout_accuracy for s in going if s.heldout_accuracy is not None]
    if held:
        text += f" held-out {100 * _mean(held):.0f} %"
    return text + (f" ({failed} diverged)" if failed else "")


def live_table(display: Display) -> Table:
    """A row per variant."""
    table = Table(title="Ablation: training", title_justify="left")
    for heading in ("variant", "seeds", "epoch", "loss", "accuracy", "held-out", "state"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for name, statuses in list(display.by_variant().items())[:MAX_LIVE_ROWS]:
        held = [s.heldout_accuracy for s in statuses if s.heldout_accuracy is not None]
        failed = sum(s.failure is not None for s in statuses)
        finished = sum(s.finished for s in statuses)
        state = f"{failed} diverged" if failed else f"{finished} done" if finished else "trains"
        epochs = sorted({s.epoch for s in statuses})
        table.add_row(
            name,
            str(len(statuses)),
            f"{'-'.join(map(str, epochs))}/{statuses[0].num_epochs}",
            f"{_mean([s.loss for s in statuses]):.3f}",
            f"{100 * _mean([s.accuracy for s in statuses]):.1f} %",
            f"{100 * _mean(held):.1f} %" if held else "-",
            state,
        )
    table.add_section()
    bar = ProgressBar(total=1.0, completed=display.done, width=20)
    table.add_row(bar, "", "", "", "", f"{100 * display.done:.0f} %", display.time_left())
    return table


@contextmanager
def show_ablation(num_runs: int) -> Iterator[Display]:
    """Show the training of `num_runs` heads."""
    if not console.is_terminal:
        yield Display(num_runs, _Lines())
        return
    with Live(console=console, refresh_per_second=2) as live:
        yield Display(num_runs, lambda display: live.update(live_table(display)))


class _Lines:
    def __init__(self) -> None:
        self._last, self._ended = time.monotonic(), False

    def __call__(self, display: Display) -> None:
        now = time.monotonic()
        ends = all(s.finished or s.failure for s in display.statuses.values())
        ends = ends and len(display.statuses) == display.num_runs
        if (now - self._last < LINE_INTERVAL_SECONDS and not ends) or self._ended:
            return
        self._last, self._ended = now, ends
        known = display.by_variant()
        console.print(
            f"ablate: {100 * display.done:.0f} % of {display.num_runs} trainings, "
            f"{display.time_left()}; " + "; ".join(describe(n, s) for n, s in known.items()),
            soft_wrap=True,
        )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
