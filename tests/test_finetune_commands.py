"""`finetune` and `pretrain-backbone` from the command line, and the way on with their weights."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import load_head
from dsts_pipeline.learn.passes import evaluate_rows
from dsts_pipeline.metrics import Predictions
from tests.pipeline import ROOT, TINY, WEIGHTS, command_of, run_cli, tell_plainly

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]
SETTINGS = {key.replace(".", "__"): value for key, value in TINY.items()} | {
    "dataset__render__num_train": 96,
    "train__heldout_fraction": 0.4,
    "finetune__num_epochs": 1,
    "finetune__batch_size": 8,
    "finetune__evaluate_test": "true",
}
NEW = "backbone.weights=outputs/finetuned/backbone.safetensors"


def read(folder: Path, name: str):
    return json.loads((folder / "outputs" / name).read_text())


def succeed(folder: Path, *arguments: str, **settings: object) -> str:
    run = run_cli(folder, *arguments, **SETTINGS | settings)
    assert run.returncode == 0, run.stderr
    return run.stderr


@pytest.fixture(scope="module")
def cached(tmp_path_factory) -> Path:
    """A folder with a trained head on cached maps."""
    folder = tmp_path_factory.mktemp("run")
    for stage in ("prepare", "extract", "train-head"):
        succeed(folder, stage)
    return folder


@pytest.fixture(scope="module")
def tuned(cached) -> tuple[Path, str]:
    """That folder after `finetune`, and what was told."""
    # Steps so small that the held-out loss falls: else the start would be kept, and its very maps.
    told = succeed(cached, "finetune", finetune__learning_rate=2e-5)
    best = [epoch["best"] for epoch in read(cached, "finetuned/history.json")["epochs"]]
    assert any(best), "no epoch was better than the start"
    return cached, told


def test_finetune_compares_with_the_cached_head_on_the_same_clips(tuned):
    folder, told = tuned
    found = read(folder, "finetuned/metrics.json")
    for split in ("heldout", "test"):
        assert 20 < found[split]["cached"]["clips"] == found[split]["finetuned"]["clips"] < 48
        assert found[split]["finetuned"]["failures"] == {}
        answers = {
            kind: Predictions.load(folder / f"outputs/finetuned/predictions/{split}_{kind}.npz")
            for kind in ("cached", "finetuned")
        }
        assert sorted(answers["cached"].clip_ids) == sorted(answers["finetuned"].clip_ids)
        for kind, of_kind in answers.items():
            assert of_kind.hits().mean() == pytest.approx(found[split][kind]["top1"])
    assert found["seconds_per_epoch"]["finetuned"] > found["seconds_per_epoch"]["cached"] > 0
    assert "top-1, heldout: " in told and f"python cli.py extract --set {NEW}" in told
    assert len(read(folder, "finetuned/history.json")["epochs"]) == 1


def test_new_maps_are_a_new_store_on_which_the_new_head_says_the_same(tuned):
    folder, _ = tuned
    old = read(folder, "features.json")["fingerprint"]
    copy = folder.parent / "next"
    shutil.copytree(folder, copy)
    succeed(copy, "extract", backbone__weights=NEW.partition("=")[2])
    record = read(copy, "features.json")
    assert record["fingerprint"] != old
    head, extra = load_head(copy / "outputs/finetuned/head")
    assert extra["store"] == record["fingerprint"]
    store = open_store(copy / record["store"])
    rows = store.rows_of_split("test")
    on_maps = evaluate_rows(head, FeatureFeed(store), rows, batch_size=8)
    assert on_maps.accuracy == pytest.approx(
        read(folder, "finetuned/metrics.json")["test"]["finetuned"]["top1"], abs=1 / 24 + 1e-9
    )
    # The head of the old maps does not pass for one of the new ones.
    message = tell_plainly(run_cli(copy, "evaluate", **SETTINGS))
    assert "trained on store" in message
    shutil.rmtree(copy / "outputs/heads")
    shutil.copytree(copy / "outputs/finetuned/head", copy / "outputs/heads/dsts")
    succeed(copy, "evaluate")


def test_another_backbone_than_that_of_the_maps_is_refused(tuned):
    folder, _ = tuned
    message = tell_plainly(
        run_cli(folder, "finetune", **SETTINGS | {"backbone__weights": NEW.partition("=")[2]})
    )
    assert "its maps are not those of stick_r18" in message and "weights differ" in message


def test_sigterm_saves_and_the_same_command_goes_on(cached, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(cached, copy)
    process = subprocess.Popen(
        command_of("finetune", **SETTINGS, finetune__checkpoint_every_batches=1),
        cwd=copy,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not list(copy.glob("outputs/checkpoints/*/state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 99, told
    assert "asked to stop: training saved after step" in told
    told = succeed(copy, "finetune", finetune__checkpoint_every_batches=1)
    assert "Training end to end: goes on from" in told
    assert not (copy / "outputs/checkpoints").exists()


def test_the_papers_order(cached, tmp_path):
    """A baseline on the classes, its maps, DSTS on them, then end to end."""
    copy = tmp_path / "run"
    shutil.copytree(cached, copy)
    succeed(copy, "pretrain-backbone", finetune__num_epochs=1)
    assert read(copy, "pretrained_backbone/metrics.json")["heldout"]["clips"] > 20
    weights = "outputs/pretrained_backbone/backbone.safetensors"
    for command in ("extract", "train-head", "finetune"):
        succeed(copy, command, backbone__weights=weights, train__num_epochs=1)
    assert (copy / "outputs/heads/baseline/head.json").exists()
