"""What can't train is told before a map is read.

Enters: what a store says of its clips, options, a head. Leaves: nothing, or an error.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.training_clips import find_shortage
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
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
        SettingsError: They are. With early stopping also where no clip would be held out.
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
    shortage = find_shortage(
        labels,
        np.asarray(store.video_ids)[rows],
        batch_size=options.batch_size,
        heldout_fraction=options.heldout_fraction,
        seed=options.stream_seed,
        paired=paired,
        world_size=world_size,
        early_stopping_epochs=options.early_stopping_epochs,
    )
    if shortage:
        raise SettingsError(shortage)


def check_head(head: nn.Module, feed: FeatureFeed) -> None:
    """Refuse a head that is made for other maps or classes than `feed` serves.

    Raises:
        SettingsError: Its channels or classes are other ones.
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
