"""Bad arguments and bad maps get a message that says what was found and what to do."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.head import DSTSHead


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_neurons": 0}, "num_neurons=0; expected greater than or equal to 1"),
        ({"num_layers": -1}, "num_layers=-1; expected greater than or equal to 0"),
        ({"width": None, "bottleneck": 9}, "bottleneck=9 is above in_channels=8"),
        ({"width": 0}, "width=0; expected greater than or equal to 1"),
        (
            {"specialization": "gate"},
            "specialization='gate'; expected 'gated', 'fixed', 'ungated' or 'conv3d'",
        ),
        ({"impulse": "max"}, "impulse='max'"),
        ({"routing_gradient": "top1"}, "routing_gradient='top1'"),
        ({"temperature": 0.0}, "temperature=0.0; expected greater than 0"),
        ({"gate_noise_scale": -1.0}, "gate_noise_scale=-1.0; expected greater than or equal to 0"),
        ({"norm_statistics": "batch", "routing_gradient": "selected"}, "needs the outputs of all"),
        ({"zero_start": True, "skip": False}, "would ignore the input"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        DSTSHead.paper(8, 3, **arguments)


@pytest.fixture
def head():
    return DSTSHead.paper(8, 3, num_neurons=2, num_layers=1)


@pytest.mark.parametrize("shape", [(8, 2, 3, 3), (2, 7, 2, 3, 3), (2, 2, 3, 3, 8)])
def test_wrong_shape(head, shape):
    with pytest.raises(ValueError, match=r"expected \[B, C, T, H, W\] with C = 8"):
        head(torch.zeros(shape))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity(head, value):
    maps = torch.zeros(2, 8, 2, 3, 3)
    maps[1, 2, 0, 1, 1] = value
    with pytest.raises(ValueError, match=r"sample 1 .*NaN or infinity"):
        head.eval()(maps)
    with pytest.raises(ValueError, match=r"sample 1 .*NaN or infinity"):
        head.check_values(maps)  # what a training asks where nobody waits for the answer
    assert head.train()(maps).isnan().any()


def test_no_time_extent_warns(head):
    with pytest.warns(UserWarning, match="T = 1.*pools time"):
        head(torch.zeros(2, 8, 1, 3, 3))


def test_routing_without_synapse():
    head = DSTSHead.paper(8, 3, num_neurons=2, num_layers=1, synapse=False)
    with pytest.raises(ValueError, match="nothing is routed"):
        head.routing(torch.zeros(2, 8, 2, 3, 3))
