"""Heads survive the way to disk and back; what does not fit is refused in words."""

from __future__ import annotations

import json

import pytest
import torch

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.head import DSTSHead, LinearProbe, load_head, save_head


@pytest.fixture
def saved(tmp_path):
    head = DSTSHead(6, 3, num_neurons=2, num_layers=2, width=4, impulse="standardized")
    head(torch.randn(8, 6, 3, 3, 3))  # moves the running statistics
    save_head(tmp_path, head, {"classes": ["a", "b", "c"]})
    return head.eval(), tmp_path


def test_round_trip(saved):
    head, directory = saved
    loaded, extra = load_head(directory)
    maps = torch.randn(4, 6, 3, 3, 3)
    assert torch.equal(loaded(maps), head(maps))
    assert extra == {"classes": ["a", "b", "c"]}
    assert not loaded.training


def test_round_trip_of_a_baseline(tmp_path):
    probe = LinearProbe(6, 3)
    save_head(tmp_path, probe)
    assert torch.equal(load_head(tmp_path)[0].classifier.weight, probe.classifier.weight)


def test_same_head_same_bytes(saved, tmp_path_factory):
    head, directory = saved
    again = tmp_path_factory.mktemp("again")
    save_head(again, head, {"classes": ["a", "b", "c"]})
    for name in ("head.json", "head.safetensors"):
        assert (again / name).read_bytes() == (directory / name).read_bytes()


def _change_arguments(directory, **changes):
    record = json.loads((directory / "head.json").read_text())
    record["arguments"] |= changes
    (directory / "head.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "head.json").unlink(), "holds no finished head"),
        (lambda d: (d / "head.json").write_text("{"), "holds no finished head"),
        (lambda d: (d / "head.json").write_text("{}"), "not a head of format"),
        (lambda d: (d / "head.safetensors").unlink(), "does not fit"),
        (lambda d: (d / "head.safetensors").write_bytes(b"\0" * 64), "does not fit"),
        (lambda d: _change_arguments(d, num_neurons=3), "size mismatch"),
        (lambda d: _change_arguments(d, num_layers=1), "Unexpected key"),
        (lambda d: _change_arguments(d, num_neurons=0), "can build"),
        (lambda d: _change_arguments(d, colour="red"), "can build"),
    ],
)
def test_misfits_are_refused(saved, damage, message):
    _, directory = saved
    damage(directory)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_head(directory)
    assert "train-head" in str(caught.value)
