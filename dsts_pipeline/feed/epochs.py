"""The batches of every epoch of a training, on one process or several, from any batch on.

Enters: the rows of a split with their clips, classes and shards, and options. Leaves: batches, or
UDL's pairs of batches, of row numbers. An `EpochSampler` keeps nothing in between: its batches
follow from its fields and the epoch's number (`SamplerCursor` adds the place that was reached).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed.samplers import (
    Order,
    Pair,
    arrange_by_shard,
    balanced_draws,
    epoch_order,
    pair_batches,
    pair_sides,
    part_by_clip,
    part_by_origin,
    sequential_order,
    shard_order,
    split_batches,
)


@dataclass(frozen=True, eq=False)
class EpochSampler:
    """Batches of an epoch, each clip once in one of its views, or each class equally often.

    With one process, random order and no balancing these are the batches of
    `samplers.epoch_batches` and the pairs of `samplers.udl_pairs`.

    Choice: an iteration of several processes takes `world_size` batches of `batch_size` from one
    common order and gives each process one of them, so all have as many batches, all of full
    size. What does not fill an iteration at the end is dropped: fewer than
    `world_size * batch_size` clips an epoch (twice that for class-balanced pairs), other ones in
    each epoch unless the order is sequential. Training and validation batches of an iteration
    share no clip across processes either.

    Choice: of a clip's V views no draw takes one again before all were taken (`take_views`). UDL's
    validation batch shows a clip in the same view as the training batch of that draw. A view that
    is drawn and dropped comes again in the clip's next round of V draws.

    Choice: "shard" order gives pairs a window of their own for either batch, half an epoch apart.
    A reader that keeps three windows of shards then takes each shard about twice an epoch; one
    that keeps a single window would take them as often as in random order.

    Args:
        rows: Row numbers `[n]`, all different.
        batch_size: Clips per batch and process.
        order: "random", "shard" (see `shard_order`) or "sequential".
        class_balanced: See `balanced_draws`.
        groups: Clip id of each row; None where every row is a clip.
        labels: Class of each row; needed for `class_balanced`.
        shards: Shard of each row; needed for the order "shard".
        origins: Player, subject or source video of each row, as a number: the batches of a pair
            share none; None: they share no clip.
        window: Shards whose clips are mixed in the order "shard".
        drop_last: Drop smaller batches (always done where `world_size` > 1).
        rank, world_size: This process among all.

    Raises:
        SettingsError: A needed column is missing, or lengths or numbers do not fit.

    Examples:
        >>> sampler = EpochSampler(np.arange(6), batch_size=2, seed=0)
        >>> sorted(int(row) for batch in sampler.batches(epoch=0) for row in batch)
        [0, 1, 2, 3, 4, 5]
        >>> train, val = sampler.pairs(epoch=0)[0]  # UDL's two batches share no clip
        >>> bool(set(train.tolist()) & set(val.tolist()))
        False
    """

    rows: np.ndarray
    batch_size: int
    seed: int
    order: Order = "random"
    class_balanced: bool = False
    groups: np.ndarray | None = None
    labels: np.ndarray | None = None
    shards: np.ndarray | None = None
    origins: np.ndarray | None = None
    window: int = 16
    drop_last: bool = False
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        needed = {"labels": self.class_balanced, "shards": self.order == "shard"}
        needed |= {"groups": False, "origins": False}
        for name, is_needed in needed.items():
            column = getattr(self, name)
            if column is None and is_needed:
                raise SettingsError(f"this order needs the {name} of the rows; pass {name}")
            if column is not None and len(column) != len(self.rows):
                raise SettingsError(f"{len(column)} {name} for {len(self.rows)} rows")
        if not 0 <= self.rank < self.world_size:
            raise SettingsError(f"rank is {self.rank}, expected 0 to {self.world_size - 1}")
        if len(self.rows) == 0:
            raise SettingsError("no rows to sample from; expected at least one")

    def batches(self, epoch: int) -> list[np.ndarray]:
        """This process's batches of an epoch.

        Raises:
            SettingsError: Too few clips for one batch on every process.
        """
        together = self.batch_size * self.world_size
        batches = split_batches(self._order(epoch), together, drop_last=self._drops)
        return [batch[self._share] for batch in self._require_some(batches)]

    def pairs(self, epoch: int) -> list[Pair]:
        """This process's training and validation batches of an epoch, without a common clip.

        With `origins` without a common origin, either.

        Raises:
            SettingsError: Too few clips, or origins, for two disjoint batches on every process.
        """
        together = self.batch_size * self.world_size
        order = self._order(epoch)
        if self.origins is not None:
            origins = self.origins[self._places(order)]
            sides = part_by_origin(origins, seed=self.seed, epoch=epoch)
            pairs = pair_sides(order[sides[0]], order[sides[1]], together, drop_last=self._drops)
        elif self.class_balanced:
            places = self._places(order)
            clips = self._clips[places]
            labels = np.asarray(self.labels)[places]
            sides = part_by_clip(clips, labels, seed=self.seed, epoch=epoch)
            pairs = pair_sides(order[sides[0]], order[sides[1]], together, drop_last=self._drops)
        else:
            pairs = pair_batches(order, together, drop_last=self._drops)
        share = self._share
        return [(train[share], val[share]) for train, val in self._require_some(pairs)]

    @cached_property
    def digest(self) -> str:
        """Says what is iterated and how: equal for samplers whose batches are equal."""
        digest = hashlib.sha256()
        options = (self.batch_size, self.order, self.class_balanced, self.window, self._drops)
        digest.update(repr((*options, self.rank, self.world_size, len(self.rows))).encode())
        columns = [self.rows, self.groups, self.labels, self.shards]
        for column in columns if self.origins is None else [*columns, self.origins]:
            values = [] if column is None else np.asarray(column).tolist()
            digest.update(repr(values).encode())
        return digest.hexdigest()[:32]

    @property
    def num_clips(self) -> int:
        """Number of clips, each of one or more rows."""
        return len(np.unique(self._clips))

    @property
    def _drops(self) -> bool:
        return self.drop_last or self.world_size > 1

    @property
    def _share(self) -> slice:
        return slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)

    @cached_property
    def _clips(self) -> np.ndarray:
        return np.arange(len(self.rows)) if self.groups is None else np.asarray(self.groups)

    def _places(self, order: np.ndarray) -> np.ndarray:
        ascending = np.argsort(self.rows)
        return ascending[np.searchsorted(self.rows, order, sorter=ascending)]

    def _order(self, epoch: int) -> np.ndarray:
        common: dict[str, Any] = {"seed": self.seed, "epoch": epoch}
        near: dict[str, Any] = {"window": self.window} | common
        if self.class_balanced:
            assert self.labels is not None
            drawn = balanced_draws(self.rows, self.labels, groups=self.groups, **common)
            if self.order == "sequential":
                return np.sort(drawn)
            if self.order == "shard":
                assert self.shards is not None
                return arrange_by_shard(drawn, self.rows, self.shards, **near)
            return drawn
        if self.order == "shard":
            assert self.shards is not None
            return shard_order(self.rows, self.shards, groups=self.groups, **near)
        function = sequential_order if self.order == "sequential" else epoch_order
        return function(self.rows, groups=self.groups, **common)

    def _require_some(self, batches: list) -> list:
        if not batches:
            raise SettingsError(
                f"{self.num_clips} training clips do not fill a batch of "
                f"{self.batch_size} on each of {self.world_size} processes; set a smaller "
                "train.batch_size or start fewer processes"
            )
        return batches


# ---- the place in a training ---------------------------------------------------------------------


class SamplerCursor:
    """How far a training has come in a sampler's batches, to be saved and loaded.

    A batch counts as done when `advance` is called, not when it is read: batches that a feed has
    read ahead of a stop come again.

    Args:
        sampler: What is gone through.
        paired: Whether by UDL's pairs of batches.
    """

    def __init__(self, sampler: EpochSampler, *, paired: bool = False) -> None:
        self.sampler = sampler
        self.paired = paired
        self.epoch = 0
        self.num_done = 0
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
            self.epoch = self.epoch + 1
            self.num_done = 0

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
        self.epoch = int(state["epoch"])
        self.num_done = int(state["batches_done"])
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
