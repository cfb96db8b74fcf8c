"""Each config in configs/mmaction2 is one that mmaction2 builds: model, transforms, loop, hooks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import dsts_pipeline.mmaction2  # noqa: F401
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.serve.mmaction_files import split_checkpoint

CONFIGS = sorted((Path(__file__).resolve().parents[2] / "configs" / "mmaction2").glob("*.py"))
LONG = [
    pytest.param(path, marks=pytest.mark.long if "swin" in path.stem else (), id=path.stem)
    for path in CONFIGS
]
SMALL = {  # frames of a clip as the preprocessor gives them: quick to run, but with time
    "tpn-tsm_r50_ssv2": ((2, 8, 3, 64, 64), 8),
    "tpn-slowonly_r50_diving48": ((2, 1, 3, 8, 64, 64), 8),
    "stick_r18_stick-diving": ((2, 1, 3, 16, 64, 64), 8),
}


def read(path):
    from mmengine.config import Config

    config = Config.fromfile(str(path))
    config.model.backbone.pretrained = None
    return config


@pytest.mark.slow
@pytest.mark.parametrize("path", LONG)
def test_config_is_built(path):
    from mmaction.registry import HOOKS, LOOPS, MODELS, TRANSFORMS
    from mmengine.registry import DefaultScope

    config = read(path)
    with DefaultScope.overwrite_default_scope("mmaction"):
        recognizer = MODELS.build(config.model)
        for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
            assert loader.dataset.ann_file.startswith("outputs/mmaction2/")
            for transform in loader.dataset.pipeline:
                TRANSFORMS.build(transform)
        assert any("sample_idx" in t.get("meta_keys", ()) for t in
                   config.train_dataloader.dataset.pipeline)  # fmt: skip
        for hook in config.custom_hooks:
            HOOKS.build(hook)
        assert LOOPS.get(config.train_cfg.type).__name__ == "UDLTrainLoop"
    assert type(recognizer.cls_head).__name__ == "DSTSHead"
    assert recognizer.cls_head.num_classes == (174 if "ssv2" in path.stem else 48)
    assert config.train_dataloader.batch_size == 16 and config.train_dataloader.drop_last


def test_former_address_in_a_config_registers_the_same(tmp_path):
    from mmaction.registry import MODELS
    from mmengine.config import Config

    import dsts_pipeline.serve.mmaction2 as former

    own = tmp_path / "own.py"
    own.write_text('custom_imports = dict(imports=["dsts_pipeline.serve.mmaction2"])\n')
    Config.fromfile(str(own))
    assert former.DSTSHead is MODELS.get("DSTSHead") is dsts_pipeline.mmaction2.DSTSHead


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_recognizer_hands_over_a_map_with_time(name):
    """In training and in the wheel's way of testing: T is what it should be, a score per clip."""
    from mmaction.structures import ActionDataSample
    from mmengine.registry import DefaultScope

    config = read(next(path for path in CONFIGS if path.stem.endswith(name)))
    with DefaultScope.overwrite_default_scope("mmaction"):
        from mmaction.registry import MODELS

        recognizer = MODELS.build(config.model)
    shape, length = SMALL[name]
    frames = torch.randn(shape)
    samples = [ActionDataSample().set_gt_label(n) for n in range(2)]
    features, options = recognizer.extract_feat(frames, data_samples=samples)
    maps = recognizer.cls_head.to_maps(features, options.get("num_segs"))
    assert maps.shape[:3] == (2, recognizer.cls_head.in_channels, length)
    losses = recognizer.loss(frames, samples)
    assert math.isfinite(float(losses["loss_cls"])) and ("neck" in config.model) == (
        "loss_aux" in losses
    )
    recognizer.eval()
    views = frames.repeat(1, 2, *[1] * (frames.dim() - 2))
    with torch.no_grad():
        once = [sample.pred_score.clone() for sample in recognizer.predict(frames, samples)]
        twice = [sample.pred_score for sample in recognizer.predict(views, samples)]
    assert once[0].shape == (recognizer.cls_head.num_classes,)
    torch.testing.assert_close(once, twice, rtol=1e-4, atol=1e-5)


def test_start_with_time_is_what_extraction_taps():
    """KeepTimeOfTPNHook's neck gives the map of extraction's tap `neck_time`."""
    import copy
    from types import SimpleNamespace

    from dsts_pipeline.extract.mmaction_compat import build_model
    from dsts_pipeline.extract.taps import keep_time
    from dsts_pipeline.mmaction2.components import KeepTimeOfTPNHook

    config = read(next(path for path in CONFIGS if "slowonly" in path.stem)).model.neck.to_dict()
    config["aux_head_cfg"] = None
    neck = build_model(config).eval()
    published = build_model(config | {"temporal_modulation_cfg": {"downsample_scales": (8, 8)}})
    published.load_state_dict(copy.deepcopy(neck.state_dict()))
    keep_time(published.eval())
    runner = SimpleNamespace(model=SimpleNamespace(neck=neck), iter=0)
    KeepTimeOfTPNHook().before_train(runner)
    maps = (torch.randn(1, 1024, 8, 4, 4), torch.randn(1, 2048, 8, 2, 2))
    with torch.no_grad():
        torch.testing.assert_close(neck(maps)[0], published(maps)[0])


@pytest.mark.slow
def test_fine_tuned_tpn_is_extracted_by_its_config(tmp_path):
    """Its neck keeps time; the converted weights fit it, with the taps that were trained."""
    from mmaction.registry import MODELS
    from mmengine.registry import DefaultScope

    path = next(path for path in CONFIGS if "slowonly" in path.stem)
    with DefaultScope.overwrite_default_scope("mmaction"):
        recognizer = MODELS.build(read(path).model)
    torch.save({"state_dict": recognizer.state_dict()}, tmp_path / "epoch_1.pth")
    found = split_checkpoint(tmp_path / "epoch_1.pth", tmp_path / "ours")
    backbone = build_backbone(
        str(path), weights=found.weights, taps=("neck",), num_frames=8, size_px=64
    )
    assert backbone.map_shape == (2048, 8, 2, 2)
    assert backbone.pipeline is not None and backbone.pipeline.options["num_clips"] == 2
    frames = torch.randint(256, (1, 8, 64, 64, 3), dtype=torch.uint8)
    recognizer.eval()
    inputs = recognizer.data_preprocessor(
        {"inputs": [frames[0].permute(3, 0, 1, 2)[None]], "data_samples": [None]}, False
    )["inputs"]
    with torch.no_grad():
        expected = recognizer.extract_feat(inputs)[0]
    torch.testing.assert_close(backbone(frames), expected, rtol=1e-3, atol=1e-4)
