"""The registered head: what it takes from recognizers, views, classifiers taken over, refusals."""

from __future__ import annotations

import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.extract.mmaction_compat import build_model
from dsts_pipeline.metrics import average_views, softmax
from dsts_pipeline.mmaction2.components import (
    KeepTimeOfTPNHook,
    RecalibrateNormsHook,
    recalibrate_recognizer,
)
from dsts_pipeline.mmaction2.loop import UDLTrainLoop, halve_batch
from dsts_pipeline.serve.mmaction_files import decode_options, encode_options
from tests.mmaction2.recognizers import CHANNELS, CLASSES, OPTIONS, batch_of, build, config_of


def head_of(**changes):
    config = config_of()["cls_head"] | changes
    torch.manual_seed(0)
    return build_model(config)


# ---- what it takes ----------------------------------------------------------------------------


def test_frames_folded_into_the_batch_become_views_in_time():
    """What a Recognizer2D hands over: of each clip its views, of each view its frames."""
    maps = torch.randn(6, CHANNELS, 4, 3, 3)  # 2 clips x 3 views
    folded = maps.transpose(1, 2).reshape(2 * 3 * 4, CHANNELS, 3, 3)
    head = head_of(num_segments=4)
    assert torch.equal(head.to_maps(folded, num_segs=12), maps)
    assert torch.equal(head.to_maps((maps,)), maps)
    assert torch.equal(head_of().to_maps(folded, num_segs=4), maps)


@pytest.mark.parametrize(
    ("x", "num_segs", "message"),
    [
        ([torch.zeros(1, CHANNELS, 2, 2, 2)] * 2, None, "gives 2 maps, DSTSHead takes one"),
        (torch.zeros(2, CHANNELS, 1), None, r"\(2, 16, 1\) are no maps"),
        (torch.zeros(2, CHANNELS, 2, 2), None, "are no maps"),
        (torch.zeros(10, CHANNELS, 2, 2), 10, "10 frames a clip are no multiple of num_segments=4"),
    ],
)
def test_what_is_no_map_is_refused(x, num_segs, message):
    with pytest.raises(SettingsError, match=message):
        head_of(num_segments=4).to_maps(x, num_segs)


def test_views_are_averaged_as_in_evaluate():
    recognizer = build().eval()
    batch = batch_of(1, num_clips=3, num_views=2)
    with torch.no_grad():
        predicted = recognizer.predict(batch.inputs, batch.data_samples)
        logits = recognizer.cls_head(recognizer.backbone(batch.inputs.flatten(0, 1)))
    expected = average_views([0, 0, 1, 1, 2, 2], np.zeros(6, int), softmax(logits.numpy()), None)
    found = np.stack([sample.pred_score.numpy() for sample in predicted])
    np.testing.assert_allclose(found, expected.probabilities, rtol=1e-6)


def test_a_recognizer_2d_is_trained_and_tested_with_time():
    config = config_of(num_segments=4)
    config["type"] = "Recognizer2D"
    config["backbone"] = {"type": "ResNetTSM", "depth": 50, "num_segments": 4, "pretrained": None}
    config["cls_head"]["in_channels"] = 2048
    recognizer = build_model(config)
    batch = batch_of(1, num_clips=2)
    frames = batch.inputs.float().squeeze(1).transpose(1, 2).contiguous()  # [B, T, 3, H, W]
    losses = recognizer.loss(frames, batch.data_samples)
    assert torch.isfinite(losses["loss_cls"]) and "top1_acc" in losses
    recognizer.eval()
    with torch.no_grad():
        one = recognizer.predict(frames, batch.data_samples)[0].pred_score.clone()
        twice = recognizer.predict(frames.repeat(1, 2, 1, 1, 1), batch.data_samples)[0].pred_score
    torch.testing.assert_close(one, twice)  # two equal views, not eight frames


def test_load_balancing_loss_is_added():
    losses = build(balance_weight=0.5).loss(batch_of(1).inputs, batch_of(1).data_samples)
    assert float(losses["loss_balance"].detach()) >= 0.5 * 2 - 1e-6  # 1 a layer at best


# ---- checkpoints ------------------------------------------------------------------------------


