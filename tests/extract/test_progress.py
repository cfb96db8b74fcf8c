"""What a run tells while it goes on: a line a minute, a bar on a terminal, a table at the end."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from dsts_pipeline.extract import progress
from dsts_pipeline.extract.progress import (
    ExtractionSummary,
    Means,
    advise,
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


ON_GPU = Means(4, is_auto=False, num_cores=16, device="cuda", precision="float32")


@pytest.mark.parametrize(
    ("forward", "wait", "changes", "told"),
    [
        (0.38, 0.62, {}, "the backbone waits for decoding 62% of the time: more backbone.num_dec"),
        (0.38, 0.62, {"num_decode_workers": 0}, "62% of the time: set backbone.num_decode_workers"),
        (0.38, 0.62, {"num_decode_workers": 15}, "15 of 16 cores decode; smaller files"),
        (0.38, 0.62, {"is_auto": True}, "4 of 16 cores decode; smaller files"),
        (0.97, 0.9, {}, "decoding waits for the backbone: backbone.precision=bfloat16"),
        (0.97, 0.9, {"precision": "bfloat16"}, "decoding waits for the backbone: more GPUs"),
        (0.9, 0.1, {"device": "cpu"}, "decoding waits for the backbone: a GPU (backbone.device)"),
        (0.75, 0.15, {}, ""),  # neither is much
        (0.7, 0.05, {}, ""),
    ],
)
def test_what_waits_for_what_is_told_with_what_would_change_it(forward, wait, changes, told):
    text = advise(forward, wait, replace(ON_GPU, **changes))
    assert told in text if told else text == ""


def test_the_line_gives_advice_by_what_came_after_the_first_batch(clock, monkeypatch):
    text = _told(monkeypatch, is_terminal=False)
    with show_progress("extract small", 400) as shown:
        for number in range(4):
            # The first batch waits 60 s for processes to start, then nothing waits.
            clock.now = 60.0 + 20.0 * number
            shown.advance(
                100,
                num_failed=0,
                forward_seconds=15.0 * number,
                decode_wait_seconds=60.0 + 2.0 * number,
                means=ON_GPU,
            )
    assert "waits" not in text.getvalue()
    with show_progress("extract small", 300) as shown:
        for number in range(3):
            clock.now += 35.0
            shown.advance(
                100,
                num_failed=0,
                forward_seconds=7.0 * number,
                decode_wait_seconds=28.0 * number,
                means=ON_GPU,
            )
    assert "failed; the backbone waits for decoding 80% of the time: more" in text.getvalue()


def test_the_table_ends_with_the_advice(monkeypatch):
    text = _told(monkeypatch, is_terminal=False)
    summary = ExtractionSummary(8, (), 9.0, 1.0, 8.0, 1, num_decode_workers=3, advice="do this")
    progress.console.print(summarize("s", {"stored": 8, "failed": 0}, summary))
    told = " ".join(text.getvalue().split())
    assert "decode processes │ 3" in told and "to be faster │ do this" in told
