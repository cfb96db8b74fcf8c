"""A moving average of the weights, which often generalizes better than the last weights.

`a <- m a + (1 - m) w` after every step, with `m = min(decay, (1 + n) / (10 + n))` after n steps, so
that the start is forgotten. Source: Tarvainen & Valpola 2017 (mean teacher). Deviation: not in the
paper; off by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The average of a head's parameters; its buffers are not averaged but recomputed.

    Args:
        head: Whose parameters.
        decay: In (0, 1).
    """

    def __init__(self, head: nn.Module, decay: float) -> None:
        self.head, self.decay, self.num_steps = head, decay, 0
        self.values = {name: p.detach().clone() for name, p in head.named_parameters()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the head's present weights."""
        self.num_steps += 1
        share = 1.0 - min(self.decay, (1.0 + self.num_steps) / (10.0 + self.num_steps))
        for name, parameter in self.head.named_parameters():
            self.values[name].lerp_(parameter, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the head has the averaged weights; then its own values, buffers too."""
        own = {name: value.clone() for name, value in self.head.state_dict().items()}
        self.apply()
        try:
            yield
        finally:
            self.head.load_state_dict(own)

    @torch.no_grad()
    def apply(self) -> None:
        """Give the head the averaged weights for good."""
        for name, parameter in self.head.named_parameters():
            parameter.copy_(self.values[name])

    def load(self, values: dict[str, Tensor], num_steps: int) -> None:
        """Go on from a saved average."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.num_steps = num_steps
