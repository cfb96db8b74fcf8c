"""A place in a training's batches, saved and loaded.

Enters: an `EpochSampler`, or the state of a cursor of equal data. Leaves: the batches that are
still to come, and plain values that say where they start.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed.epochs import EpochSampler


class SamplerCursor:
    """How far a training has come in a sampler's batches, to be saved and loaded.

    A batch counts as done when `advance` is called, not when it is read: batches that a feed has
    read ahead of a stop come again.

    Args:
        sampler: What is gone through.
        paired: Whether by UDL's pairs of batches.
    """

    def __init__(self, sampler: EpochSampler, *, paired: bool = False) -> None:
        self.sampler, self.paired = sampler, paired
        self.epoch, self.num_done = 0, 0
        self._cached: tuple[int, list[Any]] | None = None

    def remaining(self) -> list[Any]:
        """The batches, or pairs, of the current epoch that are not done."""
        return self._of_epoch()[self.num_done :]

    @property
    def num_batches(self) -> int:
        """Batches, or pairs, of the current epoch, done or not."""
        return len(self._of_epoch())

    def advance(self) -> None:
        """One more batch is done; after an epoch's last one comes the first of the next epoch."""
        self.num_done += 1
        if self.num_done == len(self._of_epoch()):
            self.epoch, self.num_done = self.epoch + 1, 0

    def state_dict(self) -> dict[str, Any]:
        """Plain values: epoch, batches done, seed, and a digest of what is iterated."""
        return {
            "epoch": self.epoch,
            "batches_done": self.num_done,
            "seed": self.sampler.seed,
            "paired": self.paired,
            "digest": self.sampler.digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved place.

        Raises:
            SettingsError: The state is of other rows, options, seed or kind of batches.
        """
        for name, own in self.state_dict().items():
            if name not in ("epoch", "batches_done") and state.get(name) != own:
                raise SettingsError(
                    f"a sampler's saved {name} is {state.get(name)!r}, this one's is {own!r}: it "
                    "went through other data or with other options; use the same store and "
                    "settings, or start the training anew"
                )
        before = self.epoch, self.num_done
        self.epoch, self.num_done = int(state["epoch"]), int(state["batches_done"])
        if self.epoch < 0 or not 0 <= self.num_done < len(self._of_epoch()):
            self.epoch, self.num_done = before
            raise SettingsError(
                f"a sampler's saved place is batch {state['batches_done']} of epoch "
                f"{state['epoch']}, which there is not; start the training anew"
            )

    def _of_epoch(self) -> list[Any]:
        cached = getattr(self, "_cached", None)
        if cached is None or cached[0] != self.epoch:
            make = self.sampler.pairs if self.paired else self.sampler.batches
            self._cached = cached = (self.epoch, make(self.epoch))
        return cached[1]
