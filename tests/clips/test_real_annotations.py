"""The published annotation files, through the readers; they are no part of the repository.

They are looked for in $DSTS_REAL_DATA/annotations, else in ../shared/data beside the repository:
Diving48 V2, Something-Something v2 (without its training split, for which the validation split
stands in), and lists of them that other projects publish.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import read_annotations
from dsts_pipeline.clips.ssv2 import read_labels

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("DSTS_REAL_DATA", REPOSITORY.parent / "shared" / "data"))
FOLDER = DATA / "annotations"
LISTS = FOLDER / "lists"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no published annotations in {FOLDER}")


@pytest.fixture
def ssv2_root(tmp_path):
    for name, source in {"train": "validation", "validation": "validation", "test": "test"}.items():
        (tmp_path / f"{name}.json").symlink_to(FOLDER / f"something-something-v2-{source}.json")
    (tmp_path / "labels.json").symlink_to(FOLDER / "something-something-v2-labels.json")
    return tmp_path


def test_diving48_has_48_classes_though_one_never_occurs():
    found = read_annotations("diving48", FOLDER)
    assert Counter(clip.split for clip in found.clips) == {"train": 15_027, "test": 1_970}
    assert len(found.class_names) == 48  # the outputs that a head needs
    used = {clip.label for clip in found.clips}
    assert set(range(48)) - used == {30} and used < set(range(48))
    assert all(clip.start_frame == 0 and clip.end_frame > 0 for clip in found.clips)
    groups = {clip.id: clip.group for clip in found.clips}
    assert groups["-mmq0PT-u8k_00155"] == "-mmq0PT-u8k"


def test_something_something_templates_are_classes_and_indices_are_texts(ssv2_root):
    raw = json.loads((ssv2_root / "labels.json").read_text())
    assert {type(number) for number in raw.values()} == {str}
    found = read_annotations("ssv2", ssv2_root)
    assert len(found.class_names) == 174
    assert Counter(clip.split for clip in found.clips) == {"train": 24_777, "test": 24_777}
    assert len(found.unlabelled) == 27_157
    assert {clip.label for clip in found.clips} == set(range(174))
    names = {clip.id: found.class_names[clip.label] for clip in found.clips}
    assert names["74225"] == "Spinning something that quickly stops spinning"


def test_a_label_map_of_mmaction2_has_the_names_in_the_same_order():
    names = (LISTS / "mmaction2_sthv2_label_map.txt").read_text().splitlines()
    assert tuple(names) == read_labels(FOLDER / "something-something-v2-labels.json")


def test_a_list_of_videos_says_the_same_as_the_published_files(ssv2_root, tmp_path):
    listed = LISTS / "vifi_clip_ssv2_validation.txt"
    expected = {clip.id: clip.label for clip in read_annotations("ssv2", ssv2_root).clips}
    root = tmp_path / "lists"
    root.mkdir()
    for name in ("train.txt", "val.txt", "train.csv", "val.csv"):
        (root / name).symlink_to(listed)
    (root / "label_map.txt").symlink_to(LISTS / "mmaction2_sthv2_label_map.txt")
    for kind, classes in (("mmaction", None), ("csv", "label_map.txt")):
        found = read_annotations(kind, root, class_file=classes)
        assert len(found.class_names) == 174
        of_test = {clip.id: clip.label for clip in found.clips if clip.split == "test"}
        assert of_test == expected, kind
    assert "read as a list" in found.notes[0]


@pytest.mark.parametrize("kind", ["csv", "mmaction"])
@pytest.mark.parametrize("name", ["train_rgb.txt", "val_rgb.txt", "uniformer_ssv2_val.txt"])
def test_lists_of_raw_frames_are_refused_for_what_they_are(tmp_path, kind, name):
    (tmp_path / "train.txt").symlink_to(LISTS / name)
    with pytest.raises(
        DataError, match="line 1 .*as in lists of raw frames .*give the list of vid"
    ):
        read_annotations(kind, tmp_path, train_file="train.txt")


def test_why_frame_counts_of_a_list_are_not_trusted():
    # Extracted at other rates: what a list says of a clip's length is of its own frames.
    counts, labels = [], []
    for name in ("val_rgb.txt", "uniformer_ssv2_val.txt"):
        rows = [line.split() for line in (LISTS / name).read_text().splitlines()]
        counts.append({clip: number for clip, number, _ in rows})
        labels.append({clip: label for clip, _, label in rows})
    assert labels[0] == labels[1] and len(labels[0]) == 24_777
    assert all(counts[0][clip] != counts[1][clip] for clip in counts[0])
