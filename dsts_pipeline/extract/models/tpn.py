"""TPN with its time left: the neck's map before the pool that folds 8 frames into one.

Enters: a built recognizer with mmaction2's TPN neck, its weights loaded. Leaves: the same neck,
changed in place, whose output keeps T.

The published neck takes the maximum over all frames after its temporal modulation, a (3, 1, 1)
convolution, and everything behind sees one frame. Without that pool all layers behind are
per-frame, but for the bottom-up path's own (3, 1, 1) convolutions: in training these only ever saw
one frame between two of zero padding, so their outer taps were never trained and would mix
neighbouring frames by their initial values. With these taps at zero, frame t of the output is what
the published layers make of frame t.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError


def has_time_to_keep(neck: Any) -> bool:
    """Whether `neck` is a TPN neck, which pools time away."""
    return type(neck).__name__ == "TPN"


def keep_time(neck: Any) -> None:
    """Let the TPN `neck` return [B, C, T, H, W] instead of T = 1; weights must be loaded before.

    Raises:
        SettingsError: The neck is no TPN.
    """
    if not has_time_to_keep(neck):
        raise SettingsError(
            f"the tap neck_time is for TPN, this recognizer has {type(neck).__name__} for a neck; "
            "expected the tap backbone or the name of a module"
        )
    for operation in neck.temporal_modulation_ops:
        operation.pool = nn.Identity()
    with torch.no_grad():
        for operation in neck.downsample_ops:
            kernel = operation.conv.conv.weight  # [C, C, 3, 1, 1]
            middle = kernel.shape[2] // 2
            kernel[:, :, :middle] = 0
            kernel[:, :, middle + 1 :] = 0
