"""Which frames belong to a clip: the `end_frame` question, times, and cut ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsts_pipeline.clips.annotation import AnnotatedClip
from dsts_pipeline.clips.frame_ranges import decide_end_frame, frames_of


def annotated(**changes) -> AnnotatedClip:
    return AnnotatedClip("a", "a.mp4", 0, "train", **changes)


def decide(ends_and_counts, setting="auto"):
    return decide_end_frame(
        [(annotated(start_frame=0, end_frame=end), n) for end, n in ends_and_counts], setting
    )


def test_the_frame_counts_decide():
    exclusive = decide([(90, 90), (70, 70), (69, 70), (30, 90)])
    assert (exclusive.rule, exclusive.num_at_count, exclusive.num_at_last) == ("exclusive", 2, 1)
    inclusive = decide([(89, 90), (69, 70), (70, 70), (99, 90)])
    assert (inclusive.rule, inclusive.num_at_last, inclusive.num_beyond) == ("inclusive", 2, 1)
    assert "inclusive (auto): of 4 clips 1 end at their video's frame count" in str(inclusive)


def test_without_evidence_it_is_exclusive_and_a_setting_needs_none():
    assert decide([]).rule == decide([(30, 90)]).rule == decide([(90, 90), (89, 90)]).rule
    assert decide([]).rule == "exclusive"
    assert decide([(90, 90)], "inclusive").rule == "inclusive"
    assert decide([(89, 90)], "exclusive").rule == "exclusive"


def test_clips_of_the_whole_file_say_nothing():
    assert decide([(None, 90)]).num_annotated == 0


@pytest.mark.parametrize(
    ("changes", "rule", "expected"),
    [
        ({}, "exclusive", (0, 90)),
        ({}, "inclusive", (0, 90)),
        ({"start_frame": 10, "end_frame": 20}, "exclusive", (10, 20)),
        ({"start_frame": 10, "end_frame": 20}, "inclusive", (10, 21)),
        ({"start_frame": 10}, "inclusive", (10, 90)),
        ({"end_frame": 90}, "inclusive", (0, 90)),
        ({"end_frame": 400}, "exclusive", (0, 90)),
        ({"start_seconds": 1.0, "end_seconds": 2.0}, "inclusive", (30, 60)),
        ({"start_seconds": 0.01}, "exclusive", (1, 90)),
        ({"end_seconds": 0.05}, "exclusive", (0, 2)),
        ({"end_seconds": 0.067}, "exclusive", (0, 2)),  # 2 / 30, rounded up to milliseconds
        ({"start_seconds": 0.333}, "exclusive", (10, 90)),  # 10 / 30, rounded down
    ],
)
def test_ranges(changes, rule, expected):
    assert frames_of(annotated(**changes), num_frames=90, fps=30.0, rule=rule) == expected


@given(st.integers(0, 5000), st.integers(1, 5000), st.sampled_from([12.0, 25.0, 30000 / 1001]))
def test_times_of_frames_give_these_frames(start, length, fps):
    times = {
        "start_seconds": round(start / fps, 4),
        "end_seconds": round((start + length) / fps, 4),
    }
    found = frames_of(annotated(**times), num_frames=10**6, fps=fps, rule="exclusive")
    assert found == (start, start + length)


def test_seconds_without_a_frame_rate_are_refused():
    with pytest.raises(ValueError, match="does not tell its frame rate"):
        frames_of(annotated(end_seconds=1.0), num_frames=9, fps=0.0, rule="exclusive")
