"""Whether clips are enough for a training: what is told, and that what is told is true."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.training_clips import find_shortage, fit_to_clips, hold_out

LABELS = np.arange(20) % 4
IDS = np.array([f"clip {n}" for n in range(20)])


def shortage(**changes):
    options = {"batch_size": 10, "heldout_fraction": 0.0, "seed": 0, "paired": True}
    return find_shortage(LABELS, IDS, **(options | changes))


def test_enough_is_nothing_to_tell():
    assert shortage() == ""
    assert shortage(batch_size=500, paired=False) == ""
    assert shortage(batch_size=10, paired=False, world_size=2) == ""


def test_held_out_clips_and_processes_count():
    assert "16 training clips (4 more are held out)" in shortage(heldout_fraction=0.2)
    assert "at most 8, or set udl.enabled to false" in shortage(heldout_fraction=0.2)
    assert "expected at least 40 clips" in shortage(world_size=2)
    assert "all take a full batch; set train.batch_size to at most 6" in shortage(
        batch_size=7, paired=False, world_size=3
    )


@pytest.mark.parametrize("seed", range(5))
def test_the_largest_batch_that_is_told_is_enough_and_one_more_is_not(seed):
    told = shortage(batch_size=32, heldout_fraction=0.13, seed=seed)
    largest = int(told.partition("at most ")[2].split(",")[0])
    assert shortage(batch_size=largest, heldout_fraction=0.13, seed=seed) == ""
    assert shortage(batch_size=largest + 1, heldout_fraction=0.13, seed=seed)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("heldout_fraction", [0.0, 0.25])
def test_a_batch_is_cut_to_the_largest_that_clips_fill(paired, world_size, heldout_fraction):
    how = {"paired": paired, "world_size": world_size}
    for asked in range(1, 40):
        set_so = {"batch_size": asked, "heldout_fraction": heldout_fraction}
        size, fraction, told = fit_to_clips(LABELS, IDS, seed=0, **set_so, **how)
        fitted = {"batch_size": size, "heldout_fraction": fraction}
        assert shortage(**fitted, **how) == ""
        if shortage(**set_so, **how) == "":
            assert fitted == set_so and told == ""
        else:
            assert f"batches of {size} are taken" in told and fraction == heldout_fraction
            assert shortage(**fitted | {"batch_size": size + 1}, **how)


def test_fewer_held_out_clips_than_classes_choose_no_epoch():
    few = {"heldout_fraction": 0.1, "seed": 0, "paired": True}
    fitted = fit_to_clips(LABELS, IDS, batch_size=32, **few)
    assert fitted[:2] == (10, 0.0) and "can't choose an epoch: none is held out" in fitted.told
    alone = fit_to_clips(LABELS, IDS, batch_size=8, **few | {"paired": False})
    assert alone[:2] == (8, 0.0)
    assert alone.told.startswith("3 held-out clips of 4 classes can't choose an epoch")
    stopping = fit_to_clips(LABELS, IDS, batch_size=32, early_stopping_epochs=2, **few)
    assert stopping.heldout_fraction == 0.1


def test_eight_held_out_clips_choose_an_epoch_of_any_number_of_classes():
    labels, ids = np.arange(80) % 40, np.array([f"clip {n}" for n in range(80)])
    how = {"batch_size": 8, "seed": 0, "paired": False}
    assert fit_to_clips(labels, ids, heldout_fraction=0.1, **how) == (8, 0.1, "")
    assert fit_to_clips(labels, ids, heldout_fraction=0.08, **how).heldout_fraction == 0.0


def test_where_nothing_is_held_out_it_is_said():
    how = {"batch_size": 2, "seed": 0, "paired": True}
    told = fit_to_clips(LABELS, IDS, heldout_fraction=0.001, **how).told
    assert "holds out none of 20 training clips: the last epoch counts" in told
    assert fit_to_clips(LABELS, IDS, heldout_fraction=0.0, **how) == (2, 0.0, "")


def test_views_of_a_clip_count_once():
    doubled = find_shortage(
        np.repeat(LABELS, 2),
        np.repeat(IDS, 2),
        batch_size=11,
        heldout_fraction=0,
        seed=0,
        paired=True,
    )
    assert doubled.startswith("20 training clips,")


def test_early_stopping_needs_held_out_clips():
    assert "early stopping has nothing to judge by" in shortage(
        heldout_fraction=0.001, early_stopping_epochs=3, batch_size=2
    )


def test_no_clip_at_all_is_too_few():
    none = find_shortage(
        LABELS[:0], IDS[:0], batch_size=4, heldout_fraction=0.1, seed=0, paired=False
    )
    assert none.startswith("0 training clips") and "get more clips" in none
    kept, held = hold_out(LABELS[:0], LABELS[:0], IDS[:0], fraction=0.1, seed=0)
    assert len(kept) == len(held) == 0
