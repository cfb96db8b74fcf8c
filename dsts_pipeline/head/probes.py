"""Heads to compare with on the same cached maps: linear and attentive probe, convolution blocks.

Enters: `x [B, C, T, H, W]`. Leaves: logits `[B, K]`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dsts_pipeline.extract.gst import GSTBlock
from dsts_pipeline.head.norms import BatchNorm3d
from dsts_pipeline.head.readout import ReadoutHead, grid_of, tokens_of


class LinearProbe(ReadoutHead):
    """A linear classifier on the globally averaged map; also holds a backbone's own classifier.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
        readout_dropout: Share of channels that a training pass drops before the classifier.

    Examples:
        >>> LinearProbe(8, 3)(torch.zeros(4, 8, 2, 3, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(self, in_channels: int, num_classes: int, *, readout_dropout: float = 0.0) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "readout_dropout": readout_dropout,
        }
        self._add_readout(in_channels, num_classes, readout_dropout=readout_dropout)

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        return self.classify(x.mean(dim=(2, 3, 4)), noise)


class AttentiveProbe(ReadoutHead):
    """An attentive pooler over all positions of the map, then a linear classifier.

    Args:
        in_channels: C of the feature map, a multiple of `readout_heads`.
        num_classes: K.
        readout: Options of a `ReadoutHead`; V-JEPA 2's probe has readout_depth=4, readout_heads=16.

    Raises:
        ValueError: `in_channels`, or the readout's width, is no multiple of `readout_heads`.
    """

    def __init__(self, in_channels: int, num_classes: int, **readout: Any) -> None:
        super().__init__()
        self.config: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes}
        self.config |= self._add_readout(in_channels, num_classes, "attentive", **readout)
        del self.config["readout"]

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        assert self.pooler is not None
        return self.classify(self.pooler(tokens_of(x), grid_of(x)), noise)


OwnHead = LinearProbe | AttentiveProbe  # what a backbone is published with


class ConvBlockHead(ReadoutHead):
    """One 3x3x3 convolution block with as many parameters as a DSTS module, on the same skip path.

    `logits = classifier(pool(X + out(relu(bn(conv(in(X)))))))`: what DSTS's parameters are worth
    without specialization. Its middle width w solves `2 C w + 27 w^2 + 2 w = num_parameters`.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
        num_parameters: Of the block, without readout and classifier; met to the nearest width.
        zero_start: The block's last projection starts at zero, as in `DSTSHead`.
        readout: Options of a `ReadoutHead`.

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
        **readout: Any,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "num_parameters": num_parameters,
            "zero_start": zero_start,
        }
        self.config |= self._add_readout(in_channels, num_classes, **readout)
        linear = 2 * in_channels + 2
        width = round((math.sqrt(linear**2 + 108 * max(num_parameters, 0)) - linear) / 54)
        if width < 1:
            raise ValueError(
                f"num_parameters={num_parameters} is too few for a block on {in_channels} "
                f"channels; expected at least {linear + 27}"
            )
        self.project_in = nn.Conv3d(in_channels, width, 1, bias=False)
        self.convolution = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.norm = BatchNorm3d(width)
        self.project_out = nn.Linear(width, in_channels, bias=False)
        if zero_start:
            nn.init.zeros_(self.project_out.weight)

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        hidden = torch.relu(self.norm(self.convolution(self.project_in(x))))
        if self.pooler is None:
            vector = x.mean(dim=(2, 3, 4)) + self.project_out(hidden.mean(dim=(2, 3, 4)))
        else:
            vector = self.pooler(tokens_of(x) + self.project_out(tokens_of(hidden)), grid_of(x))
        return self.classify(vector, noise)


class GSTHead(ReadoutHead):
    """`classifier(pool(block(...block(X))))`: the last stage of GST's network, on a frozen map.

    Its blocks have spatial and temporal convolutions with fixed shares of the channels, which
    DSTS's gates choose for each neuron. A row of the paper's Table 2. Source: `extract.gst`.

    Args:
        in_channels: C of the feature map.
        num_classes: K.
        num_layers: Blocks; 3 as in ResNet-50's last stage.
        width: Channels inside a block, a multiple of 4; None (GST): C / 4.
        zero_start: The last norm of each block starts at zero, so that the first logits are those
            of the classifier on relu(X). Deviation: not in GST.
        readout: Options of a `ReadoutHead`.

    Raises:
        ValueError: `width` (or C / 4) is no multiple of 4.

    Examples:
        >>> GSTHead(16, 3, num_layers=1)(torch.zeros(4, 16, 2, 3, 3)).shape
        torch.Size([4, 3])
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        num_layers: int = 3,
        width: int | None = None,
        zero_start: bool = False,
        **readout: Any,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "in_channels": in_channels,
            "num_classes": num_classes,
            "num_layers": num_layers,
            "width": width,
            "zero_start": zero_start,
        }
        self.config |= self._add_readout(in_channels, num_classes, **readout)
        planes = in_channels // 4 if width is None else width
        blocks = [
            GSTBlock(in_channels, in_channels, planes, norm=BatchNorm3d) for _ in range(num_layers)
        ]
        if zero_start:
            for block in blocks:
                nn.init.zeros_(block.bn3.weight)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        x = self.blocks(x)
        if self.pooler is None:
            return self.classify(x.mean(dim=(2, 3, 4)), noise)
        vector = self.pooler(tokens_of(x), grid_of(x))
        return self.classify(vector, noise)


def count_parameters(head: nn.Module, *, with_pooler: bool = True) -> int:
    """Parameters of `head` without its classifier, and maybe without its attentive pooler.

    Examples:
        >>> count_parameters(LinearProbe(8, 3))
        0
    """
    left_out = ["classifier."] if with_pooler else ["classifier.", "pooler."]
    counted = (p for name, p in head.named_parameters() if not name.startswith(tuple(left_out)))
    return sum(parameter.numel() for parameter in counted)
