"""Train a backbone on videos: with the DSTS head (`finetune`), or a linear one before it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from dsts_pipeline.base.errors import CheckpointError, DataError, SettingsError
from dsts_pipeline.base.files import read_signed, sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance, derive_seed
from dsts_pipeline.base.settings import FeedSettings, Settings, UdlSettings
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.augmentation import Augmentation, import_transforms
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import choose_backbone
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.forward import count_work_threads
from dsts_pipeline.extract.views import (
    ViewPlan,
    Views,
    choose_augmentation,
    choose_fallback,
    choose_views,
)
from dsts_pipeline.extract.weights import find_classifier
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.feature_store.planning import prepare_work
from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head import LinearProbe, load_head, save_head, take_over_classifier
from dsts_pipeline.learn import (
    CheckpointOptions,
    Processes,
    Recipe,
    hold_together,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
)
from dsts_pipeline.learn.end_to_end import EndToEnd, check_can_be_saved, save_backbone
from dsts_pipeline.learn.finetune import Finetuned, answer_clips, finetune
from dsts_pipeline.learn.resume import digest_sources
from dsts_pipeline.learn.train import warn_of_held_out
from dsts_pipeline.learn.videos import VideoFeed
from dsts_pipeline.metrics import Predictions, average_views, softmax
from dsts_pipeline.metrics.accuracy import plain_figures
from dsts_pipeline.metrics.scoring import load_fitting_head
from stages import common

# What of the section makes the model and the views, which a checkpoint has to be of.
_MODEL = {"head", "frozen_stages", "frozen", "recompute", "backbone_norms", "backbone_dropout"}
_MODEL |= {"augmentation", "evaluate_test"}


# ---- finetune: backbone and head together, from a head on cached maps --------------------------


def run(settings: Settings) -> None:
    """Write backbone, head, history and figures to outputs/finetuned.

    Raises:
        CheckpointError: The head or the backbone is missing, or they do not belong together.
        DataError: Too many clips cannot be decoded.
        SettingsError: Views are joined; see also `_open_inputs`.
    """
    if settings.feed.views == "joined":
        raise SettingsError(
            "feed.views is joined, and finetune trains on one view of a clip at a time; set it to "
            "separate, and start from a head that was trained so"
        )
    store = open_features(common.FEATURES, settings.feed)
    start = Path(settings.finetune.head)
    head, extra = load_fitting_head(start, store)
    with _open_inputs(settings, common.FINETUNED, "finetune") as work:
        _check_maps(store, work.backbone)
        left_out = sorted({failure["id"] for failure in store.manifest["failures"]})
        model, feed, done = _train_jointly(work, head, left_out, settings.udl)
        if not work.processes.is_first:
            return
        folder = common.FINETUNED
        title = f"{extra['title']}, end to end"
        made_by: dict[str, Any] = {
            "dataset": settings.dataset,
            "backbone": settings.backbone,
            "finetune": settings.finetune,
            "train": settings.train,
            "udl": settings.udl,
            "store": settings.store,
            "seed": settings.seed,
        }
        _save_all(work, folder, title, model, done, made_by)
        figures = _compare(work, store, model, done.heldout, folder / "predictions")
        figures["failures"] = feed.failures
        figures["seconds_per_epoch"] = {
            "cached": _seconds_per_epoch(start / "history.json"),
            "finetuned": _seconds_per_epoch(folder / "history.json"),
        }
        write_json(folder / "metrics.json", figures | {"left_out": left_out})
    for split in ("heldout", "test"):
        if found := figures[split]:
            cached, tuned = (found[kind]["top1"] for kind in ("cached", "finetuned"))
            console.print(f"top-1, {split}: {cached:.1%} on cached maps, {tuned:.1%} end to end")
    _tell_command(settings, folder)


def _check_maps(store: FeatureStore, backbone: Backbone) -> None:
    """Refuse to go on from maps that another backbone made.

    Raises:
        CheckpointError: It did, or the maps were imported.
    """
    made_by = dict(store.manifest["made_of"].get("backbone", {}))
    own = backbone.describe()
    for described in (made_by, own):
        described.pop("versions", None)
    if made_by != own:
        differing = sorted(key for key in own if made_by.get(key) != own[key])
        raise CheckpointError(
            f"{store.location}: its maps are not those of {backbone.name} as backbone.* says "
            f"({', '.join(differing)} differ), so a head on them does not fit it; set backbone.* "
            "as in that extraction, or run `python cli.py extract` and `train-head`"
        )


def _compare(
    work: FinetuneInputs, store: FeatureStore, model: EndToEnd, heldout: np.ndarray, folder: Path
) -> dict[str, Any]:
    """Figures of the cached head and of the fine-tuned one, on the same clips; their answers go
    into `folder`."""
    found = dict[str, Any](heldout=None, test=None)
    splits = {"heldout": heldout}
    if work.settings.finetune.evaluate_test:
        splits["test"] = np.array([n for n, c in enumerate(work.clips.clips) if c.split == "test"])
    for split, clips in splits.items():
        if len(clips):
            ids = [work.clips.clips[number].id for number in clips]
            cached = _cached_answers(store, Path(work.settings.finetune.head), ids)
            tuned, failures = _joint_answers(work, model, clips, f"Scoring {split}")
            found[split] = {
                "cached": None if cached is None else _figures(cached),
                "finetuned": _figures(tuned) | {"failures": failures},
            }
            for kind, answers in (("cached", cached), ("finetuned", tuned)):
                if answers is not None:
                    answers.save(folder / f"{split}_{kind}.npz")
    return found


@torch.inference_mode()
def _cached_answers(store: FeatureStore, folder: Path, clip_ids: list[str]) -> Predictions | None:
    """Answers of the head in `folder` on the stored maps of some clips; None for no clips."""
    rows = np.flatnonzero(np.isin(np.asarray(store.video_ids), clip_ids))
    if not len(rows):
        return None
    head, _ = load_head(folder)
    feed = FeatureFeed(store, rows)
    parts = [head(batch.maps).numpy() for batch in feed.batches(split_batches(rows, 64))]
    return average_views(feed.groups.tolist(), feed.labels, softmax(np.concatenate(parts)))


def _seconds_per_epoch(history: Path) -> float | None:
    """Mean time of an epoch, its evaluation included; None where no history is known."""
    if not history.exists():
        return None
    seconds = [entry["seconds"] for entry in read_signed(history)["epochs"]]
    return fmean(seconds) if seconds else None


# ---- pretrain-backbone: with a plain linear head, the baseline of the paper's order ------------


def pretrain_backbone(settings: Settings) -> None:
    """Write backbone, linear head, history and figures to outputs/pretrained_backbone.

    Raises:
        CheckpointError, DataError: No sound weights; too many clips cannot be decoded.
    """
    with _open_inputs(settings, common.PRETRAINED, "pretrain-backbone") as work:
        sizes = work.backbone.map_shape[0], len(work.clips.class_names)
        torch.manual_seed(derive_seed(settings.seed, "linear_head"))
        head = LinearProbe(*sizes)
        classifier = find_classifier(settings.backbone.weights, *sizes)
        if classifier is not None:
            take_over_classifier(head, *classifier)
        model, feed, done = _train_jointly(work, head, [], UdlSettings(enabled=False))
        if not work.processes.is_first:
            return
        folder = common.PRETRAINED
        made_by: dict[str, Any] = {"dataset": settings.dataset, "backbone": settings.backbone}
        made_by |= {"finetune": settings.finetune, "train": settings.train}
        made_by |= {"store": settings.store, "seed": settings.seed}
        _save_all(work, folder, "linear head, end to end", model, done, made_by)
        figures: dict[str, Any] = {"heldout": None}
        if len(done.heldout):
            answers, failures = _joint_answers(work, model, done.heldout, "Scoring heldout")
            figures["heldout"] = _figures(answers) | {"failures": failures}
        write_json(folder / "metrics.json", figures | {"failures": feed.failures})
    if figures["heldout"] is not None:
        console.print(f"top-1, heldout: {figures['heldout']['top1']:.1%}")
    _tell_command(settings, folder)


# ---- what both work with, the training itself, and the files that both leave -------------------


@dataclass
class FinetuneInputs:
    """What a fine-tuning is made with."""

    settings: Settings
    processes: Processes
    saved: CheckpointOptions
    clips: ClipIndex
    backbone: Backbone
    pool: DecodePool

    def plan(self, views: Views) -> ViewPlan:
        """How clips are decoded for `views`."""
        chosen = self.settings.backbone
        return ViewPlan(self.clips, self.backbone, views, chosen.decoder, choose_fallback(chosen))


@contextmanager
def _open_inputs(settings: Settings, folder: Path, name: str) -> Iterator[FinetuneInputs]:
    """Join processes, heed SIGTERM, load clips and backbone, start decoders.

    Args:
        folder: Where the results go; other processes are kept out of it meanwhile.
        name: The command's, told to them.

    Raises:
        BusyError: Another process is at work on that folder.
        CheckpointError, DataError, SettingsError: No clip index, no sound weights, or the backbone
            can't be trained here.
    """
    chosen = settings.finetune
    decoding = settings.backbone
    if settings.dataset.fold is not None:
        raise SettingsError(
            f"dataset.fold is {settings.dataset.fold}, and {name} takes the splits of the clip "
            "index; set dataset.fold to null"
        )
    if not common.CLIP_INDEX.exists() and _is_imported():
        raise DataError(
            f"the features were imported, and {name} needs videos: in a folder of its own, run "
            "`python cli.py prepare` and `extract` on them"
        )
    index = ClipIndex.load(common.CLIP_INDEX)
    backbone = choose_backbone(decoding)
    check_can_be_saved(backbone)
    augmented = choose_augmentation(chosen.augmentation).is_on
    warm_up = import_transforms if augmented else None
    with (
        joined_processes(chosen.device, chosen.devices) as processes,
        hold_together(processes, folder, name),
        stop_on_sigterm(chosen.requeue_status) as stop,
        DecodePool(
            decoding.num_decode_workers,
            clip_timeout_seconds=decoding.clip_timeout_seconds,
            prefetch_bytes=decoding.prefetch_bytes,
            warm_up=warm_up,
        ) as pool,
    ):
        every = chosen.checkpoint_every_batches
        saved = CheckpointOptions(common.CHECKPOINTS, every_batches=every, stop=stop)
        yield FinetuneInputs(settings, processes, saved, index, backbone, pool)


def _is_imported() -> bool:
    if not common.FEATURES.exists():
        return False
    return "import" in open_features(common.FEATURES, FeedSettings()).manifest["made_of"]


def _train_jointly(
    work: FinetuneInputs, head: nn.Module, left_out: list[str], udl: UdlSettings
) -> tuple[EndToEnd, VideoFeed, Finetuned]:
    """Train `head` with the backbone by the section `finetune`."""
    settings = work.settings
    chosen = settings.finetune
    views = Views(
        augmentation=choose_augmentation(chosen.augmentation),
        flips=FlipRule(settings.dataset.flip, settings.dataset.flip_pairs),
        seed=settings.seed,
    )
    feed = VideoFeed(
        work.plan(views),
        "train",
        work.pool,
        left_out=left_out,
        max_failed_fraction=settings.backbone.max_failed_fraction,
        may_shrink=work.processes.world_size == 1,
        num_work_threads=count_work_threads(work.processes.device),
    )
    if work.processes.is_first:
        recipe = Recipe(settings.train, udl, seed=settings.seed)
        warn_of_held_out(feed.labels, feed.groups, feed.origins, recipe)
    model = EndToEnd(
        work.backbone,
        head,
        frozen_stages=chosen.frozen_stages,
        frozen=chosen.frozen,
        norms=chosen.backbone_norms,
        dropout=chosen.backbone_dropout,
        recompute=chosen.recompute,
    )
    work.saved.identity = {
        "clips": work.clips.digest,
        "backbone": work.backbone.describe(),
        "model": chosen.model_dump(mode="json", include=_MODEL),
        "left_out": left_out,
        "sources": digest_sources(("clips", "extract")),
    }
    done = finetune(
        model,
        feed,
        chosen,
        udl,
        settings.train,
        seed=settings.seed,
        title="Training end to end",
        processes=work.processes,
        checkpoints=work.saved,
    )
    return model, feed, done


def _save_all(
    work: FinetuneInputs,
    folder: Path,
    title: str,
    model: EndToEnd,
    done: Finetuned,
    sections: dict[str, Any],
) -> None:
    """Write backbone, head and history; then drop the checkpoints.

    The head names the store that the new backbone's maps will have, on which it can be evaluated.
    """
    weights = folder / "backbone.safetensors"
    save_backbone(model, weights)
    shown = {n: v if isinstance(v, int) else v.model_dump(mode="json") for n, v in sections.items()}
    made_of = {"title": title, "store": _store_of_weights(work.settings, weights)}
    save_head(folder / "head", model.head, made_of | {"provenance": collect_provenance(shown)})
    write_json(folder / "history.json", sign({"epochs": done.history}))
    remove_checkpoints(work.saved)


def _joint_answers(
    work: FinetuneInputs, model: EndToEnd, clips: np.ndarray, title: str
) -> tuple[Predictions, dict[str, str]]:
    """Answers of `model` on clips by number, in the views of their split, and what failed."""
    views = choose_views(work.settings.backbone, work.settings.dataset)
    plan = work.plan(replace(views, train=1, augmentation=Augmentation()))
    how = work.settings.finetune
    size = how.part_size or how.batch_size
    numbers = [int(number) for number in clips]
    found = answer_clips(model, plan, numbers, work.pool, batch_size=size, title=title)
    answers = average_views(found.clip_ids, np.array(found.labels), found.probabilities)
    return answers, found.failures


def _figures(answers: Predictions) -> dict[str, Any]:
    return plain_figures(answers.probabilities, answers.labels)


def _store_of_weights(settings: Settings, weights: Path) -> str:
    """The fingerprint of the store that the command of `_tell_command` makes."""
    changed = {"weights": str(weights), "weights_sha256": None, "key_map": "auto"}
    backbone = settings.backbone.model_copy(update=changed)
    index = ClipIndex.load(common.CLIP_INDEX)
    return prepare_work(index, backbone, settings.dataset, settings.store).plan.fingerprint


def _tell_command(settings: Settings, folder: Path) -> None:
    """Tell how to extract the maps of the new backbone as a new store."""
    changes = [f"backbone.weights={folder / 'backbone.safetensors'}"]
    if settings.backbone.weights_sha256 is not None:
        changes.append("backbone.weights_sha256=null")
    if settings.backbone.key_map != "auto":
        changes.append("backbone.key_map=auto")
    command = " ".join(["python cli.py extract", *(f"--set {change}" for change in changes)])
    console.print(f"{folder}; the new backbone's maps as a store: {command}", soft_wrap=True)
