"""The hand-object renderer: classes, what each clip shows, determinism, files in SSv2's layout."""

from __future__ import annotations

import json
from dataclasses import replace

import av
import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.clips import read_annotations
from dsts_pipeline.stick import render_embedded
from dsts_pipeline.stick.rendering import encode_webm
from dsts_pipeline.stick.something import (
    clip_id,
    clip_states,
    draw_clip,
    plan_clip,
    render_clip,
)
from dsts_pipeline.stick.something_motion import (
    CLASS_NAMES,
    FLIP_PAIRS,
    TEMPLATES,
    flip_label,
    state_at,
)

SMALL = RenderSettings(
    renderer="stick_something",
    num_train=26,
    num_test=3,
    size_px=48,
    num_frames=6,
    difficulty=1.0,
    seed=7,
    num_workers=1,
)
NUMBER = {name: label for label, name in enumerate(CLASS_NAMES)}
VIDEOS = "20bn-something-something-v2"

# What differs within a pair: the look of things, the order of frames, the direction in the frame.
TWINS: dict[str, tuple[tuple[int, int], ...]] = {
    "direction": FLIP_PAIRS,
    "order": ((0, 4), (1, 23), (2, 3), (15, 18)),
    "detail": (
        (5, 8),  # does the object come along
        (6, 7),  # does the liquid run over the rim
        (6, 9),  # is there any liquid
        (6, 19),  # inside or beside
        (11, 13),  # is the hand in front of the object or behind it, as it moves
        (12, 14),
        (16, 17),  # on the other or beside it
        (10, 20),  # all the way round or back
    ),
}


def clips_of(name: str, count: int = 8):
    """Several clips of the class called `name`, mirrored ones among them."""
    return [draw_clip(5, "check", n, label=NUMBER[name], size_px=32) for n in range(count)]


def seen_x(clip, state) -> float:
    """Where the handled object is seen, left to right, whether or not the picture is mirrored."""
    x = state.actor.x - state.camera_x
    return -x if clip.mirrored else x


# ---- classes ----------------------------------------------------------------------------------


def test_classes_are_24_templates_in_alphabetical_order():
    assert len(set(TEMPLATES)) == len(CLASS_NAMES) == 24
    assert list(CLASS_NAMES) == sorted(CLASS_NAMES)
    assert all("[something]" in template for template in TEMPLATES)


def test_flip_pairs_are_the_classes_that_name_left_or_right():
    swap = {"left": "right", "right": "left"}
    for label, name in enumerate(CLASS_NAMES):
        mirrored = " ".join(swap.get(word, word) for word in name.split())
        assert CLASS_NAMES[flip_label(label)] == mirrored
    assert {c for pair in FLIP_PAIRS for c in pair} == {
        label for label, name in enumerate(CLASS_NAMES) if {"left", "right"} & set(name.split())
    }


def test_every_class_has_a_twin():
    assert {c for pairs in TWINS.values() for pair in pairs for c in pair} == set(range(24))


# ---- what is seen -----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["Pushing", "Pulling"])
@pytest.mark.parametrize(("words", "sign"), [("left to right", 1), ("right to left", -1)])
def test_dragged_objects_move_as_their_class_says(verb, words, sign):
    clips = clips_of(f"{verb} something from {words}")
    assert {clip.mirrored for clip in clips} == {True, False}
    for clip in clips:
        states = clip_states(clip)
        travel = seen_x(clip, states[-1]) - seen_x(clip, states[0])
        assert sign * travel > 0.3
        middle = state_at(clip.plan, 0.5)
        ahead = (middle.tips[0].x - middle.actor.x) * (-1 if clip.mirrored else 1) * sign
        assert (ahead > 0) == (verb == "Pulling")


@pytest.mark.parametrize(("word", "sign"), [("left", 1), ("right", -1)])
def test_a_camera_turned_left_sees_the_scene_move_right(word, sign):
    for clip in clips_of(f"Turning the camera {word} while filming something"):
        states = clip_states(clip)
        assert sign * (seen_x(clip, states[-1]) - seen_x(clip, states[0])) > 0.3
        assert not states[0].tips


