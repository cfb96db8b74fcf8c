"""Test pipelines of mmaction2's configs, read into plain values, against mmaction2's transforms."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.mmaction_compat import import_mmaction, read_config
from dsts_pipeline.extract.model_zoo import find_config, read_zoo_model, zoo_names
from dsts_pipeline.extract.pipelines import (
    cut_square,
    read_pipeline,
    resize_frames,
    scaled_size,
)

PIXELS = {"mean": [1, 2, 3], "std": [4, 5, 6]}
PLAIN = [
    {"type": "DecordInit"},
    {"type": "SampleFrames", "clip_len": 4, "frame_interval": 2, "test_mode": True},
    {"type": "DecordDecode"},
    {"type": "Resize", "scale": (-1, 40)},
    {"type": "CenterCrop", "crop_size": 32},
    {"type": "FormatShape", "input_format": "NCTHW"},
    {"type": "PackActionInputs"},
]


def sampling(kind, **options):
    return {"type": kind, "test_mode": True, **options}


def mmactions_views(transforms, video, fps):
    """What mmaction2's transforms make of frames that are already decoded, [M, H, W, 3]."""
    import_mmaction()
    import mmaction.datasets.transforms  # noqa: F401
    from mmaction.registry import TRANSFORMS

    results = {"total_frames": len(video), "start_index": 0, "avg_fps": fps, "modality": "RGB"}
    for transform in transforms:
        if transform["type"] in ("DecordInit", "FormatShape", "PackActionInputs"):
            continue
        if transform["type"] == "DecordDecode":
            results["imgs"] = [video[number] for number in np.ravel(results["frame_inds"])]
            results["img_shape"] = video.shape[1:3]
            continue
        results = TRANSFORMS.build(transform)(results)
    return np.stack(results["imgs"])


@pytest.mark.parametrize(
    "sampler",
    [
        sampling("SampleFrames", clip_len=4, frame_interval=2, num_clips=3),
        sampling("SampleFrames", clip_len=1, num_clips=6, twice_sample=True),
        sampling("SampleFrames", clip_len=4, frame_interval=9, out_of_bound_opt="repeat_last"),
        sampling("SampleFrames", clip_len=3, frame_interval=6, num_clips=2, target_fps=30),
        sampling("UniformSample", clip_len=5, num_clips=2),
        sampling("DenseSampleFrames", clip_len=1, num_clips=4, sample_range=16),
        sampling("DenseSampleFrames", clip_len=4, frame_interval=2, num_sample_positions=3),
    ],
    ids=lambda value: f"{value['type']}-{len(value)}",
)
@pytest.mark.parametrize("crop", ["CenterCrop", "ThreeCrop"])
@pytest.mark.parametrize("shape", [(7, 30, 47), (33, 47, 30)])
def test_views_are_those_of_mmaction2s_transforms(sampler, crop, shape):
    video = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    short = 24 if crop == "ThreeCrop" else 28
    steps = [{"type": "Resize", "scale": (-1, short)}, {"type": crop, "crop_size": 24}]
    transforms = [PLAIN[0], sampler, PLAIN[2], *steps, *PLAIN[5:]]
    pipeline = read_pipeline(transforms, PIXELS, source="test")
    numbers = pipeline.sample(shape[0], fps=25.0)
    size = scaled_size(shape[2], shape[1], pipeline.resize_px)
    scaled = resize_frames(video[numbers.ravel()], *size)
    # mmaction2's order: crop by crop, both ends before the middle; of each crop sample by sample.
    crops = (1,) if crop == "CenterCrop" else (0, 2, 1)
    views = np.concatenate([cut_square(scaled, pipeline.size_px, number) for number in crops])
    assert np.array_equal(views, mmactions_views(transforms, video, 25.0))


def test_pixels_and_description_are_plain_values():
    pipeline = read_pipeline(PLAIN, PIXELS | {"to_rgb": True}, source="test")
    assert pipeline.mean == (1.0, 2.0, 3.0) and pipeline.std == (4.0, 5.0, 6.0) and pipeline.is_bgr
    assert pipeline.describe_input()["mean"] == [1.0, 2.0, 3.0]
    assert pipeline.describe()["sampling"] == {
        "rule": "dense",
        "num_clips": 1,
        "clip_len": 4,
        "frame_interval": 2,
        "num_frames": 4,
    }


