"""Which frames belong to a clip: the `end_frame` question, times, and cut ends."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsts_pipeline.clips.annotation import AnnotatedClip
from dsts_pipeline.clips.index import decide_end_frame, frames_of
from dsts_pipeline.clips.probe import VideoInfo


def annotated(**changes) -> AnnotatedClip:
    return AnnotatedClip("a", "a.mp4", 0, "train", **changes)


def video(num_frames, fps, times_seconds=()) -> VideoInfo:
    return VideoInfo(num_frames, fps, 64, 64, "h264", times_seconds=tuple(times_seconds))


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
    assert frames_of(annotated(**changes), video(90, 30.0), rule=rule) == expected


@given(st.integers(0, 5000), st.integers(1, 5000), st.sampled_from([12.0, 25.0, 30000 / 1001]))
def test_times_of_frames_give_these_frames(start, length, fps):
    times = {
        "start_seconds": round(start / fps, 4),
        "end_seconds": round((start + length) / fps, 4),
    }
    found = frames_of(annotated(**times), video(10**6, fps), rule="exclusive")
    assert found == (start, start + length)


def test_seconds_without_a_frame_rate_are_refused():
    with pytest.raises(ValueError, match="does not tell its frame rate"):
        frames_of(annotated(end_seconds=1.0), video(9, 0.0), rule="exclusive")


@pytest.mark.parametrize("fps", [0.0, 250 / 13])
def test_where_the_rate_varies_times_of_frames_decide_not_the_average_rate(fps):
    # 100 frames a 25th of a second long, then 100 three times as long
    times = [number / 25 if number < 100 else 4 + (number - 100) * 0.12 for number in range(200)]
    of = video(200, fps, times)
    assert frames_of(annotated(start_seconds=2.0, end_seconds=6.4), of, rule="exclusive") == (
        50,
        120,
    )
    assert frames_of(annotated(start_seconds=15.87), of, rule="exclusive") == (199, 200)
    assert frames_of(annotated(start_seconds=99.0), of, rule="exclusive") == (200, 200)


@given(st.data())
def test_times_of_varying_frames_give_these_frames(data):
    steps = data.draw(st.lists(st.integers(1, 6), min_size=3, max_size=60))
    times = [round(sum(steps[:n]) / 30, 3) for n in range(len(steps))]
    start, end = sorted(data.draw(st.sets(st.integers(0, len(steps) - 1), min_size=2, max_size=2)))
    found = frames_of(
        annotated(start_seconds=times[start], end_seconds=times[end]),
        video(len(times), 30.0, times),
        rule="exclusive",
    )
    assert found == (start, end)
