"""Random draws of one training forward pass, made once and passed in.

Enters: sizes and a `torch.Generator`. Leaves: a `LayerNoise` per layer. The same draw can be used
twice, which is what UDL's first step and its derivative need, and what comparisons with the
literal reference need. No noise at all means the decisions of test time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class LayerNoise(NamedTuple):
    """The noise of one DSTS layer.

    gumbel: `[B, N]` standard Gumbel values, added to the impulses.
    gate_normal: `[N, C]` standard normal values, added to the gate logits.
    gate_hard: `[N]` bool, whether a neuron's gates are taken hard (else soft) in this pass.

    Choice: one gate draw per neuron and pass, shared by the batch (the paper states batch size 1);
    so gates fold into kernels. Choice: the hard or soft coin is tossed per neuron.
    """

    gumbel: Tensor
    gate_normal: Tensor
    gate_hard: Tensor

    def scaled(self, factor: float) -> LayerNoise:
        """With Gumbel and normal values times `factor`; the coins stay."""
        return self._replace(gumbel=factor * self.gumbel, gate_normal=factor * self.gate_normal)


def draw_layer_noise(
    num_samples: int,
    num_neurons: int,
    channels: int,
    *,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> LayerNoise:
    """Draw the noise of one layer for a batch of `num_samples`.

    Args:
        generator: Source of randomness on `device`; None is torch's global one.

    Returns:
        `LayerNoise` with shapes `[B, N]`, `[N, C]` and `[N]`.
    """
    like = torch.empty(0, device=device, dtype=dtype)
    exponential = like.new_empty(num_samples, num_neurons).exponential_(generator=generator)
    normal = like.new_empty(num_neurons, channels).normal_(generator=generator)
    coin = like.new_empty(num_neurons).uniform_(generator=generator)
    return LayerNoise(-exponential.log(), normal, coin < 0.5)
