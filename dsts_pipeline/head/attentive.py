"""Attentive probe: cross-attention pooling by one learned query, then a linear classifier.

Enters: `x [B, C, T, H, W]`. Leaves: logits `[B, K]`. Source: the frozen evaluation of V-JEPA
(Bardes et al. 2024, "Revisiting Feature Prediction for Learning Visual Representations from
Video", section 4 and its attentive pooler of depth one: cross-attention and an MLP, both residual
and pre-normalised).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


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
