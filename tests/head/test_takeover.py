"""Step zero of the default head is the baseline."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.head import DSTSHead, LinearProbe, take_over_classifier
from dsts_pipeline.head.dsts import NOT_OF_DSTS


def default_head(**changes):
    arguments = {**HeadSettings().model_dump(exclude=NOT_OF_DSTS), **changes}
    return DSTSHead.paper(40, 6, **arguments)


@pytest.mark.parametrize("changes", [{}, {"width": None}, {"num_layers": 0}, {"synapse": False}])
@pytest.mark.parametrize("training", [False, True])
def test_first_logits_are_the_baselines(changes, training):
    baseline, head = LinearProbe(40, 6), default_head(**changes)
    take_over_classifier(head, baseline.classifier.weight, baseline.classifier.bias)
    maps = torch.randn(7, 40, 3, 4, 4)
    head.train(training)
    torch.testing.assert_close(head(maps), baseline(maps), rtol=1e-6, atol=1e-6)


def test_the_correction_can_leave_zero():
    head = default_head()
    head(torch.randn(7, 40, 3, 4, 4)).square().sum().backward()
    assert head.project_out.weight.grad.abs().max() > 0


def test_another_number_of_classes_is_refused():
    with pytest.raises(CheckpointError, match=r"weight \(5, 40\).*expects \(6, 40\)"):
        take_over_classifier(default_head(), torch.zeros(5, 40), torch.zeros(5))
