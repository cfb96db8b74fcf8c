"""GST's block, literally: a loop over taps and channels' shares, in float64.

Source: Luo & Yuille 2019, arXiv 1909.13130, section 3: of the channels after the first convolution,
one group goes through a 2-D convolution, the other through a 3-D one; their outputs, 3/4 and 1/4 of
all (alpha = 4), are put side by side.
"""

from __future__ import annotations

import torch
from torch import Tensor


def convolve(x: Tensor, kernel: Tensor, stride: int) -> Tensor:
    """`[B, O, T, H / stride, W / stride]`: every tap of `kernel [O, I, t, h, w]`, zeros around."""
    size = kernel.shape[2:]
    pad = [side // 2 for side in size]
    batch, _, time, height, width = x.shape
    padded = x.new_zeros(
        batch, x.shape[1], time + 2 * pad[0], height + 2 * pad[1], width + 2 * pad[2]
    )
    padded[:, :, pad[0] : pad[0] + time, pad[1] : pad[1] + height, pad[2] : pad[2] + width] = x
    rows = range(0, height, stride)
    columns = range(0, width, stride)
    out = x.new_zeros(batch, len(kernel), time, len(rows), len(columns))
    for t in range(time):
        for i, row in enumerate(rows):
            for j, column in enumerate(columns):
                seen = padded[:, :, t : t + size[0], row : row + size[1], column : column + size[2]]
                out[:, :, t, i, j] = (seen[:, None] * kernel).sum(dim=(2, 3, 4, 5))
    return out


def normalise(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    """Batch norm by its running statistics."""

    def of(value: str) -> Tensor:
        return state[f"{name}.{value}"].view(1, -1, 1, 1, 1)

    scaled = (x - of("running_mean")) / torch.sqrt(of("running_var") + 1e-5)
    return scaled * of("weight") + of("bias")


def gst_block(x: Tensor, state: dict[str, Tensor], *, beta: int, stride: int) -> Tensor:
    """The block of these tensors, named as in the authors' code."""
    hidden = normalise(convolve(x, state["conv1.weight"], 1), state, "bn1").clamp(min=0)
    group = hidden.shape[1] // beta
    first = hidden[:, :group]
    last = hidden[:, -group:]
    spatial = convolve(first, state["conv2.weight"], stride)
    temporal = convolve(last, state["Tconv.weight"], stride)
    joined = normalise(torch.cat([spatial, temporal], dim=1), state, "bn2").clamp(min=0)
    out = normalise(convolve(joined, state["conv3.weight"], 1), state, "bn3")
    if "downsample.0.weight" in state:
        x = normalise(convolve(x, state["downsample.0.weight"], stride), state, "downsample.1")
    return (out + x).clamp(min=0)
