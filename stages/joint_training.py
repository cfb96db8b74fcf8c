"""The training itself of `finetune` and `pretrain-backbone`, and the files that both leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.extract.frames.augmentation import Augmentation
from dsts_pipeline.extract.frames.views import Views
from dsts_pipeline.head import save_head
from dsts_pipeline.learn import remove_checkpoints
from dsts_pipeline.learn.end_to_end.model import EndToEnd
from dsts_pipeline.learn.end_to_end.saving import save_backbone
from dsts_pipeline.learn.end_to_end.training import Finetuned, finetune
from dsts_pipeline.learn.end_to_end.videos import VideoFeed
from dsts_pipeline.learn.identity import digest_sources
from stages.finetuning import Work
from stages.new_store import store_of_weights

# What of the section makes the model, the views or the run, and is no option of `finetune`.
_MODEL = {"frozen_stages", "frozen", "recompute"}
_OTHER = {"head", "backbone_norms", "backbone_dropout", "augmentation", "evaluate_test"}
_RUN = {"device", "devices", "checkpoint_every_batches", "keep_checkpoints", "requeue_status"}


def train_jointly(
    work: Work, head: nn.Module, left_out: list[str], **udl: Any
) -> tuple[EndToEnd, VideoFeed, Finetuned]:
    """Train `head` with the backbone by the section `finetune`; `udl` are UDL's options."""
    settings, chosen = work.settings, work.settings.finetune
    views = Views(
        augmentation=Augmentation(**chosen.augmentation.model_dump()),
        flips=FlipRule(settings.dataset.flip, settings.dataset.flip_pairs),
        seed=settings.seed,
    )
    limit, alone = settings.backbone.max_failed_fraction, work.processes.world_size == 1
    limits: dict[str, Any] = {"max_failed_fraction": limit, "may_shrink": alone}
    feed = VideoFeed(work.plan(views), "train", work.pool, left_out=left_out, **limits)
    kind: dict[str, Any] = {"norms": chosen.backbone_norms, "dropout": chosen.backbone_dropout}
    model = EndToEnd(work.backbone, head, **kind, **chosen.model_dump(include=_MODEL))
    work.saved.identity = {
        "clips": work.clips.digest,
        "backbone": work.backbone.describe(),
        "model": chosen.model_dump(mode="json", include=_MODEL | _OTHER),
        "left_out": left_out,
        "sources": digest_sources(("clips", "extract")),
    }
    options = chosen.model_dump(exclude=_MODEL | _OTHER | _RUN) | {"seed": settings.seed} | udl
    options |= settings.train.model_dump(include={"heldout_fraction", "data_seed"})
    together: dict[str, Any] = {"processes": work.processes, "checkpoints": work.saved}
    return model, feed, finetune(model, feed, title="Training end to end", **together, **options)


def save_all(
    work: Work, folder: Path, title: str, model: EndToEnd, done: Finetuned, sections: dict[str, Any]
) -> None:
    """Write backbone, head and history; then drop the checkpoints unless they are kept.

    The head names the store that the new backbone's maps will have, on which it can be evaluated.
    """
    weights = folder / "backbone.safetensors"
    save_backbone(model, weights)
    shown = {n: v if isinstance(v, int) else v.model_dump(mode="json") for n, v in sections.items()}
    made_of = {"title": title, "store": store_of_weights(work.settings, weights)}
    save_head(folder / "head", model.head, made_of | {"provenance": collect_provenance(shown)})
    write_json(folder / "history.json", sign({"epochs": done.history}))
    if work.settings.finetune.keep_checkpoints:
        console.print(f"checkpoints: {', '.join(map(str, work.saved.used))}")
    else:
        remove_checkpoints(work.saved)
