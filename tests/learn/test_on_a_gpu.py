"""Training on a GPU: the CPU's values, stops that change nothing, many heads in one pass."""

from __future__ import annotations

import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.head.routing import LayerNoise, draw_layer_noise
from dsts_pipeline.learn import CheckpointOptions, train_head
from dsts_pipeline.learn.graphs import CudaRecording
from dsts_pipeline.learn.passes import evaluate_rows
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.together import Member, Together
from tests.learn.ablation.variants import build, feed, options_of
from tests.learn.recipes import how, recipe
from tests.learn.small_feed import ordered_feed
from tests.learn.train_process import COMMON, VARIANTS, ReportingFeed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
CPU, GPU = torch.device("cpu"), torch.device("cuda")


class CpuNoiseHead(DSTSHead):
    """Its noise is drawn on the CPU, so that both devices have the same."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.source = torch.Generator().manual_seed(0)

    def draw_noise(self, num_samples, generator=None):
        like = self.classifier.weight
        drawn = [
            draw_layer_noise(
                num_samples,
                layer.num_neurons,
                layer.channels,
                generator=self.source,
                dtype=like.dtype,
            )
            for layer in self.dsts_layers()
        ]
        return tuple(LayerNoise(*(part.to(like.device) for part in one)) for one in drawn)


def train(name, device, on_read=lambda: None, checkpoints=None, kind=DSTSHead, **changes):
    """The values of a variant trained in float64, which rounding doesn't send other ways."""
    settings, options = VARIANTS[name]
    options = options | changes
    torch.manual_seed(1)
    head = kind.paper(6, 4, **settings).double()
    processes = Processes(device=device)
    maps = ReportingFeed(on_read, double=True)
    train_head(head, maps, processes=processes, checkpoints=checkpoints, **how(**COMMON | options))
    return {name: value.cpu() for name, value in head.state_dict().items()}


def assert_same(found, wanted):
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ["udl", "paper", "plain"])
def test_both_devices_train_the_same_head(name):
    first, second = (train(name, device, kind=CpuNoiseHead) for device in (GPU, CPU))
    assert_same(first, second)


@pytest.mark.parametrize("name", ["udl", "paper", "options", "plain"])
def test_captured_iterations_change_nothing(name, monkeypatch):
    captured = []
    capture = CudaRecording.capture

    def counting(self, make):
        captured.append(self)
        return capture(self, make)

    monkeypatch.setattr(CudaRecording, "capture", counting)
    found = train(name, GPU)
    assert captured
    assert_same(found, train(name, GPU, cuda_graph="off"))


def test_a_loss_that_is_not_finite_names_its_batch():
    """Steps later, when the losses are read."""
    torch.manual_seed(1)
    head = DSTSHead.paper(6, 4, **VARIANTS["udl"][0])
    with pytest.raises(
        SettingsError, match=r"the loss is .* in epoch \d+, step \d+ \(batch \d+; its"
    ):
        train_head(
            head,
            ReportingFeed(lambda: None),
            processes=Processes(device=GPU),
            **how(**COMMON | {"learning_rate": 1e30, "num_epochs": 3}),
        )


@pytest.mark.parametrize("name", ["udl", "options", "plain"])
def test_a_crash_on_a_gpu_changes_nothing(name, tmp_path):
    """The generator of the noise is the device's, and part of the checkpoint."""
    reads = []
    wanted = train(name, GPU, lambda: reads.append(0))
    for share in (0.3, 0.6, 0.9):
        left = [int(share * len(reads))]

        def crash(left=left):
            left[0] -= 1
            if left[0] == 0:
                raise InterruptedError

        options = CheckpointOptions(tmp_path / str(share), every_batches=2)
        with pytest.raises(InterruptedError):
            train(name, GPU, crash, options)
        seen = []
        assert_same(train(name, GPU, lambda seen=seen: seen.append(0), options), wanted)
        assert len(seen) < len(reads)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_learns_in_every_precision(precision):
    torch.manual_seed(0)
    head = DSTSHead.paper(
        6, 4, num_neurons=1, num_layers=1, impulse="standardized", impulse_spread=5.0
    )
    options = {"batch_size": 16, "learning_rate": 0.02, "gate_learning_rate_factor": 10.0}
    options |= {"num_epochs": 16, "precision": precision}
    train_head(head, ordered_feed(), processes=Processes(device=GPU), **how(**options))
    test = ordered_feed(64, seed=1)
    assert evaluate_rows(head.cpu(), test, test.rows, batch_size=64).accuracy > 0.8


def test_one_pass_trains_each_as_if_alone():
    """To rounding: the GPU adds in an order of its own, so only the first epoch is compared."""
    names, common, on_gpu = (
        ["full", "dense", "all averaged", "attention"],
        feed(),
        Processes(device=GPU),
    )
    members = [
        Member(
            name,
            lambda name=name: build(name),
            common,
            recipe(**options_of(name, num_epochs=1)),
            on_gpu,
        )
        for name in names
    ]
    Together(members, common, GPU).run()
    for trained in members:
        alone = build(trained.name)
        options = how(**options_of(trained.name, num_epochs=1))
        train_head(alone, feed(), processes=on_gpu, **options)
        for name, value in alone.state_dict().items():
            found = trained.training.head.state_dict()[name]
            torch.testing.assert_close(found, value, rtol=1e-2, atol=1e-3, msg=name)
