"""GST: spatial and temporal convolutions side by side, with fixed shares of a ResNet-50's channels.

Enters: frames `[B, 3, T, H, W]`. Leaves: a map `[B, 2048, T, H / 32, W / 32]`, time never halved.
The block alone is also a head on cached maps (`head.probes`). Nothing here needs more than torch.

Source: Luo & Yuille 2019, "Grouped Spatial-Temporal Aggregation for Efficient Action Recognition",
arXiv 1909.13130; names of parts as in its code, https://github.com/chenxuluo/GST-video, so that
its checkpoints load. Its blocks are those of He et al. 2016 with the 3x3 convolution replaced.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GSTBlock(nn.Module):
    """A residual bottleneck whose middle is two convolutions side by side.

    `relu(x + bn3(conv3(relu(bn2([conv2(left); Tconv(right)])))))` with
    `left, right = halves of relu(bn1(conv1(x)))`: a 1x3x3 convolution makes `(alpha - 1) / alpha`
    of the `planes`, a 3x3x3 convolution the rest. With beta = 1 (GST-Large) both see all planes;
    with alpha = 4 both have as many weights, in either case.

    Args:
        in_channels, out_channels: Of the maps before and after.
        planes: Channels between, a multiple of alpha and beta.
        alpha: One of so many planes is temporal.
        beta: 2, or 1 for GST-Large.
        stride: Of both convolutions, in space.
        norm: The kind of its norms.

    Raises:
        ValueError: `planes` does not divide, or beta is another one.

    Examples:
        >>> GSTBlock(8, 8, 4)(torch.zeros(2, 8, 3, 5, 5)).shape
        torch.Size([2, 8, 3, 5, 5])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        planes: int,
        *,
        alpha: int = 4,
        beta: int = 2,
        stride: int = 1,
        norm: type[nn.BatchNorm3d] = nn.BatchNorm3d,
    ) -> None:
        super().__init__()
        if beta not in (1, 2):
            raise ValueError(f"beta={beta}; expected 2 (GST) or 1 (GST-Large)")
        if planes < 1 or planes % alpha or planes % beta:
            raise ValueError(
                f"GST cuts {planes} channels into {alpha} shares and {beta} groups; expected a "
                "multiple of both (head.width, or all channels of the map)"
            )
        self.beta = beta
        steps = (1, stride, stride)
        seen = planes // beta
        temporal = planes // alpha
        self.conv1 = nn.Conv3d(in_channels, planes, 1, bias=False)
        self.bn1 = norm(planes)
        self.conv2 = nn.Conv3d(
            seen, planes - temporal, (1, 3, 3), stride=steps, padding=(0, 1, 1), bias=False
        )
        self.Tconv = nn.Conv3d(seen, temporal, 3, stride=steps, padding=1, bias=False)
        self.bn2 = norm(planes)
        self.conv3 = nn.Conv3d(planes, out_channels, 1, bias=False)
        self.bn3 = norm(out_channels)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride=steps, bias=False),
                norm(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """`[B, out_channels, T, H / stride, W / stride]` of `x [B, in_channels, T, H, W]`."""
        hidden = torch.relu(self.bn1(self.conv1(x)))
        spatial = temporal = hidden
        if self.beta == 2:
            spatial, temporal = hidden.chunk(2, dim=1)
        hidden = torch.cat((self.conv2(spatial), self.Tconv(temporal)), dim=1)
        hidden = self.bn3(self.conv3(torch.relu(self.bn2(hidden))))
        kept = x if self.downsample is None else self.downsample(x)
        return torch.relu(hidden + kept)


class GSTResNet50(nn.Module):
    """ResNet-50 of GST blocks, without pool and classifier.

    Args:
        beta: 2 for GST, 1 for GST-Large.
    """

    NUM_BLOCKS = (3, 4, 6, 3)

    def __init__(self, *, beta: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 64, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.maxpool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        channels = 64
        for stage, num_blocks in enumerate(self.NUM_BLOCKS):
            planes = 64 * 2**stage
            blocks = []
            for number in range(num_blocks):
                stride = 2 if stage and not number else 1
                blocks.append(GSTBlock(channels, 4 * planes, planes, beta=beta, stride=stride))
                channels = 4 * planes
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """`[B, 2048, T, H / 32, W / 32]` of `x [B, 3, T, H, W]`."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x
