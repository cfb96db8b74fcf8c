"""A small run, then `export` and `predict` as a user types them: the same answers as `evaluate`."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from dsts_pipeline.metrics import Predictions
from tests.pipeline import TINY, run_cli

pytestmark = pytest.mark.long
RUN = {key.replace(".", "__"): value for key, value in TINY.items()}


def call(folder, *arguments):
    run = run_cli(folder, *arguments, **RUN)
    assert run.returncode == 0, run.stderr
    return run


def test_answers_of_a_run_and_of_its_bundle_are_those_of_its_evaluation(tmp_path):
    for stage in ("prepare", "extract", "train-head", "evaluate"):
        call(tmp_path, stage)
    told = call(tmp_path, "export", "my_bundle", "--format", "bundle").stderr
    assert "my_bundle: DSTS head (N = 10, L = 3), 48 classes" in told
    evaluated = Predictions.load(tmp_path / "outputs/evaluation/predictions/dsts.npz")
    videos = [f"data/stick_diving/rgb/{name}.mp4" for name in evaluated.clip_ids]
    call(tmp_path, "predict", *videos, "--json", "run.jsonl")
    alone = tmp_path / "elsewhere"
    shutil.move(tmp_path / "my_bundle", alone / "my_bundle")
    shutil.move(tmp_path / "data", alone / "data")
    call(alone, "predict", *videos, "--bundle", "my_bundle", "--json", "run.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    again = [json.loads(line) for line in (alone / "run.jsonl").read_text().splitlines()]
    assert len(lines) == len(again) == len(videos)
    for row, (line, other) in enumerate(zip(lines, again, strict=True)):
        assert line["top"] == other["top"] and line["neurons"] == other["neurons"]
        np.testing.assert_array_equal(line["neurons"][0], evaluated.neurons[row])
        for entry in line["top"]:
            expected = evaluated.probabilities[row, entry["class"]]
            assert entry["probability"] == pytest.approx(expected, abs=2e-3)
