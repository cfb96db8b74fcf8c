"""The loop learns, describes itself, repeats itself, and never leaves a head below its start."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.head import DSTSHead, LinearProbe
from dsts_pipeline.learn import train_head
from dsts_pipeline.learn.passes import Evaluation, evaluate_rows
from dsts_pipeline.learn.training import Training
from tests.learn.recipes import how
from tests.learn.small_feed import ordered_feed

HEAD = {"num_neurons": 2, "num_layers": 1, "impulse": "standardized", "impulse_spread": 5.0}
OPTIONS = {"batch_size": 16, "learning_rate": 0.02, "gate_learning_rate_factor": 10.0}


def new_head(seed=0, **changes):
    torch.manual_seed(seed)
    return DSTSHead.paper(6, 4, **{**HEAD, **changes})


@pytest.mark.parametrize(
    ("udl", "estimator", "num_neurons", "num_epochs"),
    [(False, "dense", 2, 24), (True, "selected", 1, 12)],
)
def test_learns_what_pooling_cannot_see(udl, estimator, num_neurons, num_epochs):
    feed, test = ordered_feed(), ordered_feed(64, seed=1)
    probe = LinearProbe(6, 4)
    head = new_head(num_neurons=num_neurons, routing_gradient=estimator)
    train_head(probe, feed, **how(num_epochs=4, **OPTIONS))
    train_head(head, feed, **how(num_epochs=num_epochs, udl=udl, **OPTIONS))
    assert evaluate_rows(probe, test, test.rows, batch_size=64).accuracy < 0.5
    assert evaluate_rows(head, test, test.rows, batch_size=64).accuracy > 0.8
    assert not head.training


def test_history_is_json_and_complete():
    feed, seen = ordered_feed(), []
    head = new_head()
    history = train_head(
        head, feed, on_epoch=seen.append, **how(num_epochs=2, heldout_fraction=0.25, **OPTIONS)
    )
    assert json.loads(json.dumps(history, allow_nan=False)) == history == seen
    entry = history[1]
    assert entry["epoch"] == 1
    expected = {"train_loss", "train_accuracy", "heldout_loss", "heldout_accuracy", "seconds"}
    assert expected <= set(entry)
    assert len(entry["layers"]) == 1
    layer = entry["layers"][0]
    assert sum(layer["usage"]) == pytest.approx(1.0)
    assert 0 <= layer["entropy"] <= np.log(2) + 1e-9
    assert len(layer["temporal_share"]) == 2
    assert layer["saturated_share"] >= 0


def test_same_seed_same_head():
    def weights():
        head = new_head()
        options = how(num_epochs=2, seed=3, heldout_fraction=0.2, **OPTIONS)
        train_head(head, ordered_feed(), **options)
        return head.state_dict()

    first, second = weights(), weights()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_training_that_only_harms_keeps_the_start():
    head = new_head(zero_start=True)
    start = {name: value.clone() for name, value in head.state_dict().items()}
    options = {**OPTIONS, "learning_rate": 3.0, "optimizer": "sgd", "udl": False}
    history = train_head(
        head, ordered_feed(), **how(num_epochs=1, heldout_fraction=0.25, **options)
    )
    assert not history[0]["best"]
    for name, value in head.named_parameters():
        assert torch.equal(value, start[name]), name


def test_the_most_accurate_epoch_is_kept_and_of_equals_that_of_the_lower_loss(monkeypatch):
    """Of the start and four epochs: the loss alone would keep the start."""
    found = iter([(0.4, 1.0), (0.6, 1.5), (0.5, 1.1), (0.6, 1.4), (0.6, 1.6)])

    def evaluate(self):
        accuracy, loss = next(found)
        yield from ()
        return Evaluation(loss, accuracy, None)

    monkeypatch.setattr(Training, "_evaluate", evaluate)
    head = new_head()
    kept = {}

    def note(entry):
        kept[entry["epoch"]] = head.classifier.weight.detach().clone()

    options = OPTIONS | {"num_epochs": 4, "heldout_fraction": 0.25}
    history = train_head(head, ordered_feed(), on_epoch=note, **how(**options))
    assert [entry["best"] for entry in history] == [True, False, True, False]
    same = [torch.equal(head.classifier.weight, weight) for weight in kept.values()]
    assert same == [False, False, True, False]


def test_divergence_is_an_error():
    options = {**OPTIONS, "learning_rate": 1e30, "udl": False}
    with pytest.raises(SettingsError, match="diverged.*lower train.learning_rate"):
        train_head(new_head(), ordered_feed(), **how(num_epochs=3, **options))


def test_too_few_clips_for_pairs():
    with pytest.raises(SettingsError, match="batch size"):
        train_head(new_head(), ordered_feed(24), **how(num_epochs=1, batch_size=16))


def test_held_out_clips_are_a_stratified_part():
    labels = np.repeat(np.arange(4), 25)
    rows = np.arange(100) + 7
    groups = np.array([f"clip{row // 2}" for row in rows])
    kept, held = hold_out(rows, labels, groups, fraction=0.2, seed=0)
    assert sorted([*kept, *held]) == rows.tolist()
    assert not set(groups[kept - 7]) & set(groups[held - 7])
    assert all(3 <= (labels[held - 7] == k).sum() <= 8 for k in range(4))
    assert hold_out(rows, labels, groups, fraction=0.0, seed=0)[1].size == 0
