"""A training's time, said before it begins: near what it takes, and nobody notices the saying."""

from __future__ import annotations

import time

import pytest
import torch

from dsts_pipeline.head import DSTSHead, LinearProbe
from dsts_pipeline.learn import estimate, train_head
from dsts_pipeline.learn.estimate import estimate_seconds, tell_seconds
from dsts_pipeline.learn.processes import ALONE
from dsts_pipeline.learn.training import Training
from tests.learn.recipes import how, recipe
from tests.learn.small_feed import ordered_feed

OPTIONS = {"num_epochs": 3, "batch_size": 8, "heldout_fraction": 0.25}


def build():
    torch.manual_seed(0)
    return DSTSHead.paper(6, 4, num_neurons=3, num_layers=2, width=4)


@pytest.mark.parametrize("udl", [True, False])
def test_is_near_what_the_training_takes(udl):
    feed = ordered_feed(512)
    expected = estimate_seconds(build, feed, recipe(udl=udl, **OPTIONS), ALONE)
    head = build()
    start = time.perf_counter()
    train_head(head, feed, **how(udl=udl, **OPTIONS))
    took = time.perf_counter() - start
    assert took / 4 < expected < took * 4  # a busy machine's steps differ by as much


def test_leaves_random_numbers_as_they_were():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    estimate_seconds(build, ordered_feed(), recipe(**OPTIONS), ALONE)
    assert torch.equal(torch.get_rng_state(), before)


def test_twice_the_epochs_take_about_twice_the_time():
    def seconds(num_epochs):
        options = OPTIONS | {"num_epochs": num_epochs}
        return estimate_seconds(build, ordered_feed(), recipe(**options), ALONE)

    assert seconds(0) == 0.0
    assert seconds(40) > 3 * min(seconds(2) for _ in range(3))


def test_the_first_step_is_not_counted_where_an_epoch_is_one_step(monkeypatch):
    real = Training.step
    made = []

    def step(self, *batches):
        time.sleep(0 if made else 0.5)
        made.append(len(batches))
        return real(self, *batches)

    monkeypatch.setattr(Training, "step", step)
    options = {"num_epochs": 100, "batch_size": 6, "heldout_fraction": 0.0}
    assert estimate_seconds(build, ordered_feed(12), recipe(**options), ALONE) < 100 * 0.5
    assert len(made) >= 2


def test_a_head_without_layers_has_a_time_too():
    options = OPTIONS | {"udl": False}
    assert estimate_seconds(lambda: LinearProbe(6, 4), ordered_feed(), recipe(**options), ALONE) > 0


def test_seconds_in_words():
    assert [tell_seconds(s) for s in (4.4, 90, 600, 9000)] == ["4 s", "90 s", "10 min", "2.5 h"]


def test_the_first_and_a_busy_moment_are_not_taken_for_the_pace():
    seconds = iter([9.0, 0.2, 0.1, 0.15, 0.0])
    assert estimate._fastest(lambda: next(seconds)) == 0.1
    assert next(seconds) == 0.0  # not asked for: half a second was over
    slow = iter([9.0, 5.0])
    assert estimate._fastest(lambda: next(slow)) == 5.0
