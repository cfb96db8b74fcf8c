"""Previews: strips of frames, each clip once, no more than the page may hold."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dsts_pipeline.report.previews import NUM_FRAMES, Previews, strip_uri
from tests.report.report_example import make_frames


@pytest.mark.parametrize("shape", [(1, 96, 96, 3), (40, 20, 60, 3)])
def test_strip_holds_its_frames_side_by_side(shape):
    frames = np.full(shape, 200, np.uint8)
    kind, content = strip_uri(frames, 48).split(",")
    assert kind == "data:image/webp;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert picture.size == (48 * NUM_FRAMES, 48)
    middle = np.asarray(picture.convert("RGB"))[24, 24::48]
    assert np.abs(middle.astype(int) - 200).max() < 12


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        strip_uri(np.zeros((4, 8, 8, 3)), 48)


def test_a_clip_is_rendered_once_and_has_a_number():
    read = []
    previews = Previews("abc", lambda clip: (read.append(clip), make_frames(clip))[1])
    assert previews.of(1) is previews.of(1) and previews.of(0).strip == 1
    assert read == ["b", "a"] and previews.strip_numbers() == {"b": 0, "a": 1}


def test_what_exceeds_the_limit_stays_without_a_picture():
    one = len(strip_uri(make_frames("a"), 72))
    previews = Previews("abc", make_frames, max_bytes=one)
    assert not previews.full and previews.of(0).strip == 0
    assert previews.full and previews.of(1).strip is None
    assert previews.of(1).problem == "left out to keep the page small"


def test_without_videos_there_is_a_reason_in_each_place():
    previews = Previews("abc", None)
    assert previews.full and previews.of(2).problem == "the videos are not at hand"


def test_a_video_that_breaks_its_decoder_is_a_reason_in_its_place():
    def frames_of(clip):
        return make_frames(clip) if clip != "b" else {}["no such stream"]

    previews = Previews("abc", frames_of)
    assert previews.of(1).problem == "decoding failed: KeyError: 'no such stream'"
    assert previews.of(2).strip == 0