def test_an_ordinary_classifier_is_taken_over_where_it_fits():
    weight, bias = torch.randn(CLASSES, CHANNELS), torch.randn(CLASSES)
    head = head_of(zero_start=True)
    head.load_state_dict({"fc_cls.weight": weight, "fc_cls.bias": bias}, strict=False)
    maps = torch.randn(3, CHANNELS, 2, 3, 3)
    torch.testing.assert_close(head.eval()(maps), maps.mean(dim=(2, 3, 4)) @ weight.t() + bias)
    before = head.head.classifier.weight.clone()
    head.load_state_dict({"fc_cls.weight": torch.zeros(400, CHANNELS)}, strict=False)
    assert torch.equal(head.head.classifier.weight, before)


def test_a_head_of_other_options_is_refused():
    state = head_of(impulse_spread=3.0).state_dict()  # the same shapes
    with pytest.raises(CheckpointError, match=r"built with impulse_spread=3.0.*spread=2.0"):
        head_of().load_state_dict(state)


OTHERS = {"width": None, "bottleneck": 3, "common_neuron": True, "readout_dropout": 0.2}
OTHERS |= {"readout": "attentive", "readout_heads": 2}


def test_readouts_bottlenecks_and_common_neurons_come_back():
    head = head_of(**OTHERS)
    maps = torch.randn(3, CHANNELS, 2, 3, 3)
    again = head_of(**OTHERS)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1)
    again.load_state_dict(head.state_dict())
    assert torch.equal(again.eval()(maps), head.eval()(maps))
    assert torch.equal(head(maps), head.head(maps))
    with pytest.raises(CheckpointError, match="readout"):
        head_of().load_state_dict(head.state_dict())


def test_a_classifier_of_averages_is_no_classifier_of_what_is_attended_to():
    head = head_of(**OTHERS)
    before = head.head.classifier.weight.clone()
    head.load_state_dict({"fc_cls.weight": torch.zeros(CLASSES, CHANNELS)}, strict=False)
    assert torch.equal(head.head.classifier.weight, before)


def test_a_checkpoint_of_before_an_option_had_its_default():
    head = head_of()
    state = head.state_dict()
    (key,) = [name for name in state if name.endswith("_extra_state")]
    options = decode_options(state[key])
    parts = "readout", "bottle", "common", "temporal"
    later = [name for name in options if name.startswith(parts)]
    assert len(later) == 9
    state[key] = encode_options({k: v for k, v in options.items() if k not in later})
    head_of().load_state_dict(state)


class Evil:
    def __reduce__(self):
        from mmengine.logging import HistoryBuffer

        return getattr, (HistoryBuffer, "__init__")


