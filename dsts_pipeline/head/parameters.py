"""Parameters that a layer's neurons own, and their arrangement as matrices."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def new_kernel(*shape: int) -> nn.Parameter:
    """A kernel `[N, C_out, C_in, ...]`, each neuron's drawn as torch draws a convolution's."""
    kernel = torch.empty(shape)
    for neuron in kernel:
        nn.init.kaiming_uniform_(neuron.flatten(1), a=math.sqrt(5))
    return nn.Parameter(kernel)


def kernel_matrices(kernel: Tensor, gates: Tensor | None) -> Tensor:
    """Kernels `[N, C_out, C_in, ...]` as matrices `[N, taps * C_in, C_out]` with gates folded in.

    `S(X * b) = S'(X)` where S' is S with its input channels scaled by `gates [N, C_in]`.
    """
    matrices = kernel.flatten(3).permute(0, 3, 2, 1)
    if gates is not None:
        matrices = matrices * gates[:, None, :, None]
    return matrices.flatten(1, 2)
