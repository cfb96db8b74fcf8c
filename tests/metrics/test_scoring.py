"""What evaluation says of a head whose clips have several views."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import DSTSHead, LinearProbe, save_head
from dsts_pipeline.metrics import softmax
from dsts_pipeline.metrics.scoring import score_head
from tests.learn.small_feed import MemoryStore, ordered_feed


def scoring(batch_size: int, temporal_need: str = "none") -> EvaluateSettings:
    return EvaluateSettings(batch_size=batch_size, temporal_need=temporal_need)


def make_feed(num_views):
    store = MemoryStore(ordered_feed(12 * num_views).store.maps, np.arange(12 * num_views), 4)
    clips = np.arange(12).repeat(num_views)
    store.video_ids, store.labels = tuple(f"clip{clip}" for clip in clips), clips % 4
    store.fingerprint = "f" * 32
    return FeatureFeed(store)


def save(folder, head):
    save_head(folder, head, {"store": "f" * 32, "title": "a head"})
    return head.eval()


def test_probabilities_of_views_are_averaged(tmp_path):
    torch.manual_seed(0)
    feed = make_feed(num_views=3)
    head = save(tmp_path / "probe", LinearProbe(6, 4))
    found = score_head(tmp_path / "probe", feed, scoring(5)).predictions
    with torch.inference_mode():
        logits = head(torch.from_numpy(feed.store.maps)).numpy().astype(np.float64)
    powers = np.exp(logits)
    by_hand = (powers / powers.sum(axis=1, keepdims=True)).reshape(12, 3, 4).mean(axis=1)
    assert found.clip_ids == tuple(f"clip{clip}" for clip in range(12))
    assert found.labels.tolist() == [clip % 4 for clip in range(12)]
    np.testing.assert_allclose(found.probabilities, by_hand, rtol=1e-5)
    assert found.neurons is None


def test_every_view_is_routed(tmp_path):
    torch.manual_seed(0)
    feed = make_feed(num_views=2)
    save(tmp_path / "dsts", DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, width=4))
    found = score_head(tmp_path / "dsts", feed, scoring(24)).predictions
    neurons, labels = found.routes()
    assert neurons.shape == (24, 2) and found.neurons.shape == (12, 2)
    np.testing.assert_array_equal(neurons[::2], found.neurons)
    np.testing.assert_array_equal(labels, feed.labels)


def test_one_view_a_clip_is_a_row_a_clip(tmp_path):
    torch.manual_seed(0)
    feed = make_feed(num_views=1)
    head = save(tmp_path / "probe", LinearProbe(6, 4))
    found = score_head(tmp_path / "probe", feed, scoring(12)).predictions
    with torch.inference_mode():
        expected = softmax(head(torch.from_numpy(feed.store.maps)).numpy())
    np.testing.assert_array_equal(found.probabilities, expected)
    assert found.view_clips is None


@pytest.mark.parametrize("how", ["shuffle", "average"])
def test_need_of_time_and_pooled_features_are_measured_by_clip(tmp_path, how):
    torch.manual_seed(0)
    feed = make_feed(num_views=2)
    save(
        tmp_path / "dsts",
        DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, width=4, zero_start=False),
    )
    found = score_head(tmp_path / "dsts", feed, scoring(5, how))
    np.testing.assert_allclose(
        found.features, feed.store.maps.mean(axis=(2, 3, 4))[::2], rtol=1e-4, atol=1e-6
    )
    assert found.without_time.shape == (12, 4)
    assert not np.allclose(found.without_time, found.predictions.probabilities, atol=1e-4)
    other = score_head(tmp_path / "dsts", feed, scoring(24, how))
    np.testing.assert_allclose(other.without_time, found.without_time, atol=1e-6)


def test_need_of_time_can_be_left_out_and_is_not_asked_of_heads_that_do_not_route(tmp_path):
    torch.manual_seed(0)
    feed = make_feed(num_views=1)
    save(tmp_path / "dsts", DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, width=4))
    save(tmp_path / "probe", LinearProbe(6, 4))
    assert score_head(tmp_path / "dsts", feed, scoring(12)).without_time is None
    probe = score_head(tmp_path / "probe", feed, scoring(12, "shuffle"))
    assert probe.without_time is None and probe.features is None
