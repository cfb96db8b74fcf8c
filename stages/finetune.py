"""Train backbone and head together on the videos, from a head on cached maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.head import load_head
from dsts_pipeline.learn.end_to_end.model import EndToEnd
from stages import places
from stages.comparison import cached_figures, check_maps, joint_figures, seconds_per_epoch
from stages.finetuning import Work, open_work
from stages.inputs import open_features
from stages.joint_training import save_all, train_jointly
from stages.new_store import extraction_command


def run(settings: Settings) -> None:
    """Write backbone, head, history and figures to outputs/finetuned.

    Raises:
        CheckpointError: The head or the backbone is missing, or they do not belong together.
        DataError: Too many clips cannot be decoded.
    """
    store, start = open_features(settings.feed), Path(settings.finetune.head)
    head, extra = load_head(start)
    if extra["store"] != store.fingerprint:
        raise CheckpointError(
            f"{start}: trained on store {extra['store']}, {places.FEATURES} names "
            f"{store.fingerprint}; run `python cli.py train-head`"
        )
    udl: dict[str, Any] = {"udl": settings.udl.enabled, "udl_method": settings.udl.method}
    udl |= settings.udl.model_dump(include={"redraw_noise", "inner_learning_rate"})
    with open_work(settings, places.FINETUNED, "finetune") as work:
        check_maps(store, work.backbone)
        left_out = sorted({failure["id"] for failure in store.manifest["failures"]})
        model, feed, done = train_jointly(work, head, left_out, **udl)
        if not work.processes.is_first:
            return
        folder, title = places.FINETUNED, f"{extra['title']}, end to end"
        made_by: dict[str, Any] = {"dataset": settings.dataset, "backbone": settings.backbone}
        made_by |= {"finetune": settings.finetune, "train": settings.train, "udl": settings.udl}
        made_by |= {"store": settings.store, "seed": settings.seed}
        save_all(work, folder, title, model, done, made_by)
        figures = _compare(work, store, model, done.heldout) | {"failures": feed.failures}
        figures["seconds_per_epoch"] = {
            "cached": seconds_per_epoch(start / "history.json"),
            "finetuned": seconds_per_epoch(folder / "history.json"),
        }
        write_json(folder / "metrics.json", figures | {"left_out": left_out})
    for split in ("heldout", "test"):
        if found := figures[split]:
            cached, tuned = (found[kind]["top1"] for kind in ("cached", "finetuned"))
            console.print(f"top-1, {split}: {cached:.1%} on cached maps, {tuned:.1%} end to end")
    command = extraction_command(settings, folder / "backbone.safetensors")
    console.print(f"{folder}; the new backbone's maps as a store: {command}", soft_wrap=True)


def _compare(
    work: Work, store: FeatureStore, model: EndToEnd, heldout: np.ndarray
) -> dict[str, Any]:
    """Figures of the cached head and of the fine-tuned one, on the same clips."""
    found, splits = dict[str, Any](heldout=None, test=None), {"heldout": heldout}
    if work.settings.finetune.evaluate_test:
        splits["test"] = np.array([n for n, c in enumerate(work.clips.clips) if c.split == "test"])
    for split, clips in splits.items():
        if len(clips):
            ids = [work.clips.clips[number].id for number in clips]
            cached = cached_figures(store, Path(work.settings.finetune.head), ids)
            tuned = joint_figures(work, model, clips, f"Scoring {split}")
            found[split] = {"cached": cached, "finetuned": tuned}
    return found
