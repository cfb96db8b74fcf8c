"""What a run tells while it goes on: a line a minute, a bar on a terminal, a table at the end."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dsts_pipeline.extract import progress
from dsts_pipeline.extract.progress import (
    ExtractionSummary,
    format_duration,
    show_progress,
    summarize,
)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("dsts_pipeline.extract.progress.time.monotonic", clock)
    return clock


def _told(monkeypatch, *, is_terminal: bool) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=is_terminal, width=160, highlight=False)
    monkeypatch.setattr(progress, "console", console)
    return text


def _run(clock: Clock) -> None:
    with show_progress("extract small", 1000) as shown:
        for number in range(1, 11):
            clock.now = 12.0 * number
            shown.advance(
                50 if number < 10 else 550,
                num_failed=number // 5,
                forward_seconds=9.0 * number,
                decode_wait_seconds=1.2 * number,
            )


def test_without_a_terminal_a_line_comes_once_a_minute_and_at_the_end(clock, monkeypatch):
    text = _told(monkeypatch, is_terminal=False)
    _run(clock)
    first, last = text.getvalue().splitlines()
    assert first == (
        "extract small: 250/1,000 clips, 4.2 clips/s, backbone 75%, waiting for decoders 10%, "
        "3 min left, 1 failed"
    )
    assert last.startswith("extract small: 1,000/1,000 clips, 8.3 clips/s")
    assert last.endswith("0 s left, 2 failed")


def test_on_a_terminal_the_same_stands_beside_a_bar(monkeypatch):
    text = _told(monkeypatch, is_terminal=True)
    with show_progress("extract small", 10) as shown:
        shown.advance(10, num_failed=3, forward_seconds=0.0, decode_wait_seconds=0.0)
    assert "10/10" in text.getvalue()
    assert "clips/s, backbone 0%" in text.getvalue() and "3 failed" in text.getvalue()


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7200, "2.0 h"), (200_000, "2.3 days")],
)
def test_durations_are_told_in_a_fitting_unit(seconds, told):
    assert format_duration(seconds) == told


def test_the_table_at_the_end_says_where_the_time_went(monkeypatch):
    text = _told(monkeypatch, is_terminal=False)
    summary = ExtractionSummary(1000, (), 100.0, 80.0, 10.0, num_shards=8)
    table = summarize("stores/abc", {"stored": 990, "failed": 10}, summary)
    progress.console.print(table)
    told = " ".join(text.getvalue().split())
    assert "1,000 maps in 8 shards, 100 s" in told and "10.0 clips/s" in told
    assert "80% of the time at work" in told and "990 stored, 10 failed" in told
    nothing = summarize("s", {"stored": 1, "failed": 0}, ExtractionSummary(0, (), 0.1, 0.0, 0.0))
    progress.console.print(nothing)
    assert "0 maps in 0 shards" in text.getvalue()
