"""Groups of the embedded data sets: what their clips share; without them nothing changes."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.settings import DatasetSettings, RenderSettings
from dsts_pipeline.clips import read_annotations
from dsts_pipeline.clips.prepare import prepare_clips
from dsts_pipeline.stick import RENDERERS, diving, render_embedded, something
from dsts_pipeline.stick.groups import WITHIN, Camera, by_habit, draw_camera, group_of
from dsts_pipeline.stick.sheet import draw_sheet_of_groups
from dsts_pipeline.stick.something_motion import state_at

NAMES = sorted(RENDERERS)
FORMATS = {"stick_diving": "diving48", "stick_something": "ssv2"}
TEST = {"stick_diving": "test", "stick_something": "validation"}
SIZES = {"num_train": 26, "num_test": 5, "size_px": 48, "num_frames": 6, "seed": 7}


def settings_of(name: str, **changes) -> RenderSettings:
    return RenderSettings(renderer=name, num_workers=1, **SIZES | changes)


def draw(name: str, number: int, group: int, split: str = "train", **options):
    options = {"size_px": 48, "num_frames": 6} | options
    return RENDERERS[name].draw(3, split, number, group=group, **options)


# ---- without groups: of before there were any ----------------------------------------------------

DRAWN = {
    "stick_diving": "3c39e4a32bc4aa4e41cb1a64a573552cb488d2b8e320bd9710182377e9828b48",
    "stick_something": "4003f6c1026390eee223015b8d5f1fd2a3d7beb6617b0a64761573aca596bcc1",
}
FOLDERS = {
    "stick_diving": "26001e6eb6197fd89f8f28d1cc7ecb82cf5b96b50fcf63c38227b2f606003e9c",
    "stick_something": "418f6acd1cbce7f2f1f89718a29ff323314f60454b1ab4ddbccff2c686dc75ba",
}


@pytest.mark.parametrize("name", NAMES)
def test_without_groups_frames_and_targets_are_what_they_were(name):
    renderer = RENDERERS[name]
    digest = hashlib.sha256()
    for number in range(len(renderer.class_names)):
        clip = renderer.draw(3, "train", number, size_px=48, num_frames=6, difficulty=1.5)
        digest.update(renderer.render(clip).tobytes())
        digest.update(renderer.targets(clip).tobytes())
    assert digest.hexdigest() == DRAWN[name]


@pytest.mark.parametrize("name", NAMES)
def test_without_groups_names_annotations_and_recipe_are_what_they_were(name, tmp_path):
    render_embedded(tmp_path, settings_of(name))
    digest = hashlib.sha256()
    for path in sorted(tmp_path.rglob("*")):
        if path.is_file():
            digest.update(str(path.relative_to(tmp_path)).encode())
            digest.update(path.read_bytes() if path.suffix == ".json" else b"")
    assert digest.hexdigest() == FOLDERS[name]


# ---- which clip is of which group ----------------------------------------------------------------


@pytest.mark.parametrize(("classes", "groups"), [(48, 7), (48, 10), (24, 12), (24, 36), (5, 1)])
def test_every_group_has_every_class_equally_often(classes, groups):
    found = [(n % classes, group_of(n, classes, groups)) for n in range(classes * groups)]
    assert len(set(found)) == len(found)
    assert [group for _, group in found[:groups]] == list(range(groups))
    counts = Counter(group for _, group in found[: 3 * groups + groups // 2])
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"num_groups": 27}, "num_groups is 27, with 26 clips in train and 5 in test"),
        ({"num_groups": 6}, "expected at most 5, a clip for each group"),
        ({"num_groups": -1}, "greater than or equal to 0"),
        ({"num_groups": 2.5}, "valid integer"),
    ],
)
def test_more_groups_than_clips_are_refused(changes, found):
    with pytest.raises(ValidationError, match=found):
        settings_of("stick_diving", **changes)


# ---- what a group is -----------------------------------------------------------------------------


def shared_of(name: str, clip) -> list:
    """What clips of one group have in common, first what has many values."""
    scene = clip.scene
    looks = [
        np.asarray(getattr(scene.film.camera, field.name)).tobytes() for field in fields(Camera)
    ]
    looks.append(scene.background.tobytes())
    if name == "stick_diving":
        body = [scene.body, scene.camera_pitch, scene.board_thickness, scene.tower_edge]
        return [*looks, *body, scene.mirrored]
    plan = clip.plan
    looks += [scene.table, scene.table_edge, plan.hand_size, plan.pace, plan.tremor]
    return [*looks, scene.clutter, clip.mirrored, plan.side, plan.root[0]]


FEW_VALUES = {"stick_diving": 1, "stick_something": 4}


@pytest.mark.parametrize("name", NAMES)
def test_a_group_is_constant_over_its_clips_and_no_two_are_alike(name):
    groups = []
    for split in ("train", TEST[name]):
        for group in range(6):
            clips = [draw(name, number, group, split) for number in (group, 50, 51)]
            first, *others = (shared_of(name, clip) for clip in clips)
            assert all(other == first for other in others)
            groups.append(first)
    for values in list(zip(*groups, strict=True))[: -FEW_VALUES[name]]:
        assert len({str(value) for value in values}) == len(groups)


@pytest.mark.parametrize("name", NAMES)
def test_clips_of_a_group_differ_and_each_is_drawn_again_alike(name):
    renderer = RENDERERS[name]
    frames = [renderer.render(draw(name, number, 2, label=4)) for number in (4, 4, 28)]
    assert np.array_equal(frames[0], frames[1]) and not np.array_equal(frames[0], frames[2])
    other = renderer.render(draw(name, 4, 3, label=4))
    within = np.abs(frames[0].astype(int) - frames[2]).mean()
    assert np.abs(frames[0].astype(int) - other).mean() > 1.3 * within


def test_motion_keeps_near_a_habit():
    lows = [by_habit(drawn, 2.0, 4.0, -0.5) for drawn in (2.0, 3.0, 4.0)]
    assert lows == [1.0 - WITHIN, 1.0, 1.0 + WITHIN]


def test_cameras_mirror_nothing_and_see_no_place_outside_the_picture():
    for seed in range(50):
        camera = draw_camera(np.random.default_rng(seed))
        assert np.linalg.det(camera.matrix) > 0
        assert np.abs(camera.matrix).sum(axis=1).max() <= 1 + 1e-12
        white = np.full((32, 32, 3), 200, np.uint8)
        plain = replace(camera, vignette=0.0, blur_px=0.0).see(white)
        assert len(np.unique(plain.reshape(-1, 3), axis=0)) == 1  # no dark corner


def test_no_dive_of_a_group_turns_half_a_circle_between_frames():
    for group in range(24):
        for label in (5, 7, 8, 11, 20):
            poses = diving.clip_poses(
                draw("stick_diving", label, group, label=label, num_frames=16)
            )
            for before, after in pairwise(poses):
                assert abs(after.somersault - before.somersault) < 0.8 * np.pi
                assert abs(after.twist - before.twist) < 0.8 * np.pi


@pytest.mark.parametrize("group", range(12))
def test_actions_of_a_group_are_in_the_picture(group):
    for label in range(24):
        clip = draw("stick_something", label, group, label=label, size_px=32)
        scene = clip.scene
        for time in (0.5, 0.6):
            state = state_at(clip.plan, time)
            camera = scene.offset + scene.jitter.mean(0) + [state.camera_x, -0.06]
            middle = np.array([state.actor.x, state.actor.y + 0.5 * clip.plan.actor.height])
            place = (middle - camera) * scene.zoom * [-1 if clip.mirrored else 1, -1]
            assert np.abs(np.linalg.solve(scene.film.camera.matrix, place)).max() < 0.5


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_index_has_groups_that_train_and_test_do_not_share(name, tmp_path):
    render = settings_of(name, num_groups=4)
    render_embedded(tmp_path, render)
    dataset = DatasetSettings(root=str(tmp_path), format=FORMATS[name], render=render)
    index, findings = prepare_clips(dataset)
    groups = {split: {c.group for c in index.of_split(split)} for split in ("train", "test")}
    assert len(groups["train"]) == len(groups["test"]) == 4 and None not in groups["train"]
    assert not groups["train"] & groups["test"] and not findings.groups_in_several_splits
    classes = len(index.class_names)
    of_train = index.of_split("train")
    for group in groups["train"]:
        numbers = [n for n, clip in enumerate(of_train) if clip.group == group]
        assert {group_of(n, classes, 4) for n in numbers} == {int(group[-2:])}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_rendering_with_groups_goes_on_where_it_stopped(name, tmp_path):
    sizes = {"size_px": 32, "num_frames": 4}
    render = settings_of(name, num_groups=4, **sizes)
    count = render_embedded(tmp_path, render)
    videos = {path: path.read_bytes() for path in tmp_path.rglob("*.*") if path.suffix != ".json"}
    assert len(videos) == count
    lost = sorted(videos)[::7]
    for path in lost:
        path.unlink()
    assert render_embedded(tmp_path, render.model_copy(update={"num_workers": 2})) == len(lost)
    assert {path: path.read_bytes() for path in videos} == videos
    assert render_embedded(tmp_path, render) == 0
    assert render_embedded(tmp_path, settings_of(name, num_groups=3, **sizes)) == count
    assert render_embedded(tmp_path, settings_of(name, **sizes)) == count
    assert len([path for path in tmp_path.rglob("*.*") if path.suffix != ".json"]) == count


def test_without_groups_something_has_none(tmp_path):
    for path, content in something.annotate(settings_of("stick_something")).items():
        write_json(tmp_path / path, content)
    assert {clip.group for clip in read_annotations("ssv2", tmp_path).clips} == {None}


def test_annotations_of_a_group_tell_what_is_seen():
    content = something.annotate(settings_of("stick_something", num_groups=4))
    picked = content["labels/train.json"][5]
    clip = something.plan_clip(7, "train", 5, difficulty=1.5, group=1)
    assert picked["group"] == "train_g01" and picked["placeholders"] == [clip.plan.actor.name]
    assert content["labels/test.json"][5] == {"id": something.clip_id("test", 5)}


@pytest.mark.parametrize("name", NAMES)
def test_a_sheet_has_a_row_for_each_group(name):
    sheet = draw_sheet_of_groups(RENDERERS[name], 5, 2, step=12, difficulty=1.0)
    assert sheet.size == (3 * 2 * 96, 2 * (96 + 14))
    assert isinstance(sheet, Image.Image)
