from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.extract import build_backbone, build_recognizer, load_classifier
from dsts_pipeline.extract.backbones import normalize_frames
from dsts_pipeline.extract.model_zoo import get_preset, preset_names
from dsts_pipeline.extract.weights import read_state, save_weights


@pytest.fixture(scope="module")
def recognizer():
    """A recognizer whose norms and classifier are not at their start values."""
    model = build_recognizer("stick_r18", num_classes=48, seed=3)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value += 0.1 * torch.rand(value.shape, generator=generator)
    model.eval()
    return model


@pytest.fixture(scope="module")
def weights(recognizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "stick.safetensors"
    save_weights(recognizer, path)
    return path


@pytest.fixture(scope="module")
def backbone(weights):
    return build_backbone("stick_r18", weights=weights)


@pytest.fixture(scope="module")
def frames():
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 16, 64, 64, 3), dtype=torch.uint8, generator=generator)


def test_size_and_shapes_are_those_promised(backbone, frames):
    assert 0.5e6 < sum(p.numel() for p in backbone.parameters()) < 3e6
    assert backbone.map_shape == (128, 8, 4, 4)
    maps = backbone(frames)
    assert maps.shape == (3, *backbone.map_shape) and maps.dtype == torch.float32
    assert maps.is_contiguous()
    assert backbone.classify(maps).shape == (3, 48)


def test_map_and_logits_are_those_of_mmaction2s_own_path(backbone, recognizer, frames):
    # mmaction2's pipeline hands over uint8 [views, C, T, H, W] and its preprocessor normalises.
    inputs = [clip.permute(3, 0, 1, 2)[None] for clip in frames]
    batch = recognizer.data_preprocessor({"inputs": inputs, "data_samples": None})["inputs"]
    with torch.no_grad():
        maps, _ = recognizer.extract_feat(batch, test_mode=True)
        logits = recognizer.cls_head(maps)
    scale = maps.abs().max().item()
    torch.testing.assert_close(backbone(frames), maps, rtol=1e-4, atol=1e-5 * scale)
    torch.testing.assert_close(backbone.classify(maps), logits)


def test_the_classifier_is_linear_on_the_averaged_map(backbone, weights, frames):
    maps = backbone(frames)
    weight, bias = load_classifier(weights)
    torch.testing.assert_close(maps.mean((2, 3, 4)) @ weight.T + bias, backbone.classify(maps))
    assert torch.equal(weight, backbone.classifier[0]) and torch.equal(bias, backbone.classifier[1])


def test_a_clip_played_backwards_gives_another_pooled_map(backbone, frames):
    pooled = [backbone(f).mean((2, 3, 4)) for f in (frames, frames.flip(1))]
    assert (pooled[0] - pooled[1]).abs().max() > 1e-3 * pooled[0].abs().max()


def test_the_backbone_is_frozen_and_stays_in_evaluation_mode_after_building(backbone, frames):
    assert not any(p.requires_grad for p in backbone.parameters())
    assert not any(module.training for module in backbone.modules())
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    backbone(frames)
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_normalisation_is_the_named_formula(frames):
    expected = (frames.double() / 255 - 0.5) / 0.25
    found = normalize_frames(frames)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.permute(0, 2, 3, 4, 1).double(), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 16, 64, 64, 3), torch.zeros(1, 8, 64, 64, 3, dtype=torch.uint8)]
)
def test_frames_of_another_type_or_size_are_refused(backbone, wrong):
    with pytest.raises(ValueError, match=r"expected torch\.uint8 \(B, 16, 64, 64, 3\)"):
        backbone(wrong)


def test_the_description_is_json_and_tells_weights_apart(backbone, weights):
    described = backbone.describe()
    assert json.loads(json.dumps(described)) == described
    assert len(described["weights"]["sha256"]) == 64
    random = build_backbone("stick_r18", weights="random", num_frames=8, size_px=32)
    assert random.map_shape == (128, 4, 2, 2)
    assert random.describe()["weights"] == {"random_seed": 0}
    assert described == build_backbone("stick_r18", weights=weights).describe()


