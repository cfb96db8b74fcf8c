"""GST's blocks as a head on cached maps: a row of the paper's Table 2.

Enters: `x [B, C, T, H, W]`. Leaves: logits `[B, K]`. Between: blocks of parallel spatial and
temporal convolutions with fixed shares of the channels, what DSTS's gates choose for each neuron.

Source: Luo & Yuille 2019, arXiv 1909.13130 (`extract.gst`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dsts_pipeline.extract.gst import GSTBlock
from dsts_pipeline.head.readout import ReadoutHead, tokens_of


class GSTHead(ReadoutHead):
    """`classifier(pool(block(...block(X))))`: the last stage of GST's network, on a frozen map.

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
        blocks = [GSTBlock(in_channels, in_channels, planes) for _ in range(num_layers)]
        if zero_start:
            for block in blocks:
                nn.init.zeros_(block.bn3.weight)
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor, noise: Sequence[Any] | None = None) -> Tensor:
        """Logits `[B, K]` of `x [B, C, T, H, W]`; `noise` as `draw_noise` gives it."""
        x = self.blocks(x)
        vector = x.mean(dim=(2, 3, 4)) if self.pooler is None else self.pooler(tokens_of(x))
        return self.classify(vector, noise)
