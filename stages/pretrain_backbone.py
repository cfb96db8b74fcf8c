"""Train a backbone on the classes with a plain linear head: the baseline of the paper's order."""

from __future__ import annotations

from typing import Any

import torch

from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.checkpoints.weights import find_classifier
from dsts_pipeline.head import LinearProbe, take_over_classifier
from stages import places
from stages.comparison import joint_figures
from stages.finetuning import open_work
from stages.joint_training import save_all, train_jointly
from stages.new_store import extraction_command


def run(settings: Settings) -> None:
    """Write backbone, linear head, history and figures to outputs/pretrained_backbone.

    Raises:
        CheckpointError, DataError: No sound weights; too many clips cannot be decoded.
    """
    with open_work(settings, places.PRETRAINED, "pretrain-backbone") as work:
        sizes = work.backbone.map_shape[0], len(work.clips.class_names)
        torch.manual_seed(derive_seed(settings.seed, "linear_head"))
        head = LinearProbe(*sizes)
        classifier = find_classifier(settings.backbone.weights, *sizes)
        if classifier is not None:
            take_over_classifier(head, *classifier)
        model, feed, done = train_jointly(work, head, [], udl=False)
        if not work.processes.is_first:
            return
        folder = places.PRETRAINED
        made_by: dict[str, Any] = {"dataset": settings.dataset, "backbone": settings.backbone}
        made_by |= {"finetune": settings.finetune, "train": settings.train}
        made_by |= {"store": settings.store, "seed": settings.seed}
        save_all(work, folder, "linear head, end to end", model, done, made_by)
        figures = {"heldout": joint_figures(work, model, done.heldout, "Scoring heldout")}
        write_json(folder / "metrics.json", figures | {"failures": feed.failures})
    if figures["heldout"] is not None:
        console.print(f"top-1, heldout: {figures['heldout']['top1']:.1%}")
    command = extraction_command(settings, folder / "backbone.safetensors")
    console.print(f"{folder}; the new backbone's maps as a store: {command}", soft_wrap=True)
