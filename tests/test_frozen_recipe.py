"""A recipe of docs/frozen-evaluation.md, shrunk, from videos to its table."""

from __future__ import annotations

import json

import pytest
import torch

from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import render_embedded
from stages import ablate, extract, prepare
from tests.test_presets import settings_of

transformers = pytest.importorskip("transformers", reason="the optional extra is not installed")
pytestmark = pytest.mark.long  # half a minute

# What makes it small; all else is the recipe's.
SHRUNK = (
    "dataset.official_counts=false",
    "backbone.size_px=32",
    "backbone.num_frames=8",
    "backbone.precision=float32",
    "backbone.num_decode_workers=0",
    "backbone.batch_size=32",
    "train.precision=float32",
    "train.num_epochs=1",
    "train.batch_size=16",
    "train.part_size=16",
    "evaluate.num_bootstrap=100",
    "ablate.num_seeds=2",
    "ablate.search=['train.learning_rate=0.001,0.0003']",
)


def save_small_encoder(folder):
    """A V-JEPA 2 of random weights with 24 layers and a probe of 48 classes, as it is published."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 24, "num_attention_heads": 2}
    predictor = {f"pred_{name}": value for name, value in sizes.items()}
    predictor["pred_num_hidden_layers"] = 1
    config = transformers.VJEPA2Config(
        **sizes, **predictor, crop_size=32, frames_per_clip=8, num_labels=48, mlp_ratio=1.0
    )
    transformers.VJEPA2ForVideoClassification(config).save_pretrained(folder)


def test_the_recipe_of_diving48_goes_from_videos_to_its_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = "experiment=vjepa2_l_diving48"
    settings = settings_of(tmp_path, recipe, *SHRUNK, "ablate.choose_by=evaluated")
    save_small_encoder(settings.backbone.weights)
    render = RenderSettings(
        num_train=48, num_test=16, size_px=32, num_frames=20, difficulty=1.0, num_workers=1
    )
    render_embedded(settings.dataset.root, render)
    prepare.run(settings)
    extract.dry_run(settings)
    extract.run(settings)
    record = json.loads((tmp_path / "outputs/features.json").read_text())
    shape = record["made_of"]["backbone"]["map_shape"]
    assert shape == [16, 4 * 4, 2, 2], "four layers of four steps of time"
    assert record["counts"]["stored"] == 48 * 4 + 16 * 4 * 3
    ablate.run(settings)
    results = json.loads((tmp_path / "outputs/ablation/results.json").read_text())
    assert set(results["variants"]) == {"attentive", "published", "linear", "dsts", "dsts_udl"}
    assert results["reference"] == "attentive" and results["num_clips"] == 16
    assert results["chosen_by"] == "the test split itself"
    for name, variant in results["variants"].items():
        assert len(variant["runs"]) == 2, name
        if name != "published":
            assert set(variant["runs"][0]["chosen"]) == {"train.learning_rate"}
