"""What a training shows while it runs: loss, accuracy, samples a second, routing entropy."""

from __future__ import annotations

import io
import re

import pytest
import torch
from rich.console import Console

from dsts_pipeline.base import progress
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn import train_head
from tests.learn.recipes import how
from tests.learn.small_feed import ordered_feed


@pytest.mark.parametrize("is_terminal", [True, False])
def test_loss_accuracy_rate_and_entropy_of_every_layer(monkeypatch, is_terminal):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=is_terminal, width=160, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    torch.manual_seed(0)
    head = DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, width=4)
    (entry,) = train_head(
        head, ordered_feed(), title="Training", **how(num_epochs=1, batch_size=16)
    )
    shown = stream.getvalue()
    rate = r"[\d,]+\.\d clips/s" if is_terminal else r"64/64 clips, [\d,]+\.\d/s"
    assert re.search(rate, shown), shown
    loss, accuracy = entry["train_loss"], 100 * entry["train_accuracy"]
    entropies = " ".join(f"{layer['entropy']:.2f}" for layer in entry["layers"])
    assert f"loss {loss:.3f}, accuracy {accuracy:.1f} %, entropy {entropies}" in shown
