"""An epoch's sums: loss, accuracy and routing entropy as they are shown, saved and summarized."""

from __future__ import annotations

import json

import pytest
import torch

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head import DSTSHead, LayerRecord, LinearProbe
from dsts_pipeline.learn.processes import ALONE
from dsts_pipeline.learn.steps import StepResult
from dsts_pipeline.learn.training import Tally


def result_of(loss, choices, right):
    """Four clips in two parts of two, of class 0; the first `right` are recognized."""
    logits = torch.zeros(4, 3)
    logits[:right, 0], logits[right:, 1] = 1.0, 1.0
    parts = [[LayerRecord(torch.tensor(c), None) for c in part] for part in choices]
    return StepResult(
        torch.tensor(loss, dtype=torch.float64), logits, [tuple(part) for part in parts]
    )


BATCH = FeatureBatch(torch.zeros(4, 6, 1, 2, 2), torch.zeros(4, dtype=torch.int64), torch.arange(4))


def filled():
    tally = Tally(DSTSHead.paper(6, 3, num_neurons=2, num_layers=2), ALONE)
    tally.add(result_of(1.0, [[[0, 0], [0, 1]], [[0, 0], [1, 1]]], right=1), BATCH)
    tally.add(result_of(2.0, [[[0, 0], [0, 1]], [[0, 0], [1, 0]]], right=3), BATCH)
    assert tally.num_clips == 0  # on the device until they are read
    tally.read()
    return tally


def test_means_are_over_clips_and_parts():
    tally = filled()
    assert tally.describe() == "loss 1.500, accuracy 50.0 %, entropy 0.00 0.66"
    assert tally.usage.tolist() == [[8, 0], [3, 5]]
    assert tally.routing.shape == (8, 2)
    assert tally.routing.sum(dim=0).tolist() == tally.usage[:, 1].tolist()


def test_saved_values_go_on_exactly():
    tally, again = filled(), Tally(DSTSHead.paper(6, 3, num_neurons=2, num_layers=2), ALONE)
    again.load(json.loads(json.dumps(tally.state())))
    assert again.state() == tally.state()
    again.add(result_of(0.3, [[[0, 1], [0, 1]], [[0, 0], [1, 1]]], right=0), BATCH)
    again.read()
    assert again.loss == tally.loss + 4 * 0.3


@pytest.mark.parametrize(
    "head", [LinearProbe(6, 3), DSTSHead.paper(6, 3, num_neurons=2, num_layers=1, synapse=False)]
)
def test_a_head_that_routes_nothing_has_no_routing(head):
    tally = Tally(head, ALONE)
    tally.add(StepResult(torch.tensor(1.0), torch.zeros(4, 3), []), BATCH)
    assert tally.routing is None and "entropy" not in tally.describe()
