"""Frames straight from videos: views of epochs, broken clips, order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.groups import number_groups
from dsts_pipeline.base.training_clips import hold_out
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.feed import split_batches
from tests.learn.end_to_end.clips import NUM_CLIPS, feed_of, index_of


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    index_of(folder)
    return folder


@pytest.fixture
def pool():
    with DecodePool(0) as pool:
        yield pool


def frames_of(feed, rows):
    return torch.cat([batch.maps for batch in feed.batches(split_batches(np.array(rows), 5))])


def test_rows_are_the_clips_of_the_split_in_order(root, pool):
    index = index_of(root)
    feed = feed_of(index, pool, left_out=["clip3"])
    assert feed.rows.tolist() == [n for n in range(NUM_CLIPS - 2) if n != 3]
    assert feed.groups.tolist()[3] == "clip4" == feed.name_of(4)
    batch = next(feed.batches([np.array([5, 2, 9])]))
    assert batch.rows.tolist() == [5, 2, 9]
    assert batch.labels.tolist() == [index.clips[n].label for n in (5, 2, 9)]
    assert (batch.maps.dtype, tuple(batch.maps.shape)) == (torch.uint8, (3, 4, 16, 16, 3))


def test_an_epoch_has_views_of_its_own_that_come_again(root, pool):
    """Whatever the batches and whoever else was decoded before."""
    feed = feed_of(index_of(root), pool)
    first = frames_of(feed, range(8))
    feed.epoch = 1
    second = frames_of(feed, range(8))
    assert not torch.equal(first, second)
    again = feed_of(index_of(root), pool)
    again.epoch = 1
    assert torch.equal(frames_of(again, [6, 7]), second[6:])
    plain = [torch.cat([b.maps for b in f.plain.batches([np.arange(8)])]) for f in (feed, again)]
    assert torch.equal(*plain)


def test_without_augmentation_there_is_one_view(root, pool):
    feed = feed_of(index_of(root), pool, crop="centre")
    first = frames_of(feed, range(4))
    feed.epoch = 3
    assert torch.equal(frames_of(feed, range(4)), first)
    assert torch.equal(next(feed.plain.batches([np.arange(4)])).maps, first)


@pytest.fixture
def damaged(tmp_path):
    """An index of clips of which clip 6 was damaged since."""
    index = index_of(tmp_path)
    path = tmp_path / "clip6.mp4"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return index


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_clip_is_listed_and_never_replaced(damaged, num_workers):
    with DecodePool(num_workers) as pool:
        feed = feed_of(damaged, pool, crop="centre", max_failed_fraction=0.1)
        for _ in range(2):  # it isn't asked for again
            batches = list(feed.batches([np.array([4, 5, 6, 7]), np.array([8, 9])]))
            assert [batch.rows.tolist() for batch in batches] == [[4, 5, 7], [8, 9]]
            assert feed.failures == {"clip6": "its content changed since it was indexed"}


def test_too_many_broken_clips_end_the_training(damaged, pool):
    feed = feed_of(damaged, pool, crop="centre", max_failed_fraction=0.01)
    with pytest.raises(DataError, match=r"1 of 24 clips have no map, 0 are allowed .*clip6: its"):
        list(feed.batches([np.array([4, 6])]))


def test_batch_without_any_clip_is_an_error(damaged, pool):
    feed = feed_of(damaged, pool, crop="centre", max_failed_fraction=0.1)
    with pytest.raises(DataError, match=r"no clip of a batch of 1 can be decoded \(clip6: its"):
        list(feed.batches([np.array([6])]))


def test_several_processes_do_not_go_on_with_batches_of_other_sizes(damaged, pool):
    feed = feed_of(damaged, pool, crop="centre", max_failed_fraction=0.1, may_shrink=False)
    with pytest.raises(DataError, match=r"clip6: its content.*several processes need batches"):
        list(feed.batches([np.array([5, 6])]))


def test_the_clips_held_out_are_those_of_the_maps(root, pool):
    """The same whole groups, whether the clips come from videos or from a store."""
    index = index_of(root)
    clips = tuple(replace(c, group=f"player {n // 5}") for n, c in enumerate(index.clips))
    feed = feed_of(replace(index, clips=clips), pool)
    assert feed_of(index, pool).origins is None
    trained = [clip for clip in clips if clip.split == "train"]
    numbers = number_groups([c.id for c in clips], [c.group for c in clips])[: len(trained)]
    how = {"fraction": 0.4, "seed": 0, "by": "group"}
    _, held = hold_out(feed.rows, feed.labels, feed.groups, origins=feed.origins, **how)
    ids = np.array([clip.id for clip in trained])
    labels = np.array([clip.label for clip in trained])
    _, of_maps = hold_out(np.arange(len(ids)), labels, ids, origins=numbers, **how)
    assert [feed.name_of(row) for row in held] == ids[of_maps].tolist() and len(held)