def test_a_checkpoints_getattr_finds_the_logs_methods_alone(tmp_path):
    """mmengine writes `getattr(HistoryBuffer, "min")`; what else asks for getattr is refused."""
    from mmengine.logging import HistoryBuffer

    history = HistoryBuffer(np.array([1.0, 2.0]), np.array([1, 1]))
    torch.save({"log": history}, tmp_path / "sound.pth")
    assert torch.load(tmp_path / "sound.pth")["log"].mean() == 1.5
    torch.save({"log": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(pickle.UnpicklingError, match="asks for __init__ of"):
        torch.load(tmp_path / "evil.pth")


# ---- norms ------------------------------------------------------------------------------------


def test_norms_are_recomputed_for_test_time():
    """The statistics afterwards are those of the very maps that test time sees."""
    recognizer = build().float()
    frames = batch_of(1, num_clips=12).inputs.float()
    samples = batch_of(1, num_clips=12).data_samples
    batches = [
        {"inputs": list(frames[i : i + 4]), "data_samples": samples[i : i + 4]} for i in (0, 4, 8)
    ]
    recognizer.data_preprocessor._enable_normalize = False
    norms = {n: b.clone() for n, b in recognizer.named_buffers() if n.startswith("cls_head")}
    body = {n: b.clone() for n, b in recognizer.named_buffers() if n.startswith("backbone")}
    recalibrate_recognizer(recognizer, batches, num_clips=10)
    assert recognizer.training
    now = dict(recognizer.named_buffers())
    assert all(torch.equal(now[name], value) for name, value in body.items())
    assert any(not torch.equal(now[name], value) for name, value in norms.items())
    with torch.no_grad():
        recognizer.eval()
        maps = recognizer.backbone(frames[:10].flatten(0, 1))
        head = recognizer.cls_head.head
        layer = head.layers[0]
        raw = layer.impulses.measure(head.layer_input(maps, 0), layer.scoring_kernel)
    torch.testing.assert_close(layer.impulses.running_mean, raw.mean(dim=0), rtol=1e-4, atol=1e-5)


# ---- refusals ---------------------------------------------------------------------------------


def loop_of(recognizer, batch_size=4, num_clips=8, drop_last=True, **options):
    runner = SimpleNamespace(model=recognizer, visualizer=SimpleNamespace(dataset_meta=None))
    clips = [{"inputs": torch.zeros(1)}] * num_clips
    loader = DataLoader(clips, batch_size=batch_size, drop_last=drop_last)
    loader.dataset  # noqa: B018
    return UDLTrainLoop(runner, loader, 1, **options)


def test_loop_refuses_what_it_cannot_train():
    recognizer = build()
    loop_of(recognizer)
    with pytest.raises(SettingsError, match="batch_size is 1, expected at least 2"):
        loop_of(recognizer, batch_size=1)
    with pytest.raises(SettingsError, match="9 clips in batches of 4 leave one over"):
        loop_of(recognizer, num_clips=9, drop_last=False)
    with pytest.raises(ValueError, match="no meta-update"):
        loop_of(recognizer, udl_method="first_order")
    with pytest.raises(SettingsError, match="no upstream parameters"):
        loop_of(build(synapse=False, specialization="conv3d", impulse="sum", impulse_spread=1.0))
    recognizer.cls_head = torch.nn.Identity()
    with pytest.raises(SettingsError, match="type DSTSHead, found Identity"):
        loop_of(recognizer)


@pytest.mark.parametrize(
    ("wrapper", "message"),
    [
        ({"accumulative_counts": 2}, "accumulative_counts=2"),
        ({"type": "AmpOptimWrapper"}, "found AmpOptimWrapper; for mixed precision set precision="),
    ],
)
def test_loop_refuses_accumulation_and_another_wrapper(wrapper, message, monkeypatch):
    import mmengine.optim as optim

    recognizer = build()
    loop = loop_of(recognizer)
    kind = getattr(optim, wrapper.pop("type", "OptimWrapper"))
    built = kind.__new__(kind)
    built.__dict__ |= {"_accumulative_counts": wrapper.get("accumulative_counts", 1)}
    loop.runner.optim_wrapper = built
    with pytest.raises(SettingsError, match=message):
        loop.run()


@pytest.mark.parametrize("where", ["config", "backbone"])
def test_loop_refuses_reentrant_checkpointing(where):
    from mmengine.optim import OptimWrapper

    recognizer = build(backbone={"with_cp": where == "backbone"})
    loop = loop_of(recognizer)
    loop.runner.optim_wrapper = OptimWrapper(torch.optim.SGD(recognizer.parameters(), lr=0.1))
    loop.runner.cfg = {"activation_checkpointing": ["backbone"]} if where == "config" else {}
    with pytest.raises(SettingsError, match="cannot give UDL the gradients"):
        loop.run()


def test_halves_that_share_a_clip_are_refused():
    def batch(*numbers):
        samples = [SimpleNamespace(get=lambda _, n=n: n) for n in numbers]
        return {"inputs": list(numbers), "data_samples": samples}

    train, val = halve_batch(batch(4, 2, 7))
    assert (train["inputs"], val["inputs"]) == ([4], [2, 7])
    halve_batch(batch(None, None, None, None))  # samples that don't say
    with pytest.raises(SettingsError, match="clip 4 is in both halves"):
        halve_batch(batch(4, 2, 7, 4))


def test_hooks_refuse_what_they_cannot_serve():
    from mmengine.hooks import EMAHook

    with pytest.raises(SettingsError, match="num_clips=1"):
        RecalibrateNormsHook(num_clips=1)
    runner = SimpleNamespace(model=build(), hooks=[EMAHook()], iter=0)
    with pytest.raises(SettingsError, match="EMAHook evaluates averaged weights"):
        RecalibrateNormsHook().before_train(runner)
    with pytest.raises(SettingsError, match="NoneType for a neck"):
        KeepTimeOfTPNHook().before_train(runner)
    pool = SimpleNamespace(pool=torch.nn.MaxPool3d((8, 1, 1)))
    runner.model.neck = SimpleNamespace(temporal_modulation_ops=[pool])
    with pytest.raises(SettingsError, match=r"downsample_scales=\(1, 1\)"):
        KeepTimeOfTPNHook().before_train(runner)


def test_unknown_options_of_the_head_are_refused():
    with pytest.raises(TypeError, match="num_neuron"):
        head_of(**OPTIONS, num_neuron=3)
