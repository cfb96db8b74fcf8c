"""What an epoch has come to so far: clips, loss, accuracy, which neurons were used.

Enters: the results of steps. Leaves: means over the epoch's clips, of all processes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.head.inspection import usage_entropy
from dsts_pipeline.learn.parts import dsts_of
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.steps import StepResult


class Tally:
    """Sums over an epoch's clips; `usage [L, N]` counts the samples of every neuron.

    Args:
        head: Whose layers and neurons.
        processes: Whose clips count.
    """

    def __init__(self, head: torch.nn.Module, processes: Processes) -> None:
        dsts = dsts_of(head)
        layers = [] if dsts is None else list(dsts.dsts_layers())
        routed = bool(layers) and layers[0].options.synapse
        self.processes = processes
        self.num_clips, self.num_correct, self.loss, self.seconds = 0, 0, 0.0, 0.0
        num_neurons = layers[0].num_neurons if routed else 0
        self.usage = torch.zeros(len(layers) if routed else 0, num_neurons, dtype=torch.int64)

    def add(self, result: StepResult, batch: FeatureBatch) -> None:
        """One more batch of every process."""
        correct = int((result.logits.argmax(dim=1) == batch.labels).sum())
        counts = [torch.tensor([len(batch), correct])]
        for layer in range(len(self.usage)):
            choices = [part[layer].choice for part in result.records]
            joined = torch.cat([choice for choice in choices if choice is not None])
            counts.append(torch.bincount(joined, minlength=self.usage.shape[1]).cpu())
        total = self.processes.sum_numbers(torch.cat(counts)).cpu()
        num_clips = int(total[0])
        self.num_clips += num_clips
        self.num_correct += int(total[1])
        self.loss += result.loss * num_clips
        self.usage += total[2:].view_as(self.usage)

    @property
    def routing(self) -> Tensor | None:
        """The neurons that samples went to, `[n, L]`, in no particular order; None if none."""
        if not len(self.usage):
            return None
        neurons = torch.arange(self.usage.shape[1])
        return torch.stack([neurons.repeat_interleave(counts) for counts in self.usage], dim=1)

    def describe(self) -> str:
        """Loss, accuracy and the entropy of every layer's routing, in a line."""
        count = max(self.num_clips, 1)
        text = f"loss {self.loss / count:.3f}, accuracy {100 * self.num_correct / count:.1f} %"
        if not len(self.usage):
            return text
        shares = self.usage.double() / count
        return f"{text}, entropy " + " ".join(f"{usage_entropy(share):.2f}" for share in shares)

    def state(self) -> dict[str, Any]:
        """Plain values, for `load`."""
        names = "num_clips", "num_correct", "loss", "seconds"
        return {name: getattr(self, name) for name in names} | {"usage": self.usage.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from saved values."""
        for name in ("num_clips", "num_correct", "loss", "seconds"):
            setattr(self, name, state[name])
        self.usage = torch.tensor(state["usage"], dtype=torch.int64).view_as(self.usage)
