"""The renderer: classes, determinism, what the pose says, files in Diving48's layout."""

from __future__ import annotations

import json

import av
import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import render_embedded
from dsts_pipeline.stick.diving import (
    MIRROR_SIGNS,
    TARGET_NAMES,
    clip_name,
    clip_poses,
    draw_dive,
    pose_targets,
    render_clip,
)
from dsts_pipeline.stick.diving_motion import VOCABULARY, describe_class, pose_at
from dsts_pipeline.stick.rendering import encode_mp4

SMALL = RenderSettings(
    num_train=5, num_test=3, size_px=48, num_frames=6, difficulty=1.0, seed=7, num_workers=1
)


def test_vocabulary_has_48_different_dives_of_four_attributes():
    assert len(VOCABULARY) == len(set(VOCABULARY)) == 48
    assert all(len(entry) == 4 for entry in VOCABULARY)
    assert {entry[0] for entry in VOCABULARY} == {"Forward", "Back", "Reverse", "Inward"}


@pytest.mark.parametrize(
    ("takeoff", "facing", "spin"),
    [
        ("Forward", 1, 1),
        ("Back", -1, 1),
        ("Reverse", 1, -1),
        ("Inward", -1, -1),
    ],
)
def test_takeoff_decides_facing_and_spin(takeoff, facing, spin):
    dives = [describe_class(n) for n, entry in enumerate(VOCABULARY) if entry[0] == takeoff]
    assert {(dive.facing, dive.spin) for dive in dives} == {(facing, spin)}


@pytest.mark.parametrize("label", range(48))
def test_a_dive_turns_and_twists_as_its_class_says(label):
    dive = draw_dive(3, "check", label, label=label, size_px=32)
    plan, expected = dive.plan, describe_class(label)
    start, end = pose_at(plan, 0.0), pose_at(plan, plan.takeoff_time + plan.flight_time)
    turns = -(end.somersault - start.somersault) / (2 * np.pi) * expected.spin
    assert turns == pytest.approx(expected.somersaults, abs=0.04)
    assert abs(end.twist) / (2 * np.pi) == pytest.approx(expected.twists, abs=1e-9)
    middle = pose_at(plan, plan.takeoff_time + 0.5 * plan.flight_time)
    assert (middle.hip > 1.2) == (expected.position in ("PIKE", "TUCK"))
    assert (middle.knee > 1.2) == (expected.position == "TUCK")


def test_no_frame_turns_half_a_circle_or_more():
    """Else the direction of the spin could not be told from the frames."""
    for number in range(96):
        somersaults = [pose.somersault for pose in clip_poses(draw_dive(1, "check", number))]
        twists = [pose.twist for pose in clip_poses(draw_dive(1, "check", number))]
        assert np.abs(np.diff(somersaults)).max() < 0.8 * np.pi
        assert np.abs(np.diff(twists)).max() < 0.8 * np.pi


def test_same_seed_same_pixels_and_other_streams_differ():
    def pixels(seed, split, index):
        return render_clip(draw_dive(seed, split, index, label=0, size_px=48, num_frames=4))

    assert np.array_equal(pixels(1, "train", 0), pixels(1, "train", 0))
    for other in ((2, "train", 0), (1, "test", 0), (1, "train", 1)):
        assert not np.array_equal(pixels(1, "train", 0), pixels(*other))


def test_difficulty_zero_is_clean_and_the_diver_stays_in_the_picture():
    dive = draw_dive(0, "train", 4, difficulty=0.0)
    frames = render_clip(dive).astype(int)
    assert frames.shape == (16, 96, 96, 3)
    chest = np.array(dive.scene.colours["chest"])
    near = (np.abs(frames[:10] - chest).sum(-1) < 90).sum((1, 2))
    assert (near > 5).all()


def test_targets_are_unit_vectors_and_mirroring_flips_their_x():
    dive = draw_dive(0, "train", 9)
    targets = pose_targets(dive)
    assert targets.shape == (16, len(TARGET_NAMES)) and targets.dtype == np.float32
    for first in (0, 3, 6):
        lengths = np.linalg.norm(targets[:, first : first + 3], axis=1)
        np.testing.assert_allclose(lengths, 1, rtol=1e-5)
    assert [n for n, s in zip(TARGET_NAMES, MIRROR_SIGNS, strict=True) if s < 0] == [
        "axis_x",
        "front_x",
        "right_x",
        "spin_rate",
    ]


def test_rendering_writes_diving48_layout(tmp_path):
    assert render_embedded(tmp_path, SMALL) == 8
    vocabulary = json.loads((tmp_path / "Diving48_vocab.json").read_text())
    assert [tuple(entry) for entry in vocabulary] == list(VOCABULARY)
    train = json.loads((tmp_path / "Diving48_V2_train.json").read_text())
    assert train[1] == {
        "vid_name": "stick_train_00001",
        "label": 1,
        "start_frame": 0,
        "end_frame": 6,
    }
    with av.open(str(tmp_path / "rgb" / "stick_test_00002.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.codec_context.name == "h264"
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(stream)]
    assert len(frames) == 6 and frames[0].shape == (48, 48, 3)
    drawn = render_clip(draw_dive(7, "test", 2, size_px=48, num_frames=6))
    assert np.abs(np.stack(frames).astype(int) - drawn).mean() < 12


def test_a_second_rendering_adds_only_what_is_missing_with_the_same_bytes(tmp_path):
    render_embedded(tmp_path, SMALL)
    lost = tmp_path / "rgb" / f"{clip_name('train', 3)}.mp4"
    content, kept = lost.read_bytes(), (tmp_path / "rgb" / f"{clip_name('train', 2)}.mp4").stat()
    lost.unlink()
    assert render_embedded(tmp_path, SMALL.model_copy(update={"num_workers": 2})) == 1
    assert lost.read_bytes() == content
    assert (tmp_path / "rgb" / f"{clip_name('train', 2)}.mp4").stat().st_mtime == kept.st_mtime


def test_another_recipe_replaces_all_clips(tmp_path):
    render_embedded(tmp_path, SMALL)
    other = SMALL.model_copy(update={"num_train": 2, "num_test": 1, "seed": 8})
    assert render_embedded(tmp_path, other) == 3
    assert len(list((tmp_path / "rgb").iterdir())) == 3


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="is not empty and holds no stick_diving.json"):
        render_embedded(tmp_path, SMALL)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_encoding_is_deterministic():
    """Long and noisy enough that x264's default rounding would differ between calls."""
    for number in range(6):
        frames = render_clip(draw_dive(0, "train", number, num_frames=16, difficulty=1.5))
        assert len({encode_mp4(frames) for _ in range(4)}) == 1
