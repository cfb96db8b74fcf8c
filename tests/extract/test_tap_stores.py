"""Several taps in one pass: a store each, the same as if each had been extracted alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.extract.runner import TapStores, extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.extract.small_set import PoolingBackbone, index_clips, plan_store, write_clips
from tests.feature_store.small_store import read_tree
from tests.pipeline import WEIGHTS, run_cli


class TwoTaps(PoolingBackbone):
    """A second map, the average over the picture."""

    map_shapes = {"grid": (3, 4, 2, 2), "average": (3, 4, 1, 1)}
    num_passes = 0

    def extract(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        TwoTaps.num_passes += 1
        grid = self(frames)
        return {"grid": grid, "average": grid.mean((3, 4), keepdim=True)}


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, 14)
    return index_clips(root)


def _plans(index):
    main = plan_store(index)
    parts = {**main.fingerprint_parts, "tap": "average"}
    return main, replace(main, map_shape=(3, 4, 1, 1), fingerprint_parts=parts)


def _extract(root, index, plans, backbone, **settings):
    writers = [StoreWriter(root, plan) for plan in plans]
    try:
        chosen = BackboneSettings(num_decode_workers=0, **settings)
        extract_features(ViewPlan(index, backbone), backbone, writers, chosen)
        return [writer.finish({}).parent for writer in writers]
    finally:
        for writer in writers:
            writer.close()


def test_each_tap_has_its_store_and_the_clips_were_seen_once(index, tmp_path):
    TwoTaps.num_passes = 0
    main, other = _extract(tmp_path / "two", index, _plans(index), TwoTaps(), batch_size=4)
    assert TwoTaps.num_passes == 4
    (alone,) = _extract(tmp_path / "one", index, _plans(index)[:1], PoolingBackbone())
    assert read_tree(main) == read_tree(alone)
    grids, averages = (open_store(store).read(range(14)) for store in (main, other))
    assert averages.shape == (14, 3, 4, 1, 1)
    np.testing.assert_allclose(averages[..., 0, 0], grids.mean((3, 4)), rtol=2e-3)


def test_a_tap_that_is_there_already_is_left_alone(index, tmp_path):
    plans = _plans(index)
    (main,) = _extract(tmp_path, index, plans[:1], PoolingBackbone())
    before = {path: path.stat().st_mtime_ns for path in (main / "maps").iterdir()}
    _, other = _extract(tmp_path, index, plans, TwoTaps())
    assert before == {path: path.stat().st_mtime_ns for path in (main / "maps").iterdir()}
    assert len(open_store(other)) == 14


def test_stores_whose_shards_differ_are_refused(index, tmp_path):
    plans = plan_store(index), plan_store(index, 3)
    writers = [StoreWriter(tmp_path, plan) for plan in plans]
    with pytest.raises(ValueError, match="shards of the same rows"):
        TapStores(writers)
    for writer in writers:
        writer.close()


@pytest.mark.slow
def test_the_command_writes_a_store_for_each_tap_and_names_them(index, tmp_path):
    index.save(tmp_path / "outputs" / "clips.json")
    run = run_cli(
        tmp_path,
        "extract",
        backbone__weights=WEIGHTS,
        backbone__size_px=32,
        backbone__num_decode_workers=0,
        backbone__taps="[backbone, backbone.layer3, 'backbone:2x1x1']",
    )
    assert run.returncode == 0, run.stderr
    record = read_json(tmp_path / "outputs" / "features.json")
    main = open_store(tmp_path / record["store"])
    others = record["stores_of_other_taps"]
    assert others.keys() == {"backbone.layer3", "backbone:2x1x1"}
    other, averaged = (open_store(tmp_path / path) for path in others.values())
    assert len({main.path, other.path, averaged.path}) == 3
    assert main.read([0]).shape[1] == 128 and other.read([0]).shape[1] == 64
    assert main.video_ids == other.video_ids == averaged.video_ids
    whole = main.read(range(len(main))).astype(np.float32)
    pairs = whole.reshape(*whole.shape[:2], -1, 2, *whole.shape[3:]).mean(axis=3)
    np.testing.assert_allclose(averaged.read(range(len(main))), pairs, rtol=5e-3, atol=5e-3)
