"""How many cached views are enough: `python -m benchmarks.cached_views`.

A frozen backbone, few clips, an augmentation, one head. The head is trained alike, from the same
first values, on one plain view of each clip, on V augmented views from a cache, and by `finetune`
with every stage of the backbone frozen, which draws new views in every epoch. Every seed has views
of its own, of which the smaller V are the first ones; all heads are scored on the same cached maps
of test clips. Times are CPU seconds of one thread, decoding included.

Leaves docs/cached-views.json, to which later calls add seeds, and the page that is made of it.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dvc.utils.hydra import compose_and_dump
from torch import nn

from benchmarks.cached_views_page import write_page
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import derive_seed, package_versions
from dsts_pipeline.base.settings import (
    AugmentationSettings,
    BackboneSettings,
    FinetuneSettings,
    LearningSettings,
    Settings,
    TrainSettings,
    UdlSettings,
    ViewSettings,
)
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.prepare import prepare_clips
from dsts_pipeline.extract.augmentation import import_transforms
from dsts_pipeline.extract.build import choose_backbone
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import plan_views
from dsts_pipeline.feature_store import FeatureStore, StoreWriter, open_store
from dsts_pipeline.feature_store.planning import prepare_work
from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head import AttentiveProbe
from dsts_pipeline.learn import train_head
from dsts_pipeline.learn.end_to_end import EndToEnd, stages_of
from dsts_pipeline.learn.finetune import finetune
from dsts_pipeline.learn.videos import VideoFeed
from dsts_pipeline.stick import render_embedded

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "cached-views.json"
VIEWS = (1, 2, 4, 8)
AUGMENTATION = AugmentationSettings(crop="multi_scale", flip=0.5, color_jitter=0.4)
# What `train` and `finetune` have in common: the defaults of `train`, nothing held out.
HOW = TrainSettings(heldout_fraction=0.0).model_dump(include=set(LearningSettings.model_fields))
NO_UDL = UdlSettings(enabled=False)


class Trial:
    """Clips, backbone and stores of one setting, below `home`.

    Args:
        settings: Data set and backbone.
        how: What decides a training on maps and on videos alike, by the names of settings.
    """

    def __init__(self, settings: Settings, home: Path, how: dict[str, Any]) -> None:
        render = settings.dataset.render
        assert render is not None
        self.home = home
        self.how = how
        self.dataset = settings.dataset.model_copy(update={"root": str(home / "data")})
        self.backbone = settings.backbone.model_copy(update={"num_decode_workers": 0})
        self.storage = settings.store.model_copy(update={"root": str(home / "stores")})
        render_embedded(self.dataset.root, render)
        self.index, _ = prepare_clips(
            self.dataset, cache_path=home / "probe_cache.json", decoders=[self.backbone.decoder]
        )
        self.plain = self.extract(ViewSettings(), self.index)
        self.test = FeatureFeed(self.plain, rows_of(self.plain, "test", 1))

    def clips(self, split: str, count: int | None = None) -> ClipIndex:
        """The index of the first clips of a split."""
        chosen = tuple(clip for clip in self.index.clips if clip.split == split)
        return replace(self.index, clips=chosen[:count])

    def with_views(self, views: ViewSettings) -> BackboneSettings:
        """The backbone's settings, with other views."""
        return self.backbone.model_copy(update={"views": views})

    def extract(
        self, views: ViewSettings, index: ClipIndex, root: str | None = None
    ) -> FeatureStore:
        """The store of those views of those clips below `root`, made where it is not there."""
        chosen = self.with_views(views)
        work = prepare_work(index, chosen, self.dataset, self.storage)
        root = root or self.storage.root
        folder = Path(root) / work.plan.fingerprint
        if not (folder / "manifest.json").exists():
            with StoreWriter(root, work.plan) as writer:
                extract_features(work.views, work.backbone, writer, chosen)
                writer.finish({})
        return open_store(folder)

    def head(self, seed: int) -> nn.Module:
        """An untrained head; the same one for the same seed."""
        torch.manual_seed(derive_seed(seed, "head"))
        return AttentiveProbe(self.plain.map_shape[0], len(self.plain.class_names))

    def train_on_maps(self, store: FeatureStore, num_views: int, seed: int) -> nn.Module:
        """The head, trained on the first `num_views` views of each training clip."""
        head = self.head(seed)
        feed = FeatureFeed(store, rows_of(store, "train", num_views))
        train_head(head, feed, TrainSettings(heldout_fraction=0.0, **self.how), NO_UDL, seed=seed)
        return head

    def train_on_videos(self, seed: int) -> nn.Module:
        """The head, trained on views that are new in each epoch, through the frozen backbone."""
        head = self.head(seed)
        backbone = choose_backbone(self.backbone)
        stages = len(stages_of(backbone.model.root))
        model = EndToEnd(backbone, head, frozen_stages=stages)
        assert not model.backbone_parameters
        views = ViewSettings(seed=seed, augmentation=AUGMENTATION)
        plan = plan_views(self.index, backbone, self.with_views(views), self.dataset)
        nothing_held_out = TrainSettings(heldout_fraction=0.0)
        with DecodePool(0) as pool:
            feed = VideoFeed(plan, "train", pool)
            finetune(model, feed, FinetuneSettings(**self.how), NO_UDL, nothing_held_out, seed=seed)
        return head

    @torch.inference_mode()
    def right(self, head: nn.Module) -> np.ndarray:
        """Which test clips `head` gets right, bool."""
        head.eval()
        batches = self.test.batches(split_batches(self.test.rows, 128))
        parts = [(head(batch.maps).argmax(dim=1) == batch.labels).numpy() for batch in batches]
        return np.concatenate(parts)


