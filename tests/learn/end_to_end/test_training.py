"""Fine-tuning on real clips: it learns, goes on bit for bit, keeps what is frozen, saves itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.base.children import StopRequest
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import FinetuneSettings
from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.learn import (
    CheckpointOptions,
    TrainingStopped,
    remove_checkpoints,
    train_head,
)
from dsts_pipeline.learn.end_to_end import stages_of
from dsts_pipeline.learn.finetune import finetune, peak_rate
from tests.learn.end_to_end.clips import feed_of, float_model, index_of
from tests.learn.end_to_end.tiny import CLASSES, new_backbone
from tests.learn.recipes import finetune_how, how
from tests.learn.small_feed import MemoryStore

ROOT = "backbone.model.recognizer."
COMMON = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.02, "seed": 3}
COMMON |= {"heldout_fraction": 0.2, "backbone_learning_rate_factor": 0.5, "recompute_clips": 8}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(tmp_path_factory.mktemp("clips"))


def train(index, checkpoints=None, crop="multi_scale", **changes):
    model_options = {k: changes.pop(k) for k in ("frozen_stages", "frozen") if k in changes}
    model = float_model(**model_options)
    with DecodePool(0) as pool:
        feed = feed_of(index, pool, crop)
        done = finetune(model, feed, checkpoints=checkpoints, **finetune_how(**COMMON | changes))
    return model, done


def same(first, second):
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


def test_it_learns_what_the_start_does_not_know(index):
    rates = {"learning_rate": 0.05, "backbone_learning_rate_factor": 1.0}
    model, done = train(index, crop="centre", num_epochs=15, udl=False, **rates)
    first, last = done.history[0], done.history[-1]
    assert last["train_loss"] < 0.7 * first["train_loss"]
    assert last["train_accuracy"] > first["train_accuracy"] + 0.2
    assert not model.training


def test_best_epoch_is_kept_and_the_start_is_a_candidate(index):
    """A learning rate that ruins everything leaves the start's values."""
    start = float_model().state_dict()
    ruined, done = train(index, learning_rate=0.5, num_epochs=1, schedule="constant")
    assert not done.history[0]["best"]
    assert same(ruined.state_dict(), start)


def test_the_heldout_clips_are_those_of_the_training_on_maps(index):
    _, done = train(index, num_epochs=0)
    numbers = np.array([n for n, clip in enumerate(index.clips) if clip.split == "train"])
    labels = np.array([index.clips[n].label for n in numbers])
    ids = np.array([index.clips[n].id for n in numbers])
    _, expected = hold_out(numbers[::-1], labels[::-1], ids[::-1], fraction=0.2, seed=3)
    assert set(done.heldout) == set(expected) and len(expected) > 2


def test_stop_requests_after_every_batch_change_nothing(tmp_path, index):
    """Augmented views, backbone, optimisers, noise: all go on bit for bit."""
    unstopped, history = train(index)
    request = StopRequest()
    request.requested = True
    options = CheckpointOptions(tmp_path, stop=request)
    for _ in range(40):
        try:
            model, again = train(index, options)
            break
        except TrainingStopped as stopped:
            assert stopped.exit_status == 99
    assert same(model.state_dict(), unstopped.state_dict())
    without = [[{**e, "seconds": 0} for e in found.history] for found in (history, again)]
    assert without[0] == without[1]
    remove_checkpoints(options)


def test_frozen_parts_keep_their_values_bit_for_bit(index):
    start = float_model().state_dict()
    model, _ = train(index, frozen_stages=1, frozen=["backbone.layer1.1."], optimizer="sgd")
    now = model.state_dict()
    moved = {n.removeprefix(ROOT) for n in start if not torch.equal(now[n], start[n])}
    of_net = {name for name in moved if name.startswith("backbone.")}
    assert of_net == {
        f"backbone.{name}" for name in ("layer1.0.weight", "layer1.0.bias", "layer2.0.weight")
    } | {"backbone.layer2.0.bias"}


