"""Lists for mmaction2's VideoDataset: what our reader of the same format makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips.annotation import Sources
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.tables import read_mmaction
from dsts_pipeline.serve.mmaction_files import write_annotation_lists


def index_of(*changes):
    clips = [
        Clip(f"c{n}", f"videos/c{n}.mp4", n % 2, split, 9, 0, 9, 100, "0" * 64)
        for n, split in enumerate(("train", "train", "test"))
    ]
    for number, change in changes:
        clips[number] = replace(clips[number], **change)
    return ClipIndex("d", "data", ("walk", "run fast"), (), ((), ()), tuple(clips))


def test_lists_are_read_back(tmp_path):
    index = index_of()
    assert write_annotation_lists(index, tmp_path) == {"train": 2, "test": 1}
    sources = Sources(video_folder=".", train_file=None, test_file=None, class_file=None)
    found = read_mmaction(tmp_path, sources)
    assert found.class_names == index.class_names
    assert [(c.path, c.label, c.split) for c in found.clips] == [
        (c.path, c.label, c.split) for c in index.clips
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_frame": 2}, "c1: frames 2 to 9 of the 9"),
        ({"end_frame": 5}, "whole videos only"),
        ({"path": "videos/a b.mp4"}, "has a space"),
    ],
)
def test_what_a_list_cannot_say_is_refused(tmp_path, change, message):
    with pytest.raises(DataError, match=message):
        write_annotation_lists(index_of((1, change)), tmp_path)
    assert not list(tmp_path.iterdir())
