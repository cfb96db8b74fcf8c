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
