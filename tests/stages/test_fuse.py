"""`evaluate` with another run's scores: a head of its own, from the runs' files to the report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.files import read_signed
from dsts_pipeline.metrics import Predictions
from tests.pipeline import ROOT, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, make_ready

TWO_STREAMS = {"evaluate__fuse__run": "../flow/outputs", "evaluate__fuse__weight": 0.25}


@pytest.mark.slow
def test_two_streams_are_a_head_of_their_own_in_evaluation_and_report(tmp_path):
    answers = {}
    for seed, name in enumerate(("flow", "rgb")):
        folder = tmp_path / name
        make_ready(folder)
        values = QUICK | {"seed": seed, "evaluate__num_bootstrap": 100}
        assert run_cli(folder, "train-head", **values).returncode == 0
        fused = TWO_STREAMS if name == "rgb" else {}
        done = run_cli(folder, "evaluate", **values, **fused)
        assert done.returncode == 0, done.stderr
        place = folder / "outputs" / "evaluation" / "predictions"
        answers[name] = Predictions.load(place / "dsts.npz")
    both = Predictions.load(place / "two_streams.npz")
    expected = 0.75 * answers["rgb"].probabilities + 0.25 * answers["flow"].probabilities
    np.testing.assert_allclose(both.probabilities, expected, rtol=1e-5)
    metrics = read_signed(place.parent / "metrics.json")
    assert list(json.loads((place.parent / "headline.json").read_text())).count("two_streams") == 1
    pairs = {(c["first_head"], c["second_head"]) for c in metrics["comparisons"]}
    assert {("two_streams", "dsts"), ("two_streams", "second_stream")} <= pairs
    values["report__write_plots"] = False
    done = run_cli(folder, "report", **values)
    assert done.returncode == 0, done.stderr
    html = (folder / "outputs" / "report" / "report.html").read_text()
    assert "The paper’s Table 2." in html and "this run: 2 streams, fused late" in html
    missing = values | {"evaluate__fuse__run": "../flow/outputs", "evaluate__fuse__head": "gst"}
    assert "expected one of" in tell_plainly(run_cli(folder, "evaluate", **missing))
    nowhere = values | {"evaluate__fuse__run": "../nowhere"}
    assert "holds no evaluated run" in tell_plainly(run_cli(folder, "evaluate", **nowhere))


def test_the_second_stream_has_a_group_of_settings():
    text = (Path(ROOT) / "configs" / "backbone" / "tsm_r50_flow.yaml").read_text()
    assert "input: flow" in text
