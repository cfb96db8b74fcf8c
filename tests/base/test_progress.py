"""Progress without a terminal: few lines, the last one always."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dsts_pipeline.base import progress


@pytest.fixture
def stream(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(progress, "console", Console(file=stream, width=120))
    return stream


def test_a_line_at_the_end_and_none_before(stream):
    with progress.track("extract", 4) as track:
        for _ in range(4):
            track.advance(1, note="shard 0")
    assert len(stream.getvalue().splitlines()) == 1
    assert "extract: 4/4 clips" in stream.getvalue()
    assert "shard 0" in stream.getvalue()


def test_a_bar_on_a_terminal(monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr(progress, "console", console)
    with progress.track("extract", 2) as track:
        track.advance()
        track.advance(note="done")
    assert "2/2" in stream.getvalue()


def test_units_of_before_count_as_progress_but_not_in_the_rate(stream, monkeypatch):
    clock = iter([100.0, 110.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.track("train", 400, done=300) as track:
        track.advance(100)
    assert "train: 400/400 clips, 10.0/s, 0 s left" in stream.getvalue()
