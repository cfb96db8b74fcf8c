"""What can't train is told before a map is read.

Enters: what a store says of its clips, options, a head. Leaves: nothing, or an error.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn.heldout import hold_out
from dsts_pipeline.learn.options import TrainingOptions


def check_clips(
    store: FeatureStore,
    rows: np.ndarray,
    options: TrainingOptions,
    *,
    paired: bool,
    world_size: int = 1,
) -> None:
    """Refuse training rows that are too few, or whose classes are not the store's.

    Args:
        rows: Those of the training split.
        paired: Whether an iteration takes two disjoint batches, as UDL's does.
        world_size: Processes that train together; `options.batch_size` is of each.

    Raises:
        SettingsError: See above; with early stopping also where no clip would be held out.
    """
    labels = store.labels[rows]
    num_classes = len(store.class_names)
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if len(strange):
        raise SettingsError(
            f"{store.location}: clip {store.video_ids[rows[labels == strange[0]][0]]} is of class "
            f"{strange[0]}, and the store names {num_classes} classes; the annotations and their "
            "list of classes disagree: correct them, then `python cli.py prepare` and `extract`"
        )
    ids = np.asarray(store.video_ids)
    share, seed = options.heldout_fraction, options.stream_seed
    parts = hold_out(rows, labels, ids[rows], fraction=share, seed=seed)
    num_kept, num_held = (len(np.unique(ids[part])) for part in parts)
    together = options.batch_size * world_size
    needed = 2 * together if paired else together if world_size > 1 else 1
    if num_kept < needed:
        raise SettingsError(_too_few(num_kept, num_held, needed, options, paired, world_size))
    if options.early_stopping_epochs is not None and not num_held:
        raise SettingsError(
            f"train.heldout_fraction {options.heldout_fraction:g} holds out none of "
            f"{num_kept} training clips, so early stopping has nothing to judge by; set it higher "
            "or train.early_stopping_epochs to null"
        )


def _too_few(
    kept: int, held: int, needed: int, options: TrainingOptions, paired: bool, world_size: int
) -> str:
    """Found, expected, what to do."""
    reason = "UDL takes two disjoint batches an iteration" if paired else "all take a full batch"
    where = f" on each of {world_size} processes" if world_size > 1 else ""
    largest = kept // (2 if paired else 1) // world_size
    cure = f"set train.batch_size to at most {largest}" if largest else "get more clips"
    return (
        f"{kept} training clips{f' ({held} more are held out)' if held else ''}, and "
        f"train.batch_size is {options.batch_size}{where}; expected at least {needed} clips, "
        f"since {reason}; {cure}{' or udl.enabled to false' if paired else ''}"
    )


def check_head(head: nn.Module, feed: FeatureFeed) -> None:
    """Refuse a head that is made for other maps or classes than `feed` serves.

    Raises:
        SettingsError: See above.
    """
    config = getattr(head, "config", {})
    found = config.get("in_channels"), config.get("num_classes")
    expected = feed.map_shape[0], feed.num_classes
    for name, has, wants in zip(("channels", "classes"), found, expected, strict=True):
        if has is not None and has != wants:
            raise SettingsError(
                f"{type(head).__name__} is made for {has} {name}, and the store's maps have "
                f"{wants}; build the head for this store"
            )
