"""Features equal to mmaction2's own path: its transforms, its preprocessor, its `extract_feat`.

Weights are drawn from a seed, and every norm is moved off its starting value. Videos are rendered
here; where the folder named by DSTS_REAL_CLIPS holds video files, these are tested too, at full
size.
"""

from __future__ import annotations

import copy
import os
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dsts_pipeline.clips.probe import probe
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.mmaction_compat import build_model, import_mmaction, read_config
from dsts_pipeline.extract.model_zoo import ZOO_PRESETS, find_config, read_zoo_model
from dsts_pipeline.extract.views import FrameRequest, FrameView

SIZE_PX = 64
# Preset, the tap that mmaction2's extract_feat gives, frames (None: the config's own).
SYSTEMS = [
    ("tpn_slowonly_r50", "neck", None),
    ("tpn_tsm_r50", "neck", None),
    ("swin_t", "backbone", 8),
    ("slowfast_r50", "pathways", None),
]
REAL_CLIPS = sorted(Path(os.environ.get("DSTS_REAL_CLIPS", "/nonexistent")).glob("*.mp4"))


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """90 frames of 122 x 90 px with moving gratings, so that frames and places differ."""
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    rows, columns = np.mgrid[:90, :122]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"g": "12"})
        stream.width, stream.height, stream.pix_fmt = 122, 90, "yuv420p"
        for number in range(90):
            waves = [np.sin(rows / 5 + number / 3), np.cos(columns / 7 - number / 5)]
            image = np.stack([*waves, waves[0] * waves[1]], axis=-1) * 110 + 128
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def shake(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    """Move all norms of a model off their start values; its weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if value.is_floating_point() and value.ndim == 1:
                noise = torch.rand(value.shape, generator=generator)
                value += 0.2 * noise if "running" in name else 0.3 * (noise - 0.5)
    return {name: value.clone() for name, value in model.state_dict().items()}


def resize_transforms(transforms, size_px, num_frames):
    """mmaction2's test pipeline for smaller frames, and fewer of them where asked for."""
    transforms = copy.deepcopy(transforms)
    crop = next(t["crop_size"] for t in transforms if "crop_size" in t)
    for transform in transforms:
        if transform["type"] == "Resize":
            transform["scale"] = (-1, round(max(transform["scale"]) * size_px / crop))
        if "crop_size" in transform:
            transform["crop_size"] = size_px
        if transform["type"] == "SampleFrames" and num_frames:
            transform["clip_len"] = num_frames
        if transform["type"] == "RawFrameDecode":  # the same pictures, from a video
            transform["type"] = "DecordDecode"
    if transforms[0]["type"] != "DecordInit":
        transforms.insert(0, {"type": "DecordInit"})
    return transforms


def mmactions_path(name, path, state, size_px=SIZE_PX, num_frames=None):
    """What mmaction2 makes of a video: views after its pipeline, and features of each view."""
    import_mmaction()
    from mmaction.datasets.transforms import PackActionInputs  # noqa: F401
    from mmaction.registry import TRANSFORMS

    config = read_config(find_config(ZOO_PRESETS[name].config))
    results = {"filename": str(path), "start_index": 0, "modality": "RGB", "label": 0}
    for transform in resize_transforms(config["test_pipeline"], size_px, num_frames):
        results = TRANSFORMS.build(transform)(results)
    inputs = results["inputs"]
    model = build_model(read_zoo_model(ZOO_PRESETS[name].config).recognizer)
    model.load_state_dict(state)
    model.eval()
    views = []
    with torch.no_grad():
        data = model.data_preprocessor({"inputs": [inputs], "data_samples": None})["inputs"]
        # A 2-D recognizer is given one view at a time: its neck takes the segments for all views.
        per_view = data.split(8, dim=1) if data.ndim == 5 else data.split(1, dim=1)
        for view in per_view[:NUM_VIEWS]:
            views.append(model.extract_feat(view, test_mode=True)[0])
    return inputs, views


NUM_VIEWS = 2  # of up to 30; the others differ in their frames only, which are compared all


MMACTIONS_ORDER = (0, 2, 1)  # ThreeCrop's squares: both ends, then the middle


def our_views(backbone, path, decoder="decord"):
    info = probe(path)
    samples = backbone.pipeline.sample(info.num_frames, info.fps)
    request = FrameRequest(
        str(path),
        decoder,
        views=tuple(
            FrameView(tuple(s.tolist()), crop) for crop in MMACTIONS_ORDER for s in samples
        ),
        size_px=backbone.size_px,
        resize_px=backbone.resize_px,
        scaling="opencv",
    )
    return decode_clip(request)


def as_map(name, features):
    """mmaction2's features in our layout."""
    if name == "slowfast_r50":
        slow, fast = features
        fast = fast.unflatten(2, (slow.shape[2], -1)).mean(3)
        return torch.cat([slow, fast], 1)
    return features[:, :, None] if features.ndim == 4 else features


def compare(name, tap, path, tmp_path, *, size_px, num_frames=None):
    model = read_zoo_model(ZOO_PRESETS[name].config)
    torch.manual_seed(0)
    recognizer = build_model(model.recognizer)
    state = shake(recognizer, seed=1)
    save_file(state, tmp_path / "weights.safetensors")
    backbone = build_backbone(
        name,
        weights=tmp_path / "weights.safetensors",
        size_px=size_px,
        num_frames=num_frames,
        taps=(tap,),
    )
    inputs, expected = mmactions_path(name, path, state, size_px, num_frames)
    views = our_views(backbone, path)
    # Pixels, all views: [V, 3, T, H, W], or [V * T, 3, H, W] in 2-D.
    if inputs.ndim == 4:
        inputs = inputs.unflatten(0, (-1, backbone.num_frames)).transpose(1, 2)
    assert torch.equal(torch.from_numpy(views).permute(0, 4, 1, 2, 3), inputs)
    assert len(views) == len(inputs) > 1
    for view, features in zip(views, expected, strict=False):
        wanted = as_map(name, features)
        with torch.inference_mode():
            found = backbone(torch.from_numpy(view)[None])
        assert found.shape == wanted.shape
        scale = wanted.abs().max().item()
        assert scale > 0 and wanted.std() > 1e-3 * scale
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=2e-5 * scale)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tap", "num_frames"), SYSTEMS)
def test_features_are_mmaction2s(name, tap, num_frames, video, tmp_path):
    compare(name, tap, video, tmp_path, size_px=SIZE_PX, num_frames=num_frames)