def rows_of(store: FeatureStore, split: str, num_views: int) -> np.ndarray:
    """Rows of the first `num_views` views of the clips of a split."""
    views = np.asarray(store.views)
    return np.flatnonzero((np.asarray(store.splits) == split) & (views < num_views))


def cpu_seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` returns, and the CPU seconds that it took this process."""
    start = time.process_time()
    found = work()
    return found, time.process_time() - start


def run_seed(trial: Trial, seed: int, *, on_the_fly: bool = True) -> dict[str, Any]:
    """Every way to train with one seed: which test clips were right, CPU seconds of an epoch."""
    views = ViewSettings(train=max(VIEWS), seed=seed, augmentation=AUGMENTATION)
    store = trial.extract(views, trial.clips("train"))
    ways: dict[str, Callable[[], nn.Module]] = {
        "plain": partial(trial.train_on_maps, trial.plain, 1, seed)
    }
    for count in VIEWS:
        ways[str(count)] = partial(trial.train_on_maps, store, count, seed)
    if on_the_fly:
        ways["fly"] = partial(trial.train_on_videos, seed)
    found: dict[str, Any] = {}
    for name, way in ways.items():
        head, seconds = cpu_seconds(way)
        hits = trial.right(head)
        console.print(f"seed {seed}, {name}: {hits.mean():.1%}, {seconds:.0f} CPU s")
        bits = base64.b64encode(np.packbits(hits).tobytes()).decode()
        found[name] = {"right": bits, "epoch_seconds": seconds / trial.how["num_epochs"]}
    return found


def time_extractions(trial: Trial, num_clips: int) -> dict[str, float]:
    """CPU seconds a clip of an extraction of V views, measured on some training clips."""
    index = trial.clips("train", num_clips)
    found = {}
    for count in VIEWS:
        views = ViewSettings(train=count, seed=0, augmentation=AUGMENTATION)
        with tempfile.TemporaryDirectory(dir=trial.home) as root:
            extract = partial(trial.extract, views, index, root)
            found[str(count)] = cpu_seconds(extract)[1] / len(index.clips)
    return found


def run(arguments: argparse.Namespace) -> None:
    """Train with every seed that the result file lacks, and write it after each.

    Raises:
        DataError: The file is of other settings.
    """
    torch.set_num_threads(1)
    import_transforms()
    arguments.home.mkdir(parents=True, exist_ok=True)
    chosen = {
        "experiment": "stick_something",
        "dataset.render.num_train": arguments.train,
        "dataset.render.num_test": arguments.test,
        "dataset.render.seed": arguments.render_seed,
    }
    params = arguments.home / "params.yaml"
    configs = str(ROOT / "configs")
    overrides = [f"{key}={value}" for key, value in chosen.items()]
    compose_and_dump(str(params), configs, None, "config", configs, overrides)
    settings = load_settings(params)
    weights = ROOT / str(settings.backbone.weights)
    backbone = settings.backbone.model_copy(update={"weights": str(weights)})
    settings = settings.model_copy(update={"backbone": backbone})
    how = HOW | {"num_epochs": arguments.epochs, "learning_rate": arguments.learning_rate}
    assert settings.dataset.render is not None
    regime = {
        "render": settings.dataset.render.model_dump(mode="json", exclude={"num_workers"}),
        "augmentation": AUGMENTATION.model_dump(mode="json"),
        "head": AttentiveProbe.__name__,
        "how": json.loads(json.dumps(how)),
    }
    found: dict[str, Any] = {"regime": regime, "versions": package_versions()}
    found |= {"extract_seconds": {}, "seeds": {}}
    if arguments.results.exists():
        found = read_json(arguments.results)
        if found["regime"] != regime:
            raise DataError(f"{arguments.results} is of other settings; delete it to begin anew")
    trial = Trial(settings, arguments.home, how)
    for seed in arguments.seeds:
        if str(seed) in found["seeds"]:
            continue
        if arguments.timed_clips and not found["extract_seconds"]:
            found["extract_seconds"] = time_extractions(trial, arguments.timed_clips)
        found["map_bytes"] = trial.plain.sample_bytes
        found["num_classes"] = len(trial.plain.class_names)
        found["seeds"][str(seed)] = run_seed(trial, seed, on_the_fly=not arguments.no_fly)
        write_json(arguments.results, found)
    if len(found["seeds"]) > 1 and found["extract_seconds"] and not arguments.no_fly:
        write_page(read_json(arguments.results), arguments.results.with_suffix(".md"))


def main() -> None:
    """Train, and write the result file and its page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "cached_views")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--train", type=int, default=120)
    parser.add_argument("--test", type=int, default=960)
    parser.add_argument("--render-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--timed-clips", type=int, default=48, help="0: extraction is not timed")
    parser.add_argument("--no-fly", action="store_true", help="a trial without on-the-fly training")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
