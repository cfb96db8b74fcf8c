"""Views from the settings to a trained and evaluated head."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from dsts_pipeline.base.files import read_json
from dsts_pipeline.feature_store import open_store
from tests.pipeline import TINY, run_cli

pytestmark = pytest.mark.long
VIEWS = {
    "backbone.views.train": 2,
    "backbone.views.test_clips": 2,
    "backbone.views.test_crops": 3,
    "backbone.views.augmentation.crop": "multi_scale",
    "backbone.views.augmentation.flip": 0.5,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for command in (("prepare",), ("extract", "--dry-run"), ("extract",)):
        run = run_cli(folder, *command, **TINY, **VIEWS)
        assert run.returncode == 0, run.stderr
    return folder


def test_the_store_has_every_view_of_every_clip(folder):
    store = open_store(folder / read_json(folder / "outputs" / "features.json")["store"])
    counts = Counter(store.video_ids)
    splits = {split: set() for split in ("train", "test")}
    for split in splits:
        for row in store.rows_of_split(split):
            splits[split].add(counts[store.video_ids[row]])
    assert splits == {"train": {2}, "test": {6}}
    assert len(store) == 48 * 2 + 24 * 6


def test_training_and_evaluation_take_them(folder):
    for command in ("train-head", "evaluate"):
        run = run_cli(folder, command, **TINY, **VIEWS)
        assert run.returncode == 0, run.stderr
    metrics = json.loads((folder / "outputs" / "evaluation" / "metrics.json").read_text())
    assert metrics["views"]["per_clip"] == 6


def test_flips_are_refused_where_the_data_set_forbids_them(folder):
    run = run_cli(folder, "extract", **TINY, **VIEWS, dataset__flip="forbidden")
    assert run.returncode == 2 and "dataset.flip is forbidden" in run.stderr
