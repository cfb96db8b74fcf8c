"""The classifier of a weights file: taken where it fits the classes, left where it does not."""

from __future__ import annotations

import safetensors.torch
import torch

from dsts_pipeline.extract.weights import CLASSIFIER_BIAS, CLASSIFIER_WEIGHT, find_classifier


def write(path, state) -> None:
    path.write_bytes(safetensors.torch.save(state))


def test_classifier_is_found_where_it_fits(tmp_path):
    path = tmp_path / "weights.safetensors"
    weight, bias = torch.randn(5, 8), torch.randn(5)
    write(path, {CLASSIFIER_WEIGHT: weight.half(), CLASSIFIER_BIAS: bias})
    found = find_classifier(path, 8, 5)
    assert found is not None and found[0].dtype == torch.float32
    assert torch.equal(found[0], weight.half().float()) and torch.equal(found[1], bias)
    assert find_classifier(path, 8, 6) is None, "other classes"
    assert find_classifier(path, 9, 5) is None, "other maps"


def test_a_file_without_classifier_has_none(tmp_path):
    write(tmp_path / "weights.safetensors", {"backbone.conv": torch.zeros(2)})
    assert find_classifier(tmp_path / "weights.safetensors", 8, 5) is None
