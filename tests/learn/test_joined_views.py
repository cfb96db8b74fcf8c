"""What is trained and scored on joined maps is what a store of concatenated maps gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.settings import EvaluateSettings, FeedSettings, TrainSettings, UdlSettings
from dsts_pipeline.feature_store.joining import join_views
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import AttentiveProbe, DSTSHead, save_head
from dsts_pipeline.learn import CheckpointOptions, train_head
from dsts_pipeline.metrics.scoring import score_head
from tests.feature_store.segments import draw_maps, open_by_hand, open_segments

NUM_CLIPS = 36
TRAIN = TrainSettings(num_epochs=2, batch_size=6, learning_rate=1e-3, recompute_clips=12)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """Joined, by hand, and the store of segments itself."""
    folder = tmp_path_factory.mktemp("stores")
    maps = draw_maps(4 * NUM_CLIPS)
    for row in range(len(maps)):  # learnable, from either segment
        maps[row, row // 4 % 4] += 3.0
    store = open_segments(folder, NUM_CLIPS, dtype="float32", maps=maps)
    return join_views(store), open_by_hand(folder / "hand", store), store


def dsts(**options) -> DSTSHead:
    torch.manual_seed(0)
    small = {"num_neurons": 2, "num_layers": 1, "width": 4}
    return DSTSHead(6, 4, **small, **options)


def attentive() -> AttentiveProbe:
    torch.manual_seed(0)
    return AttentiveProbe(6, 4, readout_depth=2, readout_heads=2)


HEADS = {
    "dsts by UDL": (dsts, True),
    "dsts, attentive": (lambda: dsts(readout="attentive", readout_heads=2), True),
    "attentive probe": (attentive, False),
}


def train(head, store, udl: bool, checkpoints: CheckpointOptions | None = None, on_epoch=None):
    rows = store.rows_of_split("train")
    feed = FeatureFeed.from_settings(store, rows, FeedSettings())
    udl_settings = UdlSettings(enabled=udl)
    options = {"checkpoints": checkpoints, "on_epoch": on_epoch}
    history = train_head(head, feed, TRAIN, udl_settings, **options)
    return head, [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


@pytest.mark.parametrize("name", HEADS)
def test_training_and_scores_are_those_of_concatenated_maps(stores, name, tmp_path):
    build, udl = HEADS[name]
    joined, by_hand, _ = stores
    head, history = train(build(), joined, udl)
    other, expected = train(build(), by_hand, udl)
    assert history == expected
    before = build().state_dict()
    changed = 0
    for key, value in head.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key
        changed += not torch.equal(value, before[key])
    assert changed > 3
    found = []
    for store, trained in ((joined, head), (by_hand, other)):
        extra = {"store": store.fingerprint, "title": name} | store.describe_reading()
        folder = tmp_path / store.fingerprint
        save_head(folder, trained, extra)
        feed = FeatureFeed(store, store.rows_of_split("test"))
        found.append(score_head(folder, feed, EvaluateSettings(batch_size=5)))
    ours, theirs = (result.predictions for result in found)
    assert ours.clip_ids == theirs.clip_ids and len(ours) == NUM_CLIPS // 3
    np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    if found[0].without_time is not None:
        np.testing.assert_array_equal(found[0].without_time, found[1].without_time)


def test_a_stopped_training_goes_on_and_takes_no_other_readings_checkpoint(
    stores, tmp_path, capsys
):
    joined, _, separate = stores
    whole, history = train(dsts(), joined, udl=True)

    def options_of(store) -> CheckpointOptions:
        return CheckpointOptions(tmp_path, {"store": store.division})

    def crash(entry):
        if entry["epoch"] > history[0]["epoch"]:
            raise InterruptedError

    for store in (separate, joined):
        with pytest.raises(InterruptedError):
            train(dsts(), store, udl=True, checkpoints=options_of(store), on_epoch=crash)
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 2
    assert "goes on" not in capsys.readouterr().err
    head, again = train(dsts(), joined, udl=True, checkpoints=options_of(joined))
    told = " ".join(capsys.readouterr().err.split())
    assert "train: goes on from" in told and "(epoch 1, step" in told
    assert again == history
    for key, value in head.state_dict().items():
        assert torch.equal(value, whole.state_dict()[key]), key


def test_a_head_is_not_scored_on_maps_read_in_another_way(stores, tmp_path):
    joined, _, separate = stores
    readings = {"joined": joined, "separate": separate}
    for name, store in readings.items():
        extra = {"store": store.fingerprint, "title": name} | store.describe_reading()
        save_head(tmp_path / name, dsts(), extra)
    for name, store in readings.items():
        other = readings["separate" if name == "joined" else "joined"]
        score_head(tmp_path / name, FeatureFeed(store), EvaluateSettings())
        with pytest.raises(CheckpointError, match=f"set feed.views to {name}, or run"):
            score_head(tmp_path / name, FeatureFeed(other), EvaluateSettings())
    with pytest.raises(CheckpointError, match="joined maps of 2 views, and separate views are"):
        score_head(tmp_path / "joined", FeatureFeed(separate), EvaluateSettings())
