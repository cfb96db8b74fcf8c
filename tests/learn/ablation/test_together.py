"""Trained together or alone: the same heads, bit for bit on one thread; every batch read once."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from dsts_pipeline.base.children import StopRequest
from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.learn import TrainingStopped, train_head
from dsts_pipeline.learn.together import OwnRandomness, Together
from tests.learn.ablation.variants import VARIANTS, build, feed, member, options_of
from tests.learn.recipes import how
from tests.learn.test_loop_orders import make_feed

CPU = torch.device("cpu")


def without_times(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.fixture(scope="module")
def alone():
    """Values and history of every variant trained by itself."""
    found = {}
    for name in VARIANTS:
        head = build(name)
        history = train_head(head, feed(), **how(**options_of(name)))
        found[name] = head.state_dict(), without_times(history)
    return found


def check(members, alone):
    for trained in members:
        values, history = alone[trained.name]
        assert trained.finished and trained.failure is None
        assert without_times(trained.training.history) == history, trained.name
        assert same(trained.training.head.state_dict(), values), trained.name
        assert not trained.training.head.training


def test_each_variant_is_as_if_trained_alone(alone):
    common = feed()
    finished, told = [], []
    members = [member(name, common) for name in VARIANTS]
    before = torch.get_rng_state()
    together = Together(
        members, common, CPU, tell=told.append, on_finished=lambda m: finished.append(m.name)
    )
    together.run()
    check(members, alone)
    assert torch.equal(torch.get_rng_state(), before), "global randomness leaked"
    assert sorted(finished) == sorted(VARIANTS)
    assert len({values["classifier.weight"].sum().item() for values, _ in alone.values()}) == len(
        VARIANTS
    )
    dones = [statuses[0].done for statuses in told]
    assert dones == sorted(dones) and dones[-1] == 1.0
    assert all(s.finished and s.loss == s.loss for s in told[-1])


def test_variants_read_no_more_than_one_does():
    """UDL's epoch takes every map twice, in two roles; ten variants read as much as one."""

    def rows_read(names):
        counted = feed()
        rows = Counter()
        read = counted.batch

        def batch(wanted):
            rows.update(wanted.tolist())
            return read(wanted)

        counted.batch = batch
        members = [member(name, counted, recompute_statistics=False) for name in names]
        Together(members, counted, CPU).run()
        return rows, members[0].training

    one, training = rows_read(["full"])
    many, _ = rows_read(["full", "full again", "without udl", "all averaged"])
    assert many == one
    assert all(one[row] == 2 * 2 for row in training.rows.tolist())
    plain, training = rows_read(["without udl", "attention"])
    assert all(plain[row] == 2 for row in training.rows.tolist()), "once an epoch"
    assert all(plain[row] == 3 for row in training.heldout.tolist()), "once an evaluation"


def test_statistics_of_norms_share_their_maps():
    def num_reads(names):
        reads = []
        counted = feed(lambda: reads.append(1))
        Together([member(name, counted) for name in names], counted, CPU).run()
        return len(reads)

    assert num_reads(["full", "all averaged", "full again"]) == num_reads(["full"])


@pytest.mark.slow
def test_stop_saves_all_and_all_go_on(tmp_path, alone):
    """Stopped after every batch, from whatever place."""
    names = "full", "without udl", "dense"
    request = StopRequest(77)
    request.requested = True
    stops = []
    for _ in range(100):
        common = feed()
        members = [member(name, common, tmp_path) for name in names]
        try:
            Together(members, common, CPU, stop=request).run()
        except TrainingStopped as stopped:
            stops.append(stopped.exit_status)
            continue
        break
    assert 14 <= len(stops) < 99 and set(stops) == {77}
    check(members, alone)
    assert not any(tmp_path.iterdir()), "checkpoints of finished trainings go"


def test_members_saved_at_different_places_meet_again(tmp_path, alone):
    """A kill leaves checkpoints of different steps: each goes on from its own."""
    every = {"full": 1, "without udl": 2, "dense": 4, "dense plain": 5, "attention": 100}
    for stop_at in (3, 17, 9):
        reads = []

        def on_read(stop_at=stop_at, reads=reads):
            reads.append(1)
            if len(reads) == stop_at:
                raise InterruptedError

        broken = feed(on_read)
        members = [member(name, broken, tmp_path, n) for name, n in every.items()]
        with pytest.raises(InterruptedError):
            Together(members, broken, CPU).run()
    common = feed()
    members = [member(name, common, tmp_path, n) for name, n in every.items()]
    Together(members, common, CPU).run()
    check(members, alone)


def test_one_that_diverges_leaves_the_others_alone(alone):
    common = feed()
    members = [
        member("full", common),
        member("probe", common, learning_rate=1e30),
        member("without udl", common),
    ]
    told = []
    Together(members, common, CPU, tell=told.append).run()
    assert "probe, seed 1: training diverged: the loss is" in members[1].describe_failure()
    assert told[-1][1].failure and not members[1].finished
    check([members[0], members[2]], alone)
    assert not math.isnan(told[-1][0].loss)


def test_other_batches_are_refused():
    common = feed()
    members = [member("full", common), member("dense", common, batch_size=8)]
    with pytest.raises(SettingsError, match="dense and full go through other batches"):
        Together(members, common, CPU)
    balanced = [member(n, common, class_balanced=True) for n in ("full", "without udl")]
    with pytest.raises(SettingsError, match="go through other batches"):
        Together(balanced, common, CPU)


def test_randomness_goes_on_where_the_block_ended():
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    own = OwnRandomness(CPU)
    torch.manual_seed(9)
    drawn = []
    for _ in range(2):
        with own.within():
            drawn.append(torch.rand(2))
        torch.rand(3)
    assert torch.equal(torch.cat(drawn), expected)


def test_members_take_turns_with_views_as_one_alone_does():
    def training_batches(common):
        return [rows.tolist() for rows in common.asked if len(rows) <= 4]

    single = make_feed(num_clips=12, num_views=3)
    train_head(build("probe"), single, **how(**options_of("probe", num_epochs=3)))
    common = make_feed(num_clips=12, num_views=3)
    members = [member(name, common, num_epochs=3) for name in ("probe", "attention")]
    Together(members, common, CPU).run()
    assert training_batches(common) == training_batches(single)
    rows = [row for batch in training_batches(common) for row in batch]
    assert len(rows) == len(set(rows)) == 3 * 9  # three of twelve clips are held out
