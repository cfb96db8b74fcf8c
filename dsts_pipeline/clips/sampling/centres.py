"""Which frames of a clip a recognizer sees.

Enters: the number of frames of a clip. Leaves: frame numbers, int64, ascending.
"""

from __future__ import annotations

import numpy as np


def uniform_frames(num_frames: int, num_samples: int) -> np.ndarray:
    """Centres of equal segments: frame i is floor((i + 1/2) * num_frames / num_samples).

    With fewer frames than samples, frames repeat; none is ever left out of reach.

    Args:
        num_frames: Frames of the clip, at least 1.
        num_samples: Frames wanted, at least 1.

    Returns:
        int64 [num_samples], ascending, each in [0, num_frames).

    Raises:
        ValueError: A count is below 1.

    Source: segment sampling at test time, https://arxiv.org/abs/1608.00859.

    >>> uniform_frames(24, 4).tolist()
    [3, 9, 15, 21]
    """
    if num_frames < 1 or num_samples < 1:
        raise ValueError(
            f"{num_samples} samples of {num_frames} frames were asked for, expected at least 1 of 1"
        )
    # In whole numbers: floating point would put some centres on the wrong side of a frame.
    return (2 * np.arange(num_samples, dtype=np.int64) + 1) * num_frames // (2 * num_samples)
