"""Heads to compare with on the same cached maps: a linear probe and one 3-D convolution block.

Enters: `x [B, C, T, H, W]`. Leaves: logits `[B, K]`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class LinearProbe(nn.Module):
    """A linear classifier on the globally averaged map; also holds a backbone's own classifier.

    Args:
        in_channels: C of the feature map.
        num_classes: K.

    Examples:
        >>> LinearProbe(8, 3)(torch.zeros(4, 8, 2, 3, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        return self.classifier(x.mean(dim=(2, 3, 4)))


class ConvBlockHead(nn.Module):
    """One 3x3x3 convolution block with as many parameters as a DSTS module, on the same skip path.

    `logits = classifier(pool(X + out(relu(bn(conv(in(X)))))))`: what DSTS's parameters are worth
    without specialization. Its middle width w solves `2 C w + 27 w^2 + 2 w = num_parameters`.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
        num_parameters: Of the block, without the classifier; met to the nearest whole width.
        zero_start: The block's last projection starts at zero, as in `DSTSHead`.

    Raises:
        ValueError: Too few parameters for a block of one channel.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_parameters: int,
        zero_start: bool = False,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "num_parameters": num_parameters,
            "zero_start": zero_start,
        }
        linear = 2 * in_channels + 2
        width = round((math.sqrt(linear**2 + 108 * max(num_parameters, 0)) - linear) / 54)
        if width < 1:
            raise ValueError(
                f"num_parameters={num_parameters} is too few for a block on {in_channels} "
                f"channels; expected at least {linear + 27}"
            )
        self.project_in = nn.Conv3d(in_channels, width, 1, bias=False)
        self.convolution = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(width)
        self.project_out = nn.Linear(width, in_channels, bias=False)
        self.classifier = nn.Linear(in_channels, num_classes)
        if zero_start:
            nn.init.zeros_(self.project_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        hidden = torch.relu(self.norm(self.convolution(self.project_in(x))))
        pooled = self.project_out(hidden.mean(dim=(2, 3, 4)))
        return self.classifier(x.mean(dim=(2, 3, 4)) + pooled)


def count_parameters(head: nn.Module) -> int:
    """Parameters of `head` without its classifier.

    Examples:
        >>> count_parameters(LinearProbe(8, 3))
        0
    """
    total = sum(parameter.numel() for parameter in head.parameters())
    classifier = getattr(head, "classifier", None)
    if not isinstance(classifier, nn.Module):
        return total
    return total - sum(parameter.numel() for parameter in classifier.parameters())


# ---- attentive probe -----------------------------------------------------------------------------
#
# Cross-attention pooling by one learned query, then a linear classifier. Source: the frozen
# evaluation of V-JEPA (Bardes et al. 2024, "Revisiting Feature Prediction for Learning Visual
# Representations from Video", section 4 and its attentive pooler of depth one: cross-attention and
# an MLP, both residual and pre-normalised).


class AttentiveProbe(nn.Module):
    """One cross-attention block over all positions of the map.

    Args:
        in_channels: C of the feature map, a multiple of `num_heads`.
        num_classes: K.
        num_heads: Attention heads (V-JEPA: 12 or 16 at C = 768 to 1280).
        mlp_ratio: Hidden channels of the MLP over C.

    Raises:
        ValueError: `in_channels` is no multiple of `num_heads`.
    """

    def __init__(
        self, in_channels: int, num_classes: int, *, num_heads: int = 8, mlp_ratio: float = 4.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or in_channels % num_heads:
            raise ValueError(
                f"in_channels={in_channels} is no multiple of num_heads={num_heads}; "
                "choose a number of heads that divides it"
            )
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "num_heads": num_heads,
            "mlp_ratio": mlp_ratio,
        }
        hidden = int(in_channels * mlp_ratio)
        self.num_heads = num_heads
        self.query = nn.Parameter(torch.empty(in_channels))
        self.input_norm = nn.LayerNorm(in_channels)
        self.to_query = nn.Linear(in_channels, in_channels)
        self.to_key_value = nn.Linear(in_channels, 2 * in_channels)
        self.mix = nn.Linear(in_channels, in_channels)
        self.mlp_norm = nn.LayerNorm(in_channels)
        self.mlp = nn.Sequential(
            nn.Linear(in_channels, hidden), nn.GELU(), nn.Linear(hidden, in_channels)
        )
        self.classifier = nn.Linear(in_channels, num_classes)
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        return self.classifier(self.pool(x))

    def pool(self, x: Tensor) -> Tensor:
        """The attended vector `[B, C]`."""
        tokens = self.input_norm(x.flatten(2).transpose(1, 2))  # [B, P, C]
        batch, positions, channels = tokens.shape
        per_head = channels // self.num_heads
        key, value = (
            part.view(batch, positions, self.num_heads, per_head).transpose(1, 2)
            for part in self.to_key_value(tokens).chunk(2, dim=-1)
        )
        query = self.to_query(self.query).view(1, self.num_heads, 1, per_head)
        attended = nn.functional.scaled_dot_product_attention(
            query.expand(batch, -1, -1, -1), key, value
        )
        pooled = self.query + self.mix(attended.transpose(1, 2).reshape(batch, channels))
        return pooled + self.mlp(self.mlp_norm(pooled))
