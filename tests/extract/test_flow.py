"""Optical flow as an input: which frames, which fields, which bytes, and what a backbone takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from dsts_pipeline.base.errors import BundleError, SettingsError
from dsts_pipeline.base.settings import AugmentationSettings, BackboneSettings, ViewSettings
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.extract import decode_pool
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.flow import FlowStacks, as_pictures, mirror, stack_frames, to_bytes
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import InputRule, ViewPlan, Views, view_at_test
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.serve import BackboneSource
from dsts_pipeline.serve.bundle_folder import _require_portable as require_portable
from dsts_pipeline.serve.video_jobs import VideoJob, work
from tests.clips.videos import write_video
from tests.extract.small_set import PoolingBackbone, index_clips, write_clips

TSM = Pipeline("dense", {"clip_len": 1, "num_clips": 8, "twice_sample": True}, 8, 32, 32)


class FlowBackbone(PoolingBackbone):
    """The mean of each channel over a 2 x 2 grid of two stacks: map [10, 2, 2, 2]."""

    num_frames, map_shape, num_channels, modality = 2, (10, 2, 2, 2), 10, "flow"


def moving(shifts: list[tuple[int, int]], size: int = 64) -> np.ndarray:
    """Frames uint8 [len(shifts) + 1, size, size, 3] of a smooth texture that moves by (x, y)."""
    y, x = np.mgrid[:200, :200]
    texture = 128 + 50 * np.sin(x / 5) * np.cos(y / 7) + 40 * np.sin((x + 2 * y) / 9)
    left = top = 60
    frames = [texture[top : top + size, left : left + size]]
    for right, down in shifts:
        left -= right
        top -= down
        frames.append(texture[top : top + size, left : left + size])
    return np.stack([np.stack(frames)] * 3, axis=-1).round().astype(np.uint8)


@pytest.mark.parametrize("num_frames", [1, 3, 6, 7, 20, 300])
def test_stacks_start_where_tsm_has_them(num_frames):
    # TSM's ops/dataset.py, `_get_test_indices` and `get`, with its counts from 1 written as from 0:
    # a video of n frames has n - 1 fields.
    num_fields = max(1, num_frames - 1)
    tick = max(1, num_fields - 5 + 1) / 8.0
    expected = []
    for segment in range(8):
        place = int(tick / 2.0 + tick * segment)
        for _ in range(5):
            expected.append(place)
            if place < num_fields - 1:
                place += 1
    rule = InputRule(8, 32, 32, TSM, "flow")
    view = view_at_test(rule, Views(), 0, num_frames, None)
    groups = np.reshape(view.indices, (8, 6))
    firsts = np.minimum(groups[:, :5], num_fields - 1)  # where a clip is over, its last field
    assert firsts.ravel().tolist() == expected


def test_fields_are_x_and_y_of_each_pair_and_bytes_as_denseflow_has_them():
    frames = moving([(3, 0), (0, -2), (0, 0), (-4, 1), (1, 1)])
    (stack,) = FlowStacks(frames, np.arange(6)).stack(np.arange(6))
    assert stack.shape == (64, 64, 10) and stack.dtype == np.uint8
    inner = np.median(stack[16:-16, 16:-16], axis=(0, 1))
    shifts = np.array([3, 0, 0, -2, 0, 0, -4, 1, 1, 1])
    # cvRound(255 (v + 20) / 40): 6.4 steps a pixel, 0 at 128.
    np.testing.assert_allclose(inner, np.rint(127.5 + 6.375 * shifts), atol=1)
    assert to_bytes(np.array([-99.0, 0.0, 99.0])).tolist() == [0, 128, 255]


def test_after_the_end_of_a_clip_its_last_field_stays():
    frames = moving([(3, 0), (0, -2)])
    numbers = stack_frames(np.array([0]), 3)
    (stack,) = FlowStacks(frames, np.arange(3)).stack(numbers)
    for field in range(2, 5):
        np.testing.assert_array_equal(stack[..., 2 * field : 2 * field + 2], stack[..., 2:4])
    (alone,) = FlowStacks(frames[:1], np.arange(1)).stack(np.zeros(6, int))
    assert (alone == 128).all()


def test_mirrored_motion_is_the_motion_of_mirrored_frames():
    frames = moving([(3, 1)] * 5)
    stack = FlowStacks(frames, np.arange(6)).stack(np.arange(6))
    of_mirrored = FlowStacks(frames[:, :, ::-1].copy(), np.arange(6)).stack(np.arange(6))
    inside = np.s_[:, 12:-12, 12:-12]
    apart = np.abs(mirror(stack)[inside].astype(int) - of_mirrored[inside])
    assert apart.mean() < 2 and np.abs(stack[inside].astype(int) - of_mirrored[inside]).mean() > 10


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, 6)
    return index_clips(root)


def test_a_request_gives_stacks_each_frame_decoded_once(index, monkeypatch):
    asked = []

    def decode(path, numbers, **options):
        asked.extend(numbers.tolist())
        return decode_frames(path, numbers, **options)

    monkeypatch.setattr(decode_pool, "decode_frames", decode)
    plan = ViewPlan(index, FlowBackbone(), Views(test_clips=2, test_crops=3))
    (job,) = plan.jobs([p for p, row in enumerate(plan.rows) if row.clip == 2])
    frames = decode_clip(job)
    assert frames.shape == (6, 2, 32, 32, 10) and frames.nbytes == job.answer_bytes
    assert len(asked) == len(set(asked))
    clip = index.clips[2]
    assert max(asked) < clip.end_frame and min(asked) >= clip.start_frame


def test_a_store_of_flow_has_another_name_and_knows_where_stacks_start(index, tmp_path):
    frames, flow = (ViewPlan(index, kind()) for kind in (PoolingBackbone, FlowBackbone))
    described = flow.describe()["optical_flow"]
    assert described["method"].startswith("DIS, medium preset, OpenCV ")
    assert "optical_flow" not in frames.describe()
    assert flow.frames.shape == (len(flow.rows), 2)
    settings = BackboneSettings(num_decode_workers=0)
    plan = StorePlan(
        flow.describe(),
        clips=flow.samples,
        class_names=index.class_names,
        map_shape=FlowBackbone.map_shape,
        frames=flow.frames,
    )
    with StoreWriter(tmp_path, plan) as writer:
        extract_features(flow, FlowBackbone(), writer, settings)
        writer.finish({})
        store = open_store(writer.path)
    seen = torch.from_numpy(decode_clip(next(flow.jobs([0]))))
    np.testing.assert_allclose(store.read([0]), FlowBackbone()(seen), rtol=1e-3)


def test_an_augmented_view_may_be_mirrored(index):
    plan = ViewPlan(
        index, FlowBackbone(), Views(augmentation=Augmentation(flip=1.0), flips=FlipRule())
    )
    (mirrored,) = plan.jobs([0])
    (view,) = mirrored.views
    assert view.is_flipped and view.seed is not None
    plain = decode_clip(replace(mirrored, views=(replace(view, is_flipped=False),)))
    np.testing.assert_array_equal(decode_clip(mirrored)[0], mirror(plain[0]))


def test_predict_sees_what_extraction_saw(index, tmp_path):
    path = write_video(tmp_path / "one.mp4", num_frames=12)
    rule = InputRule.of(FlowBackbone())
    job = VideoJob(str(path), "pyav", input=rule, views=Views())
    frames = work(job).frames
    assert frames.shape == (1, 2, 32, 32, 10) and frames.nbytes == job.answer_bytes
    pictures = as_pictures(frames)
    assert pictures.shape == (1, 2, 32, 32, 3)
    np.testing.assert_array_equal(pictures[..., :2], frames[..., :2])


def test_what_changes_colours_is_refused():
    views = ViewSettings(augmentation=AugmentationSettings(color_jitter=0.4))
    BackboneSettings(views=views)
    with pytest.raises(ValidationError, match="input is flow, which has no colours"):
        BackboneSettings(views=views, input="flow")


# ---- backbones ----------------------------------------------------------------------------------


def test_tsm_of_flow_is_resnet_50_with_ten_channels():
    backbone = build_backbone("tsm_r50", weights="random", num_frames=8, size_px=64, input="flow")
    assert backbone.modality == "flow" and backbone.map_shape == (2048, 8, 2, 2)
    # ResNet-50 without its classifier, and seven channels more of 64 kernels of 7 x 7.
    assert sum(p.numel() for p in backbone.model.parameters()) == 23_508_032 + 7 * 64 * 49
    assert backbone.recognizer.backbone.shift_div == 8  # TSM, 4.1: 1/8 of the channels each way
    still = torch.full((1, *backbone.input_shape), 128, dtype=torch.uint8)
    seen = []
    backbone.recognizer.backbone.conv1.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
    backbone(still)
    assert seen[0].shape == (8, 10, 64, 64) and (seen[0] == 0).all()  # no motion is zero
    assert backbone.describe()["input"]["mean"] == [128.0] * 10


def test_backbones_that_take_frames_alone_say_so():
    for name in ("stick_r18", "efficientnet_lite0"):
        with pytest.raises(SettingsError, match="frames alone"):
            build_backbone(name, weights="random", input="flow")


def test_an_image_model_of_timm_takes_stacks():
    pytest.importorskip("timm")
    backbone = build_backbone(
        "timm:test_resnet", weights="random", num_frames=2, size_px=32, input="flow"
    )
    frames = torch.zeros(1, *backbone.input_shape, dtype=torch.uint8)
    assert backbone.input_shape == (2, 32, 32, 10)
    assert tuple(backbone(frames).shape[1:]) == backbone.map_shape


def test_a_bundle_knows_the_input_and_refuses_one_that_there_is_not():
    source = BackboneSource("tsm_r50", "random", "backbone", input="flow")
    require_portable(source)
    with pytest.raises(BundleError, match="input 'depth', expected one of rgb, flow"):
        require_portable(replace(source, input="depth"))