def test_with_every_stage_frozen_the_head_alone_trains_on_views_of_its_own_each_epoch(index):
    start = float_model().state_dict()
    model, done = train(index, frozen_stages=3)
    now = model.state_dict()
    moved = {name for name in start if not torch.equal(now[name], start[name])}
    assert moved and all(name.startswith("head.") for name in moved)
    _, of_plain = train(index, frozen_stages=3, crop="centre")
    assert done.history[0]["train_loss"] != of_plain.history[0]["train_loss"]


def test_with_every_stage_frozen_it_is_the_training_on_cached_maps(index):
    """The same batches, head, optimiser: plain views, maps in float32."""
    common = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.02, "seed": 3}
    model = float_model(frozen_stages=3)
    cached = float_model(frozen_stages=3)
    with DecodePool(0) as pool:
        feed = feed_of(index, pool, "centre")
        frames = next(feed.plain.batches([feed.rows]))
        done = finetune(model, feed, **finetune_how(**common))
    with torch.no_grad():
        maps = cached.eval().maps(frames.maps).numpy()
    store = MemoryStore(maps, frames.labels.numpy(), CLASSES)
    same_rates = {"warmup_fraction": FinetuneSettings().warmup_fraction}
    history = train_head(cached.head, FeatureFeed(store), **how(**common | same_rates))
    for own, other in zip(done.history, history, strict=True):
        assert own["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)


def test_what_cannot_be_frozen_is_told():
    with pytest.raises(
        SettingsError, match=r"frozen_stages is 4, this backbone has 3: backbone.st"
    ):
        float_model(frozen_stages=4)
    with pytest.raises(SettingsError, match=r"begins with 'backbone.layr1'; expected such as 'bac"):
        float_model(frozen=["backbone.layr1"])


def test_what_is_not_on_the_way_to_the_map_does_not_train():
    names = float_model().backbone_parameters
    assert names and all(name.startswith("backbone.") for name in names)
    assert float_model(frozen_stages=3).backbone_parameters == {}


def test_stages_learn_at_their_own_rates():
    model = float_model()
    how = FinetuneSettings(
        num_epochs=1,
        learning_rate=1.0,
        backbone_learning_rate_factor=0.1,
        layer_decay=0.5,
        gate_learning_rate_factor=20.0,
        classifier_learning_rate_factor=5.0,
    )
    names = [name for name, _ in model.named_parameters()]
    rates = {name.removeprefix(ROOT): peak_rate(model, name, how) for name in names}
    assert list(stages_of(model.root)) == ["backbone.stem", "backbone.layer1", "backbone.layer2"]
    assert rates["backbone.layer2.0.weight"] == pytest.approx(0.1)
    assert rates["backbone.layer1.0.weight"] == pytest.approx(0.05)
    assert rates["backbone.stem.0.bias"] == pytest.approx(0.025)
    assert rates["head.layers.0.gate_logits"] == 20.0
    assert rates["head.layers.0.spatial_kernel"] == 1.0
    assert rates["head.classifier.weight"] == 5.0


def test_the_dropout_of_a_pass_is_drawn_once(index):
    """The same seed gives the same map, whatever was drawn in between; another one another map."""
    model = float_model(dropout=True)
    model.backbone.recognizer.backbone.drop.p = 0.5
    frames = torch.randint(0, 256, (2, 4, 16, 16, 3), dtype=torch.uint8)
    state = torch.get_rng_state()
    first, second, other = (model.maps(frames, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model.eval().maps(frames), model.maps(frames))


def test_map_is_that_of_the_frozen_backbone(index):
    """Before the first step, in training mode too: nothing of it is in another mode."""
    backbone = new_backbone().float()
    frames = torch.randint(0, 256, (3, 4, 16, 16, 3), dtype=torch.uint8)
    with torch.inference_mode():
        expected = backbone(frames)
    assert torch.equal(float_model().train().maps(frames), expected)
