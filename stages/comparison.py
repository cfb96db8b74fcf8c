"""What a head on cached maps reached, and the same head after fine-tuning, on the same clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import read_signed
from dsts_pipeline.extract.frames.augmentation import Augmentation
from dsts_pipeline.extract.models.backbones import Backbone
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head import load_head
from dsts_pipeline.learn.end_to_end.model import EndToEnd
from dsts_pipeline.learn.end_to_end.scoring import answer_clips
from dsts_pipeline.metrics import average_views, softmax
from dsts_pipeline.metrics.plain import plain_figures
from stages.extract_options import choose_views
from stages.finetuning import Work


def check_maps(store: FeatureStore, backbone: Backbone) -> None:
    """Refuse to go on from maps that another backbone made.

    Raises:
        CheckpointError: It did, or the maps were imported.
    """
    made_by, own = dict(store.manifest["made_of"].get("backbone", {})), backbone.describe()
    for described in (made_by, own):
        described.pop("versions", None)
    if made_by != own:
        differing = sorted(key for key in own if made_by.get(key) != own[key])
        raise CheckpointError(
            f"{store.location}: its maps are not those of {backbone.name} as backbone.* says "
            f"({', '.join(differing)} differ), so a head on them does not fit it; set backbone.* "
            "as in that extraction, or run `python cli.py extract` and `train-head`"
        )


@torch.inference_mode()
def cached_figures(store: FeatureStore, folder: Path, clip_ids: list[str]) -> dict[str, Any] | None:
    """Figures of the head in `folder` on the stored maps of some clips; None for no clips."""
    rows = np.flatnonzero(np.isin(np.asarray(store.video_ids), clip_ids))
    if not len(rows):
        return None
    head, _ = load_head(folder)
    feed = FeatureFeed(store, rows)
    parts = [head(batch.maps).numpy() for batch in feed.batches(split_batches(rows, 64))]
    found = average_views(feed.groups.tolist(), feed.labels, softmax(np.concatenate(parts)))
    return plain_figures(found.probabilities, found.labels)


def joint_figures(
    work: Work, model: EndToEnd, clips: np.ndarray, title: str
) -> dict[str, Any] | None:
    """Figures of `model` on clips by number, in the views of their split; None for no clips."""
    if not len(clips):
        return None
    plain = replace(choose_views(work.settings), train=1, augmentation=Augmentation())
    size, numbers = work.settings.finetune.evaluation_batch, [int(number) for number in clips]
    plan = work.plan(plain)
    found = answer_clips(model, plan, numbers, work.pool, batch_size=size, title=title)
    answers = average_views(found.clip_ids, np.array(found.labels), found.probabilities)
    counted = plain_figures(answers.probabilities, answers.labels)
    return counted | {"failures": found.failures}


def seconds_per_epoch(history: Path) -> float | None:
    """Mean time of an epoch, its evaluation included; None where no history is known."""
    if not history.exists():
        return None
    seconds = [entry["seconds"] for entry in read_signed(history)["epochs"]]
    return fmean(seconds) if seconds else None
