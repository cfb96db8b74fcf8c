"""Heads survive the way to disk and back; what does not fit is refused in words."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import sign
from dsts_pipeline.head import DSTSHead, LinearProbe, load_head, save_head


@pytest.fixture
def saved(tmp_path):
    head = DSTSHead.paper(6, 3, num_neurons=2, num_layers=2, width=4, impulse="standardized")
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
    (directory / "head.json").write_text(json.dumps(sign(record)))


def test_what_an_older_file_does_not_name_is_as_in_the_paper(saved):
    head, directory = saved
    record = json.loads((directory / "head.json").read_text())
    for name in ("layer_residual", "zero_start", "routing_gradient", "impulse_gradient"):
        del record["arguments"][name]
    (directory / "head.json").write_text(json.dumps(sign(record)))
    loaded, _ = load_head(directory)
    assert loaded.config == head.config
    maps = torch.randn(4, 6, 3, 3, 3)
    assert torch.equal(loaded(maps), head(maps))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "head.json").unlink(), "holds no finished head"),
        (lambda d: (d / "head.json").write_text("{"), "holds no finished head"),
        (lambda d: (d / "head.json").write_text("{}"), "not a head of format"),
        (lambda d: (d / "head.safetensors").unlink(), "does not fit"),
        (lambda d: (d / "head.safetensors").write_bytes(b"\0" * 64), "its sha256 is"),
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


# ---- damage that fits -------------------------------------------------------------------------


def flip_bit(path, byte, bit=6):
    content = bytearray(path.read_bytes())
    content[byte] ^= 1 << bit
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("byte", [-1, -200, 300, 10, 0])
def test_one_changed_bit_of_the_weights_is_refused(saved, byte):
    _, directory = saved
    flip_bit(directory / "head.safetensors", byte)
    with pytest.raises(CheckpointError, match=r"head.safetensors: its sha256 is .*train-head"):
        load_head(directory)


def test_rolled_tensors_are_refused(saved):
    """A sound file of the right names and shapes: strict loading can't tell."""
    _, directory = saved
    tensors = load_file(directory / "head.safetensors")
    rolled = {name: v.flatten().roll(1).reshape(v.shape) for name, v in tensors.items()}
    save_file(rolled, directory / "head.safetensors")
    with pytest.raises(CheckpointError, match="damaged, or of another head"):
        load_head(directory)


def test_every_changed_bit_of_the_record_is_refused(saved):
    _, directory = saved
    path = directory / "head.json"
    content = path.read_bytes()
    for byte in range(len(content)):
        flip_bit(path, byte, bit=byte % 7)
        if path.read_bytes().strip() != content.strip():
            with pytest.raises(CheckpointError):
                load_head(directory)
        path.write_bytes(content)


def make_old(directory):
    """As an earlier release wrote it."""
    record = json.loads((directory / "head.json").read_text())
    del record["digest"], record["weights_sha256"]
    (directory / "head.json").write_text(json.dumps(record))


def test_a_head_without_digests_is_loaded_with_a_warning_told_once(saved, tmp_path_factory):
    head, directory = saved
    other = tmp_path_factory.mktemp("other")
    save_head(other, LinearProbe(6, 3))
    for folder in (directory, other):
        make_old(folder)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("default")
        for folder in (directory, directory, other):
            load_head(folder)
    assert len(told) == 1 and "holds no digest" in str(told[0].message)
    assert torch.equal(load_old(directory).classifier.weight, head.classifier.weight)


def load_old(directory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_head(directory)[0]
