"""Segments from the settings to answers for a video, joined on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dsts_pipeline.base.files import read_json
from dsts_pipeline.feature_store import join_views, open_store
from dsts_pipeline.metrics import Predictions
from tests.pipeline import TINY, run_cli

pytestmark = pytest.mark.long
SEGMENTS = {
    "backbone.views.segments": 2,
    "backbone.views.train": 2,
    "backbone.views.test_crops": 3,
    "backbone.views.augmentation.crop": "multi_scale",
    "store.dtype": "float32",
    "feed.views": "joined",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    for command in ("prepare", "extract", "train-head", "evaluate", "report"):
        run = run_cli(folder, command, **TINY, **SEGMENTS)
        assert run.returncode == 0, run.stderr
    return folder


def test_the_store_has_the_segments_of_every_view(folder):
    store = open_store(folder / read_json(folder / "outputs" / "features.json")["store"])
    assert len(store) == 48 * 4 + 24 * 6
    joined = join_views(store)
    assert len(joined) == 48 * 2 + 24 * 3
    assert joined.map_shape[1] == 2 * store.map_shape[1]
    metrics = json.loads((folder / "outputs" / "evaluation" / "metrics.json").read_text())
    assert (metrics["views"]["per_clip"], metrics["views"]["joined"]) == (3, 2)
    assert metrics["evaluated"] == 24


def test_predict_says_what_evaluate_said(folder):
    answers = Predictions.load(folder / "outputs/evaluation/predictions/dsts.npz")
    separate = TINY | SEGMENTS | {"feed.views": "separate"}  # the head's own file counts
    for source in ((), ("--bundle", "outputs/bundle")):
        if source:
            run = run_cli(folder, "export", "outputs/bundle", **separate)
            assert run.returncode == 0, run.stderr
        run = run_cli(
            folder, "predict", "data/stick_diving/rgb", "--json", "answers.jsonl", *source,
            **separate,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        lines = (folder / "answers.jsonl").read_text().splitlines()
        told = {entry["video"].split("/")[-1]: entry for entry in map(json.loads, lines)}
        compared = 0
        for clip, expected in zip(answers.clip_ids, answers.probabilities, strict=True):
            found = told[f"{clip}.mp4"]
            assert found["num_views"] == 3
            assert found["top"][0]["class"] == expected.argmax()
            np.testing.assert_allclose(
                found["top"][0]["probability"], expected.max(), rtol=1e-3, atol=1e-4
            )
            compared += 1
        assert compared == 24