def test_twins_in_order_are_each_other_backwards():
    for first, second in TWINS["order"]:
        plan = draw_clip(5, "check", 0, label=first, size_px=32).plan
        twin = replace(plan, label=second, start=1 - plan.end, end=1 - plan.start)
        for time in np.linspace(0, 1, 9):
            assert state_at(plan, time) == state_at(twin, 1 - time)


def test_only_a_real_grip_takes_the_object_along():
    for real, pretended in zip(
        clips_of("Picking something up"), clips_of("Pretending to pick something up"), strict=True
    ):
        for clip, rises in ((real, True), (pretended, False)):
            first, last = clip_states(clip)[0], clip_states(clip)[-1]
            assert (last.actor.y - first.actor.y > 0.2) == rises
            assert last.tips[0].y - state_at(clip.plan, clip.plan.start).tips[0].y > 0.2


def test_only_a_real_turn_ends_upside_down():
    for clip in clips_of("Turning something upside down"):
        assert abs(clip_states(clip)[-1].actor.angle) == pytest.approx(np.pi)
    for clip in clips_of("Pretending to turn something upside down"):
        angles = np.abs([state.actor.angle for state in clip_states(clip)])
        assert 0.4 < angles.max() < 1.1 and angles[-1] == pytest.approx(0, abs=1e-6)


def test_what_happens_to_the_liquid_decides_among_the_pourings():
    for clip in clips_of("Pouring something into something"):
        states = clip_states(clip)
        assert states[-1].level - states[0].level > 0.15 and states[-1].level < 0.8
        assert all(state.spill == (0, 0) for state in states)
    for clip in clips_of("Pouring something into something until it overflows"):
        assert clip_states(clip)[-1].level == 1 and min(clip_states(clip)[-1].spill) == 1
    missed = "Trying to pour something into something, but missing so it spills next to it"
    for clip in clips_of(missed):
        states = clip_states(clip)
        assert states[-1].level == states[0].level and sorted(states[-1].spill) == [0, 1]
    empty = "Pretending to pour something out of something, but something is empty"
    for clip in clips_of(empty):
        assert all(state.stream_x is None for state in clip_states(clip))


def test_put_onto_stands_on_the_other_and_put_next_to_beside_it():
    for clip in clips_of("Putting something onto something"):
        last = clip_states(clip)[-1]
        assert last.actor.y == pytest.approx(last.other.y + clip.plan.other.height)
        assert last.actor.x == pytest.approx(last.other.x)
    for clip in clips_of("Putting something next to something"):
        last = clip_states(clip)[-1]
        assert last.actor.y == pytest.approx(last.other.y)
        apart = abs(last.actor.x - last.other.x)
        assert apart > 0.5 * (clip.plan.actor.width + clip.plan.other.width)


@pytest.mark.parametrize("label", range(24))
def test_the_action_is_in_the_picture(label):
    for number in range(6):
        clip = draw_clip(9, "check", number, label=label, difficulty=1.0)
        for time in (0.5, 0.6):
            state = state_at(clip.plan, time)
            camera = clip.scene.offset + clip.scene.jitter.mean(0) + [state.camera_x, -0.06]
            middle = np.array([state.actor.x, state.actor.y + 0.5 * clip.plan.actor.height])
            assert np.abs((middle - camera) * clip.scene.zoom).max() < 0.5


def test_a_mirrored_clip_is_the_mirror_class_drawn_and_flipped():
    found = 0
    for number in range(8):
        clip = draw_clip(1, "check", number, label=11, size_px=48, num_frames=3)
        film = replace(clip.scene.film, noise=0 * clip.scene.film.noise)
        quiet = replace(clip, scene=replace(clip.scene, film=film))
        if clip.mirrored:
            found += 1
            assert (clip.label, clip.plan.label) == (11, 12)
            plain = render_clip(replace(quiet, mirrored=False))
            assert np.array_equal(render_clip(quiet), plain[:, :, ::-1])
        else:
            assert clip.plan.label == 11
    assert 0 < found < 8


