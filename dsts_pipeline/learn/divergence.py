"""Watches for a training that diverges, and says where.

Enters: losses, evaluations and weights. Leaves: nothing, or an error that names the step, the clips
of its batch and the last good checkpoint.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import FeatureBatch
from dsts_pipeline.learn.options import TrainingOptions

NUM_CLIPS_NAMED = 64


class Place(Protocol):
    """What of a training an error names."""

    head: nn.Module
    epoch: int
    num_steps: int


class NamesClips(Protocol):
    """A feed, as far as an error needs it."""

    def name_of(self, row: int) -> str: ...


class Watch:
    """Raises `SettingsError` where a training diverges.

    Args:
        feed: Knows the clips' ids.
        options: `max_loss`, and what is advised about.
    """

    def __init__(self, feed: NamesClips, options: TrainingOptions) -> None:
        self.feed, self.options = feed, options
        self.last_good = "none"

    def check_loss(self, loss: float, place: Place, position: int, batch: FeatureBatch) -> None:
        """A training loss that is not finite or above `max_loss` is an error."""
        if math.isfinite(loss) and loss <= self.options.max_loss:
            return
        clips = [self.feed.name_of(row) for row in batch.rows.tolist()]
        named = ", ".join(clips[:NUM_CLIPS_NAMED])
        more = len(clips) - NUM_CLIPS_NAMED
        raise self._error(
            f"the loss is {loss:g}",
            place,
            f"batch {position + 1}; its clips: {named}{f' and {more} more' if more > 0 else ''}",
        )

    def check_evaluation(self, loss: float, place: Place) -> None:
        """A held-out loss that is not finite is an error."""
        if not math.isfinite(loss):
            raise self._error(f"the held-out loss is {loss:g}", place, "after its last batch")

    def check_weights(self, place: Place) -> None:
        """Weights or statistics that are not finite are an error; called before they are saved."""
        for name, value in place.head.state_dict().items():
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise self._error(f"{name} holds NaN or infinity", place, "after its last batch")

    def _error(self, found: str, place: Place, where: str) -> SettingsError:
        return SettingsError(
            f"training diverged: {found} in epoch {place.epoch}, step {place.num_steps} ({where}); "
            f"last good checkpoint: {self.last_good}; lower "
            f"{self.options.section}.learning_rate (now {self.options.learning_rate:g}) or set "
            f"{self.options.section}.clip_norm"
        )
