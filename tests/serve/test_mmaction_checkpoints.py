"""mmaction2's checkpoints to ours and back: the same tensors, and nothing that runs."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.head import DSTSHead, LinearProbe, load_head, save_head
from dsts_pipeline.serve.mmaction_files import join_checkpoint, split_checkpoint
from tests.mmaction2.recognizers import batch_of, build


@pytest.fixture
def saved(tmp_path):
    """A recognizer, and the checkpoint that mmengine would write of it."""
    from mmengine.logging import HistoryBuffer

    recognizer = build().float().eval()
    log = {"train/loss": HistoryBuffer(np.array([1.0]), np.array([1]))}
    content = {"meta": {"epoch": 1, "cfg": "x = 1"}, "message_hub": {"log_scalars": log}}
    path = tmp_path / "epoch_1.pth"
    torch.save(content | {"state_dict": recognizer.state_dict(), "optimizer": {}}, path)
    return recognizer, path


def test_parts_give_the_recognizers_logits(saved, tmp_path):
    recognizer, path = saved
    found = split_checkpoint(path, tmp_path / "ours", store="abc")
    head, extra = load_head(found.head)
    frames = batch_of(1).inputs.float()
    with torch.no_grad():
        maps = recognizer.backbone(frames.flatten(0, 1))
        assert torch.equal(head(maps), recognizer.cls_head(maps))
    weights = load_file(found.weights)
    assert torch.equal(weights.pop("cls_head.fc_cls.bias"), head.classifier.bias)
    assert torch.equal(weights.pop("cls_head.fc_cls.weight"), head.classifier.weight)
    expected = {n: v for n, v in recognizer.state_dict().items() if n.startswith("backbone.")}
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    assert extra["store"] == "abc" and extra["backbone_sha256"] == found.sha256


def test_a_classifier_of_what_is_attended_to_is_not_the_recognizers(tmp_path):
    recognizer = build(readout="attentive", readout_heads=2).float().eval()
    torch.save({"meta": {}, "state_dict": recognizer.state_dict()}, tmp_path / "epoch_1.pth")
    found = split_checkpoint(tmp_path / "epoch_1.pth", tmp_path / "ours")
    assert not [name for name in load_file(found.weights) if "fc_cls" in name]
    head, _ = load_head(found.head)
    maps = torch.randn(2, recognizer.cls_head.head.config["in_channels"], 4, 8, 8)
    with torch.no_grad():
        assert torch.equal(head(maps), recognizer.cls_head(maps))


def test_there_and_back_is_the_same_checkpoint(saved, tmp_path):
    recognizer, path = saved
    found = split_checkpoint(path, tmp_path / "ours")
    join_checkpoint(tmp_path / "again.pth", head=found.head, weights=found.weights)
    state = torch.load(tmp_path / "again.pth", weights_only=True)["state_dict"]
    expected = recognizer.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    build(seed=5).float().load_state_dict(state, strict=True)
    assert split_checkpoint(tmp_path / "again.pth", tmp_path / "b").sha256 == found.sha256


def test_weights_alone_keep_their_classifier_and_get_mmactions_names(tmp_path):
    state = {"norm.weight": torch.ones(3), "layers.0.x": torch.ones(2)}
    state |= {"cls_head.fc_cls.weight": torch.ones(2, 3)}
    save_file(state, tmp_path / "authors.safetensors")
    count = join_checkpoint(tmp_path / "w.pth", weights=tmp_path / "authors.safetensors")
    names = torch.load(tmp_path / "w.pth", weights_only=True)["state_dict"].keys()
    assert count == 3
    assert names == {"backbone.norm3.weight", "backbone.layers.0.x", "cls_head.fc_cls.weight"}


class Evil:
    def __reduce__(self):
        return os.system, ("touch evil",)


def test_a_file_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {}, "meta": Evil()}, "evil.pth")
    with pytest.raises(CheckpointError, match="refused"):
        split_checkpoint("evil.pth", "out")
    assert not (tmp_path / "evil").exists() and not (tmp_path / "out").exists()


def test_what_holds_no_dsts_head_is_refused(tmp_path, saved):
    torch.save({"state_dict": {"cls_head.fc_cls.weight": torch.ones(1)}}, tmp_path / "plain.pth")
    with pytest.raises(CheckpointError, match="no DSTS head .1 tensors of another cls_head"):
        split_checkpoint(tmp_path / "plain.pth", tmp_path / "out")
    save_head(tmp_path / "probe", LinearProbe(4, 2))
    with pytest.raises(CheckpointError, match="LinearProbe"):
        join_checkpoint(tmp_path / "x.pth", head=tmp_path / "probe")
    with pytest.raises(CheckpointError, match="nothing to convert"):
        join_checkpoint(tmp_path / "x.pth")


def test_a_head_that_does_not_fit_its_record_is_refused(tmp_path, saved):
    content = torch.load(saved[1], weights_only=False)
    content["state_dict"].pop("cls_head.head.classifier.bias")
    torch.save({"state_dict": content["state_dict"]}, tmp_path / "cut.pth")
    with pytest.raises(CheckpointError, match="its head cannot be built .*classifier.bias"):
        split_checkpoint(tmp_path / "cut.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_head_alone_becomes_a_checkpoint(tmp_path):
    head = DSTSHead.paper(8, 3, num_neurons=2, num_layers=1)
    save_head(tmp_path / "head", head)
    join_checkpoint(tmp_path / "h.pth", head=tmp_path / "head")
    split_checkpoint(tmp_path / "h.pth", tmp_path / "out")
    again, _ = load_head(tmp_path / "out" / "head")
    assert again.config == head.config
    for name, value in again.state_dict().items():
        assert torch.equal(value, head.state_dict()[name])
