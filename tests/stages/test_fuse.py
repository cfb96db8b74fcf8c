"""`evaluate` with another run's scores: a head of its own, from the runs' files to the report."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, read_signed
from dsts_pipeline.base.settings import EvaluateSettings, FuseSettings, ReportSettings, Settings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.head import LinearProbe, save_head
from dsts_pipeline.metrics import Predictions
from stages import common, evaluate, report
from tests.stages.ready_store import make_ready


def write_stream(folder: Path, seed: int) -> None:
    """A run's folder with features and a head with weights of its own."""
    folder.mkdir()
    store = open_store(make_ready(folder))
    torch.manual_seed(seed)
    head = LinearProbe(store.map_shape[0], len(store.class_names))
    extra = {"store": store.fingerprint, "title": "Linear probe", "provenance": {}}
    save_head(folder / common.HEADS / "linear_probe", head, extra)


def settings(**fuse: object) -> Settings:
    chosen = FuseSettings(head="linear_probe", **fuse)
    return Settings(
        evaluate=EvaluateSettings(num_bootstrap=100, fuse=chosen),
        report=ReportSettings(write_plots=False),
    )


def test_two_streams_are_a_head_of_their_own_in_evaluation_and_report(tmp_path, monkeypatch):
    for seed, name in enumerate(("flow", "rgb")):
        write_stream(tmp_path / name, seed)
        monkeypatch.chdir(tmp_path / name)
        evaluate.run(settings(weight=0.25, run=None if name == "flow" else "../flow/outputs"))
    own, second, both = (
        Predictions.load(common.PREDICTIONS / f"{name}.npz").probabilities
        for name in ("linear_probe", "second_stream", "two_streams")
    )
    flow = Predictions.load(Path("../flow") / common.PREDICTIONS / "linear_probe.npz")
    np.testing.assert_array_equal(second, flow.probabilities)
    assert np.abs(own - second).max() > 0.1
    np.testing.assert_allclose(both, 0.75 * own + 0.25 * second, rtol=1e-5)
    metrics = read_signed(common.METRICS)
    pairs = {(c["first_head"], c["second_head"]) for c in metrics["comparisons"]}
    assert {("two_streams", "linear_probe"), ("two_streams", "second_stream")} <= pairs
    assert "two_streams" in read_json(common.HEADLINE)
    report.run(settings())
    html = common.REPORT.read_text()
    assert "The paper’s Table 2." in html and "this run: 2 streams, fused late" in html
    for wrong, told in (("../nowhere", "holds no evaluated run"), (".", "holds no evaluated run")):
        with pytest.raises(DataError, match=told):
            evaluate.run(settings(run=wrong))
    with pytest.raises(DataError, match="this run itself"):
        evaluate.run(settings(run="outputs"))
    evaluate.run(settings(run=None))
    assert [path.stem for path in common.PREDICTIONS.iterdir()] == ["linear_probe"]