def test_another_input_keeps_proportions_and_one_view_is_the_middle():
    pipeline = read_pipeline(
        [
            sampling("SampleFrames", clip_len=1, num_clips=8, twice_sample=True),
            {"type": "Resize", "scale": (-1, 256)},
            {"type": "TenCrop", "crop_size": 224},
        ],
        {},
        source="test",
    )
    small = pipeline.resized(num_frames=4, size_px=56)
    assert (small.resize_px, small.size_px, small.num_frames) == (64, 56, 4)
    assert small.sample(16).shape == (2, 4) and pipeline.sample(16).shape == (2, 8)
    one = pipeline.with_views()
    assert one.sample(16).tolist() == [[1, 3, 5, 7, 9, 11, 13, 15]]
    positions = [sampling("DenseSampleFrames", clip_len=2, frame_interval=2), *PLAIN[3:5]]
    middle = read_pipeline(positions, {}, source="test").with_views()
    assert middle.sample(164).tolist() == [[50, 52]]


@pytest.mark.parametrize("kind", ["SampleFrames", "UniformSample", "DenseSampleFrames"])
def test_views_can_be_set_to_another_number_of_clips(kind):
    transforms = [sampling(kind, clip_len=4), {"type": "Resize", "scale": (-1, 24)}]
    transforms.append({"type": "ThreeCrop", "crop_size": 24})
    pipeline = read_pipeline(transforms, {}, source="test")
    assert pipeline.with_views(5).sample(100).shape == (5, 4)


def test_rules_with_few_samples_say_how_many():
    frames = [sampling("SampleFrames", clip_len=1, num_clips=4), *PLAIN[3:5]]
    pipeline = read_pipeline(frames, {}, source="test")
    assert pipeline.with_views(2).sample(40).tolist() == [[5, 15, 25, 35], [0, 10, 20, 30]]
    with pytest.raises(SettingsError, match=r"\(dense\) gives 1 to 2 clips"):
        pipeline.with_views(3)


@pytest.mark.parametrize(
    ("transforms", "message"),
    [
        ([{"type": "ColorJitter"}, *PLAIN], "has ColorJitter, which extraction cannot do"),
        ([{"type": "SampleFrames", "clip_len": 4}], "SampleFrames of its test pipeline is random"),
        (PLAIN[:4], "gives no size_px"),
        ([{"type": "Resize", "scale": (32, 32), "keep_ratio": False}], "is not the bilinear"),
        (
            [{"type": "Resize", "scale": (-1, 32), "interpolation": "bicubic"}],
            "is not the bilinear",
        ),
        ([{"type": "CenterCrop", "crop_size": (32, 16)}], "are no squares"),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(transforms, message):
    with pytest.raises(SettingsError, match=f"zoo: .*{message}"):
        read_pipeline(transforms, PIXELS, source="zoo")
    with pytest.raises(SettingsError, match="optical flow is not extracted"):
        read_pipeline(PLAIN, {"mean": [128, 128], "std": [1, 1]}, source="zoo")


# Configs of the wheel that are refused, and why; all others are read as they are.
REFUSED = {
    "slowonly_r50_8xb16-8x8x1-256e_imagenet-kinetics400-rgb": "a RecognizerOmni",
    "slowonly_r50_8xb16-16x4x1-256e_kinetics400-flow": "optical flow is not extracted",
    "tsn_imagenet-pretrained-r50_8xb32_5x1x3-110e_kinetics400-flow": "optical flow",
    "uniformerv2-base-p16-res224_clip-pre_u8_kinetics710-rgb": "with no test_pipeline",
    "uniformerv2-large-p14-res224_clip-pre_u8_kinetics710-rgb": "with no test_pipeline",
    "uniformerv2-large-p14-res336_clip-pre_u8_kinetics710-rgb": "with no test_pipeline",
}


@pytest.mark.slow
def test_every_rgb_recognizer_of_the_zoo_is_read():
    refused = {}
    for name in zoo_names():
        try:
            model = read_zoo_model(name)
        except SettingsError as error:
            refused[name] = str(error)
            continue
        assert "cls_head" not in model.recognizer and model.pipeline.num_frames > 1
        assert "https://" not in str(model.recognizer), f"{name} would download weights"
    assert refused.keys() == REFUSED.keys() and len(zoo_names()) == 125
    assert all(reason in refused[name] for name, reason in REFUSED.items())


def test_configs_are_found_by_name_folder_and_path_and_typos_get_a_hint(tmp_path):
    name = "tsm_imagenet-pretrained-r50_8xb16-1x1x8-50e_sthv2-rgb"
    expected = zoo_names()[name]
    assert (
        find_config(name) == find_config(f"tsm/{name}") == find_config(f"tsm/{name}.py") == expected
    )
    assert find_config(str(expected)) == expected
    with pytest.raises(SettingsError, match=f"did you mean {name}"):
        find_config(name.replace("sthv2", "sthv3"))
    assert read_config(expected)["test_pipeline"][0]["type"] == "DecordInit"