# ---- determinism ------------------------------------------------------------------------------


def test_same_seed_same_pixels_and_other_streams_differ():
    def pixels(seed, split, index):
        return render_clip(draw_clip(seed, split, index, label=0, size_px=48, num_frames=4))

    assert np.array_equal(pixels(1, "train", 0), pixels(1, "train", 0))
    for other in ((2, "train", 0), (1, "test", 0), (1, "train", 1)):
        assert not np.array_equal(pixels(1, "train", 0), pixels(*other))


def test_a_planned_clip_is_the_one_that_is_drawn():
    for number in range(24):
        drawn, planned = draw_clip(3, "train", number), plan_clip(3, "train", number)
        assert (drawn.plan, drawn.mirrored) == (planned.plan, planned.mirrored)


def test_webm_encoding_is_deterministic():
    for number in range(20):
        frames = render_clip(draw_clip(0, "train", number))
        assert encode_webm(frames) == encode_webm(frames)


# ---- files ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("something")
    assert render_embedded(root, SMALL) == 26 + 3 + 24
    return root


def test_layout_is_that_of_ssv2(root):
    labels = json.loads((root / "labels/labels.json").read_text())
    assert labels == {name: str(number) for number, name in enumerate(CLASS_NAMES)}
    train = json.loads((root / "labels/train.json").read_text())
    assert [set(item) for item in train] == [{"id", "label", "template", "placeholders"}] * 26
    assert json.loads((root / "labels/test.json").read_text())[0] == {"id": clip_id("test", 0)}
    for item in train:
        assert len(item["placeholders"]) == item["template"].count("[something]")
        assert item["label"][0].islower() and "[" not in item["label"]
        assert all(name in item["label"] for name in item["placeholders"])
    ids = {path.stem for path in (root / VIDEOS).glob("*.webm")}
    assert len(ids) == 53 and all(name.isdecimal() for name in ids)


def test_videos_are_vp9_and_show_what_was_drawn(root):
    with av.open(str(root / VIDEOS / f"{clip_id('validation', 2)}.webm")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "vp9" and stream.average_rate == 12
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    drawn = render_clip(draw_clip(7, "validation", 2, size_px=48, num_frames=6))
    assert np.stack(frames).shape == drawn.shape
    assert np.abs(np.stack(frames).astype(int) - drawn).mean() < 12


def test_the_reader_of_ssv2_reads_it(root):
    annotations = read_annotations("ssv2", root)
    assert annotations.class_names == CLASS_NAMES
    assert [(clip.label, clip.split) for clip in annotations.clips] == [
        *((n % 24, "train") for n in range(26)),
        *((n, "test") for n in range(3)),
    ]
    assert len(annotations.unlabelled) == 24
    assert all((root / clip.path).is_file() for clip in annotations.clips)


def test_a_second_rendering_adds_only_what_is_missing_with_the_same_bytes(root):
    lost = root / VIDEOS / f"{clip_id('train', 3)}.webm"
    content = lost.read_bytes()
    lost.unlink()
    assert render_embedded(root, SMALL.model_copy(update={"num_workers": 2})) == 1
    assert lost.read_bytes() == content


def test_another_recipe_replaces_all_clips(tmp_path):
    render_embedded(tmp_path, SMALL.model_copy(update={"num_train": 2, "num_test": 1}))
    other = SMALL.model_copy(update={"num_train": 1, "num_test": 1, "seed": 8})
    assert render_embedded(tmp_path, other) == 26
    assert len(list((tmp_path / VIDEOS).iterdir())) == 26


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match=r"is not empty and holds no stick_something\.json"):
        render_embedded(tmp_path, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"
