"""All stages of the demo: stick something, on a backbone that never saw it, by the default head.

The backbone never saw these classes, so there is no classifier to start from and no baseline.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests.pipeline import ROOT, TINY, WEIGHTS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder in which all five stages have run, the classifier asked for in vain."""
    folder = tmp_path_factory.mktemp("something")
    values = TINY | {"head.take_over_classifier": "true"}
    overrides = [f"{key}={value}" for key, value in values.items()]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("config", overrides=["experiment=small", *overrides])
    OmegaConf.save(config, folder / "params.yaml")
    stale = folder / "outputs" / "heads" / "baseline"
    stale.mkdir(parents=True)
    (stale / "head.json").write_text("{}")
    for stage in "prepare extract train-head evaluate report".split():
        run = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), stage],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert run.returncode == 0, f"{stage}: {run.stderr}"
        (folder / f"{stage}.txt").write_text(run.stderr)
    return folder


def read(folder: Path, name: str):
    return json.loads((folder / "outputs" / name).read_text())


def test_every_clip_has_its_map(folder):
    index = read(folder, "clips.json")
    assert len(index["class_names"]) == 24 and len(index["clips"]) == 72
    assert all(clip["path"].endswith(".webm") for clip in index["clips"])
    counts = read(folder, "features.json")["counts"]
    assert (counts["planned"], counts["stored"], counts["failed"]) == (72, 72, 0)


def test_heads_are_scored_without_a_baseline(folder):
    told = (folder / "train-head.txt").read_text()
    assert "no baseline" in told and "24 classes" in told
    metrics = read(folder, "evaluation/metrics.json")
    assert list(metrics["heads"]) == ["linear_probe", "attentive_probe", "dsts"]
    assert metrics["heads"]["dsts"]["title"] == "DSTS head (N = 1, L = 1)"
    assert metrics["evaluated"] == 24


def test_the_report_shows_the_classes(folder):
    page = (folder / "outputs" / "report" / "report.html").read_text()
    assert "Pushing something from left to right" in page
    assert "backbone&#39;s classifier" not in page