def test_random_weights_follow_their_seed_and_leave_the_global_stream_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, second, third = (build_recognizer("stick_r18", seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    weight = "backbone.layer1.0.conv1.conv.weight"
    assert torch.equal(first.state_dict()[weight], second.state_dict()[weight])
    assert not torch.equal(first.state_dict()[weight], third.state_dict()[weight])


def test_an_unknown_preset_names_the_closest():
    with pytest.raises(SettingsError, match="did you mean 'stick_r18'"):
        build_backbone("stick_r81", weights="random")
    assert "stick_r18" in preset_names()
    get_preset("stick_r18").recognizer["backbone"]["depth"] = 50
    assert get_preset("stick_r18").recognizer["backbone"]["depth"] == 18


def test_half_weights_are_kernels_only_and_come_back_rounded(recognizer, weights, tmp_path):
    save_weights(recognizer, tmp_path / "half.safetensors", half=True)
    size = (tmp_path / "half.safetensors").stat().st_size
    assert size < 0.55 * weights.stat().st_size
    whole, half = read_state(weights), read_state(tmp_path / "half.safetensors")
    for name, value in whole.items():
        rounded = value.half().float() if value.ndim > 1 else value
        assert torch.equal(half[name], rounded), name
    save_weights(recognizer, tmp_path / "again.safetensors", half=True)
    again = (tmp_path / "again.safetensors").read_bytes()
    assert again == (tmp_path / "half.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("cls_head.fc_cls.bias"), r"1 missing: cls_head\.fc_cls\.bias"),
        (lambda s: s.update(extra=torch.ones(1)), "1 unexpected: extra"),
        (
            lambda s: s.update({"cls_head.fc_cls.bias": torch.ones(7)}),
            r"1 of another shape: cls_head\.fc_cls\.bias \(7,\) instead of \(48,\)",
        ),
        (
            lambda s: s["backbone.conv1.bn.weight"].fill_(float("nan")),
            r"1 not finite: backbone\.conv1\.bn\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(weights, tmp_path, change, message):
    from safetensors.torch import save_file

    state = read_state(weights)
    change(state)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=message):
        build_backbone("stick_r18", weights=tmp_path / "w.safetensors")


def test_files_that_are_no_weights_are_refused(weights, tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such weights file"):
        build_backbone("stick_r18", weights=tmp_path / "gone.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="not a sound safetensors file"):
        build_backbone("stick_r18", weights=tmp_path / "cut.safetensors")
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="holds no classifier"):
        load_classifier(tmp_path / "other.safetensors")


WITHOUT_OPENCV = """
import importlib.abc, os, sys
class NoLibGL(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file")
sys.meta_path.insert(0, NoLibGL())
import torch
from dsts_pipeline.base.errors import UserError
from dsts_pipeline.extract import build_backbone
before = dict(os.environ)
backbone = build_backbone("stick_r18", weights="random", num_frames=4, size_px=32)
assert dict(os.environ) == before
frames = torch.arange(4 * 32 * 32 * 3).reshape(1, 4, 32, 32, 3).to(torch.uint8)
print(backbone(frames).double().sum().item())
try:
    sys.modules["cv2"].resize(None)
except UserError as error:
    print(error)
"""


@pytest.mark.slow
def test_recognizers_work_where_opencvs_system_libraries_are_missing(repository):
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_OPENCV], cwd=repository, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    total, told = run.stdout.splitlines()
    assert "OpenCV's resize was called" in told and "libGL.so.1" in told
    frames = torch.arange(4 * 32 * 32 * 3).reshape(1, 4, 32, 32, 3).to(torch.uint8)
    with_opencv = build_backbone("stick_r18", weights="random", num_frames=4, size_px=32)
    np.testing.assert_allclose(float(total), with_opencv(frames).double().sum(), rtol=1e-5)
