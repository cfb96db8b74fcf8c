"""Presets: every experiment composes and is valid; the paper's hold what the paper states."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from dsts_pipeline.base.params import list_variants, load_settings
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.model_zoo import preset_names
from dsts_pipeline.stick.something_motion import CLASS_NAMES, FLIP_PAIRS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def settings_of(folder: Path, *overrides: str) -> Settings:
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("config", overrides=list(overrides))
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(OmegaConf.to_container(config, resolve=True), file)
    return load_settings(folder / "params.yaml")


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_is_valid_and_names_a_backbone_that_exists(name, tmp_path):
    settings = settings_of(tmp_path, f"experiment={name}")
    assert settings.backbone.name in preset_names()
    if settings.ablate.variants:
        listed = {one.name for one in settings.ablate.variants} - set(settings.ablate.leave_out)
        assert listed <= {variant.name for variant in list_variants(settings)}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_says_the_command_that_runs_it(name):
    text = (CONFIGS / "experiment" / f"{name}.yaml").read_text()
    assert text.startswith("# @package _global_\n# ")
    if name not in ("small", "without_udl"):
        assert f"dvc exp run -S experiment={name}" in text


@pytest.mark.parametrize(
    ("recipe", "stated"), [("tpn", ("sgd", 0.01)), ("video_swin", ("adamw", 3e-4))]
)
def test_the_papers_settings_are_complete(recipe, stated, tmp_path):
    settings = settings_of(tmp_path, "head=paper", f"train={recipe}")
    head, train = settings.head, settings.train
    assert (head.num_neurons, head.num_layers, head.width) == (10, 3, None)
    assert (head.specialization, head.synapse, head.temperature) == ("gated", True, 1.0)
    assert (head.impulse, head.routing_gradient) == ("sum", "dense")
    assert (head.skip, head.layer_residual, head.zero_start) == (True, False, False)
    assert (head.gumbel_scale, head.gate_noise_scale) == (1.0, 1.0)
    assert settings.udl.enabled and settings.udl.method == "exact"
    assert (train.optimizer, train.learning_rate, train.batch_size) == (*stated, 8)
    assert train.gate_learning_rate_factor == train.scoring_learning_rate_factor == 1.0
    assert train.classifier_learning_rate_factor == 1.0


@pytest.mark.parametrize("name", ["ssv2", "diving48"])
def test_published_data_sets_are_read_as_published(name, tmp_path):
    dataset = settings_of(tmp_path, f"dataset={name}").dataset
    assert (dataset.format, dataset.official_counts, dataset.render) == (name, True, None)


@pytest.mark.parametrize("name", ["folder", "csv", "mmaction"])
def test_ones_own_videos_are_never_mirrored_unasked(name, tmp_path):
    dataset = settings_of(tmp_path, f"dataset={name}").dataset
    assert (dataset.format, dataset.flip, dataset.render) == (name, "forbidden", None)


def test_something_something_swaps_three_pairs_and_diving_none(tmp_path):
    ssv2 = settings_of(tmp_path, "dataset=ssv2").dataset
    assert (ssv2.flip, ssv2.flip_pairs) == ("label_mapped", ((86, 87), (93, 94), (166, 167)))
    assert settings_of(tmp_path, "dataset=diving48").dataset.flip == "allowed"


def test_the_preset_of_stick_something_is_that_of_its_classes(tmp_path):
    dataset = settings_of(tmp_path, "dataset=stick_something").dataset
    assert dataset.flip_pairs == FLIP_PAIRS
    assert dataset.render is not None and dataset.render.renderer == dataset.name
    assert dataset.render.num_train % len(CLASS_NAMES) == 0
