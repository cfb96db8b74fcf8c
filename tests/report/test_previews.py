"""Previews: strips of frames, each clip once, no more than the page may hold."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from dsts_pipeline.report.previews import NUM_FRAMES, Previews, Seen, make_strip
from tests.report.report_example import make_frames


def open_uri(uri):
    kind, content = uri.split(",")
    assert kind == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((1, 96, 96, 3), (48, 48)),
        ((40, 40, 60, 3), (48, 32)),  # keeps its shape, without bars
        ((40, 20, 30, 3), (30, 20)),  # is not enlarged
        ((4, 50, 400, 3), (48, 27)),  # loses its ends
        ((4, 400, 50, 3), (32, 48)),
    ],
)
def test_strip_holds_its_frames_side_by_side_in_their_own_shape(shape, size):
    strip = make_strip(np.full(shape, 200, np.uint8), 48)
    picture = open_uri(strip.uri)
    assert picture.size == (size[0] * NUM_FRAMES, size[1])
    assert strip.ratio == pytest.approx(size[0] / size[1], abs=1e-3)
    assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - 200).max() < 12


def test_attention_lets_light_fall_on_what_was_taken():
    attention = np.zeros((4, 2, 2))
    attention[0, 0, 1] = 0.75  # the first quarter of the time, above, to the right
    attention[3, 1, 0] = 0.25
    seen = Seen(np.zeros((16, 32, 32, 3), np.uint8), attention)
    assert seen.steps == [0.75, 0, 0, 0.25]
    alpha = np.asarray(open_uri(seen.shade()).convert("RGBA"))[:, :, 3]
    frames = alpha.reshape(16, NUM_FRAMES, 16).transpose(1, 0, 2)
    assert seen.shares == [0.75] * 3 + [0] * 6 + [0.25] * 3
    darkest = 0.5 * 255  # the frame is to be seen through it
    assert frames[0][:4, 12:].max() < 20 < 110 < frames[0][12:, :4].min()
    assert frames[5].min() > 110 and frames.max() < darkest + 12
    third = darkest * (1 - 1 / 3)
    assert frames[11][14, 1] == pytest.approx(third, abs=12)


def test_large_previews_show_what_the_model_saw_and_a_clip_is_read_once():
    read = []

    def seen_of(clip):
        read.append(clip)
        return Seen(make_frames(clip)[:, :64, :64], np.full((4, 2, 2), 1 / 16))

    previews = Previews("abc", make_frames, seen_of=seen_of)
    large = previews.large(1)
    assert (
        large.shade
        and len(large.shares) == NUM_FRAMES
        and previews.of(1) is previews.large(1) is large
    )
    assert not previews.of(0).shade and read == ["b"] and previews.shades == {0: large.shade}
    assert not Previews("abc", make_frames).large(1).shade


def test_frames_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="expected uint8"):
        make_strip(np.zeros((4, 8, 8, 3)), 48)


def test_a_clip_is_rendered_once_and_has_a_number():
    read = []
    previews = Previews("abc", lambda clip: (read.append(clip), make_frames(clip))[1])
    assert previews.of(1) is previews.of(1) and previews.of(0).strip == 1
    assert read == ["b", "a"] and previews.strip_numbers() == {"b": 0, "a": 1}


def test_what_exceeds_the_limit_stays_without_a_picture():
    one = len(make_strip(make_frames("a"), 160).uri)
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
