"""What of the settings `train_head` is given: options that decide a training's result."""

from __future__ import annotations

from typing import Any

from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.features import FeedSettings

# Settings of how a training is run, which decide nothing about its result.
OF_THE_RUN = {"device", "devices", "checkpoint_every_batches", "keep_checkpoints"}
OF_THE_RUN |= {"requeue_status", "tensorboard"}


def options_of_feed(feed: FeedSettings) -> dict[str, Any]:
    """What of the settings of reading decides a training."""
    return feed.model_dump(include={"order", "shard_window", "class_balanced"})


def dsts_options(settings: Settings) -> dict[str, Any]:
    """What `train_head` is given for the DSTS head, but for processes and checkpoints."""
    udl = settings.udl
    options: dict[str, Any] = settings.train.model_dump(exclude=OF_THE_RUN)
    options |= {"seed": settings.seed, **options_of_feed(settings.feed)}
    options |= {"udl": udl.enabled, "udl_method": udl.method}
    return options | udl.model_dump(include={"redraw_noise", "inner_learning_rate"})
