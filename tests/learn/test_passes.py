"""Passes that several trainings ask for share the reading of what they want at the same time."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import torch

from dsts_pipeline.learn.passes import MapPass, make_passes, make_passes_together
from dsts_pipeline.learn.processes import ALONE
from dsts_pipeline.learn.training import Training
from tests.learn.recipes import recipe
from tests.learn.train_process import ReportingFeed, new_head

CPU = torch.device("cpu")
FIRST, SECOND = np.arange(8), np.arange(8, 12)


def ask(wanted, seen):
    for rows in wanted:
        got = []
        yield MapPass(rows, lambda batch, got=got: got.extend(batch.rows.tolist()))
        assert got == rows.tolist()
        seen.append(len(got))
    return sum(seen)


def test_rows_wanted_by_all_are_read_once():
    reads, seen, inside = [], [[], [], []], []

    def within(number):
        @contextmanager
        def context():
            inside.append(number)
            yield

        return context

    feed = ReportingFeed(lambda: reads.append(1))
    wanted = [FIRST, SECOND], [FIRST, FIRST, FIRST, SECOND], [SECOND]
    asking = [(ask(w, s), within(n)) for n, (w, s) in enumerate(zip(wanted, seen, strict=True))]
    assert make_passes_together(asking, feed, CPU, batch_size=4) == [12, 28, 4]
    # The first one waits at the second rows until the others are there.
    assert len(reads) == 3 * 2 + 1
    assert set(inside) == {0, 1, 2}


def test_asking_for_nothing_gives_the_result():
    feed = ReportingFeed(lambda: None)
    assert make_passes(ask([], []), feed, CPU) == 0


def test_trainings_of_one_data_seed_share_batches_and_held_out_clips():
    def training(**seeds):
        options = recipe(num_epochs=1, batch_size=4, heldout_fraction=0.25, **seeds)
        return Training(new_head("plain"), ReportingFeed(lambda: None), options, ALONE)

    def rows(training):
        pairs = training.remaining()
        return [part.tolist() for pair in pairs for part in pair], training.heldout.tolist()

    own, alike = training(seed=7), training(seed=7, data_seed=7)
    assert rows(own) == rows(alike)
    assert rows(training(seed=8, data_seed=7)) == rows(own) != rows(training(seed=8))