@pytest.mark.slow
@pytest.mark.skipif(not REAL_CLIPS, reason="DSTS_REAL_CLIPS names no folder with video files")
@pytest.mark.parametrize(("name", "tap", "num_frames"), SYSTEMS)
def test_features_of_real_clips_at_full_size_are_mmaction2s(name, tap, num_frames, tmp_path):
    size_px = read_zoo_model(ZOO_PRESETS[name].config).pipeline.size_px
    for path in REAL_CLIPS:
        compare(name, tap, path, tmp_path, size_px=size_px)


def test_a_view_is_decoded_alike_by_both_decoders_within_their_rounding(video):
    backbone = build_backbone("tsm_r50", weights="random", size_px=SIZE_PX)
    first, second = (our_views(backbone, video, decoder) for decoder in ("decord", "pyav"))
    assert np.abs(first.astype(int) - second).mean() < 2


@pytest.mark.long
def test_videomae_v2_of_the_zoo_gives_its_last_tokens():
    name = "vit-small-p16_videomaev2-vit-g-dist-k710-pre_16x4x1_kinetics-400"
    backbone = build_backbone(name, weights="random", seed=2)
    assert backbone.map_shape == (384, 8, 14, 14) and backbone.num_frames == 16
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, 16, 224, 224, 3), dtype=torch.uint8, generator=generator)
    model = backbone.model.recognizer.backbone
    mean, std = (torch.tensor(value) for value in (backbone.pipeline.mean, backbone.pipeline.std))
    with torch.no_grad():
        tokens = model.patch_embed(((frames - mean) / std).permute(0, 4, 1, 2, 3))[0]
        tokens = tokens + model.pos_embed
        for block in model.blocks:
            tokens = block(tokens)
        expected = model.norm(tokens).transpose(1, 2).unflatten(2, (8, 14, 14))
        torch.testing.assert_close(backbone(frames), expected, rtol=1e-4, atol=1e-4)
