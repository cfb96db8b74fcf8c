"""Maps without their order in time: what a head can still tell then, it did not need time for.

Enters: maps `[B, C, T, H, W]` and their rows in the store. Leaves: maps of the same shape whose
average over time and space is the same, so a head that pools first answers exactly as before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

TimeDisturbance = Literal["shuffle", "average"]


def disturb_time(maps: Tensor, rows: np.ndarray, how: TimeDisturbance, seed: int) -> Tensor:
    """Take the order of the time steps away.

    Args:
        maps: `[B, C, T, H, W]`.
        rows: number of each map in its store; each is shuffled by a draw of its own, so that
            the result does not depend on the size of batches.
        how: "shuffle" puts the steps of each clip in a random order, which keeps every frame as
            the head knows it; "average" puts their mean in place of each, which also takes away
            what changes, and is further from what the head was trained on.
        seed: of the shuffling.
    """
    if how == "average":
        return maps.mean(dim=2, keepdim=True).expand_as(maps).contiguous()
    steps = maps.shape[2]
    orders = np.stack([np.random.default_rng([seed, int(r)]).permutation(steps) for r in rows])
    batch = np.arange(len(rows))[:, None]
    return maps.movedim(2, 1)[batch, orders].movedim(1, 2).contiguous()
