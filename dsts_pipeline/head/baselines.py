"""Heads to compare with on the same cached maps."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


class LinearProbe(nn.Module):
    """A linear classifier on the globally averaged map; also holds a backbone's own classifier.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
        self.classifier = nn.Linear(in_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`."""
        return self.classifier(x.mean(dim=(2, 3, 4)))
