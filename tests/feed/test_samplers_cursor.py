"""A stopped training goes on with the very next batch, and never with other data."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.feed import EpochSampler, SamplerCursor

ROWS = np.arange(50)
SAMPLER = EpochSampler(ROWS, 8, seed=3, groups=np.array([f"clip {row // 2}" for row in ROWS]))


def go_through(cursor, num_batches):
    taken = []
    for _ in range(num_batches):
        taken.append(cursor.remaining()[0])
        cursor.advance()
    return taken


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3, 4, 9])
def test_goes_on_in_mid_epoch(paired, stop):
    undisturbed = go_through(SamplerCursor(SAMPLER, paired=paired), 12)
    stopped = SamplerCursor(SAMPLER, paired=paired)
    before = go_through(stopped, stop)
    state = json.loads(json.dumps(stopped.state_dict()))
    resumed = SamplerCursor(replace(SAMPLER), paired=paired)
    resumed.load_state_dict(state)
    np.testing.assert_equal(before + go_through(resumed, 12 - stop), undisturbed)


def test_batches_read_ahead_come_again():
    cursor = SamplerCursor(SAMPLER)
    cursor.remaining()[:3]
    assert cursor.state_dict()["batches_done"] == 0


def test_an_epoch_ends_with_its_last_batch():
    cursor = SamplerCursor(SAMPLER)
    go_through(cursor, len(SAMPLER.batches(0)))
    assert (cursor.epoch, cursor.num_done) == (1, 0)
    np.testing.assert_equal(cursor.remaining(), SAMPLER.batches(1))


@pytest.mark.parametrize(
    "other",
    [
        replace(SAMPLER, rows=ROWS + 1),
        replace(SAMPLER, groups=np.array([f"clip {row // 5}" for row in ROWS])),
        replace(SAMPLER, batch_size=7),
        replace(SAMPLER, order="sequential"),
        replace(SAMPLER, world_size=2),
        replace(SAMPLER, seed=4),
    ],
)
def test_a_state_of_other_data_is_refused(other):
    cursor = SamplerCursor(SAMPLER)
    with pytest.raises(SettingsError, match="went through other data or with other options"):
        cursor.load_state_dict(SamplerCursor(other).state_dict())
    with pytest.raises(SettingsError, match="saved paired is True, this one's is False"):
        cursor.load_state_dict(SamplerCursor(SAMPLER, paired=True).state_dict())


@pytest.mark.parametrize("place", [{"batches_done": 99}, {"batches_done": -1}, {"epoch": -1}])
def test_a_place_that_there_is_not_is_refused(place):
    cursor = SamplerCursor(SAMPLER)
    with pytest.raises(SettingsError, match="which there is not"):
        cursor.load_state_dict(cursor.state_dict() | place)
    assert (cursor.epoch, cursor.num_done) == (0, 0)
