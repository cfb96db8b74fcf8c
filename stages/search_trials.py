"""One trial of a search: the DSTS head, trained with other values of some settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.variants import with_values
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    TrainingOptions,
    check_clips,
    remove_checkpoints,
    train_head,
)
from dsts_pipeline.learn.search import Dimension, OnEpoch, TrialRefused
from stages.dsts import build_dsts
from stages.training_options import dsts_options

Classifier = tuple[Tensor, Tensor] | None


@dataclass
class TrialTrainer:
    """Trains a trial's head on the training split; every trial begins with the same seed."""

    settings: Settings
    feed: FeatureFeed
    classifier: Classifier
    processes: Processes
    saved: CheckpointOptions

    def __call__(self, number: int, values: dict[str, Any], on_epoch: OnEpoch) -> None:
        """Train with `values`; values that can't be trained, or diverge, refuse the trial."""
        sizes = self.feed.map_shape[0], self.feed.num_classes
        how: dict[str, Any] = {"processes": self.processes, "checkpoints": self.saved}
        try:
            tried = with_values(self.settings, values)
            head = build_dsts(tried, sizes, self.classifier)
            how |= {"on_epoch": on_epoch, "title": f"Trial {number}", **dsts_options(tried)}
            train_head(head, self.feed, **how)
        except SettingsError as error:
            raise TrialRefused(str(error)) from None

    def forget(self) -> None:
        """Delete the checkpoints of finished trials."""
        remove_checkpoints(self.saved)
        self.saved.used.clear()


def check_ends(
    settings: Settings, dimensions: list[Dimension], store: FeatureStore, rows: np.ndarray
) -> None:
    """Refuse a space one of whose ends can't be trained, by itself, on this store.

    Raises:
        SettingsError: See above.
    """
    sizes = store.map_shape[0], len(store.class_names)
    for dimension in dimensions:
        for value in dimension.ends:
            tried = with_values(settings, {dimension.key: value})
            paired = tried.udl.enabled and bool(
                build_dsts(tried, sizes, None).upstream_parameters()
            )
            check_clips(store, rows, TrainingOptions(**dsts_options(tried)), paired=paired)
