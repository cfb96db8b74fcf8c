"""Presets of the paper's systems: their settings, and the configs of mmaction2 behind them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from ruamel.yaml import YAML

from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.mmaction_compat import accepts, build_model
from dsts_pipeline.extract.model_zoo import (
    GST_PRESETS,
    IMAGE_PRESETS,
    TRANSFORMERS_PRESETS,
    VJEPA2_1_PRESETS,
    ZOO_PRESETS,
    is_timm_name,
    preset_names,
    read_zoo_model,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def settings_of(option, folder):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("config", overrides=[f"backbone={option}"])
    with (folder / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(OmegaConf.to_container(config, resolve=True), file)
    return load_settings(folder / "params.yaml").backbone


def zoo_model(name):
    preset = ZOO_PRESETS[name]
    return read_zoo_model(
        preset.config, changes=preset.changes, pipeline_changes=preset.pipeline_changes
    )


def test_every_preset_has_its_settings_and_every_settings_file_a_preset():
    files = {path.stem for path in (CONFIGS / "backbone").glob("*.yaml")}
    of_several = {"hub", "stick_r18_8f", "timm", "tsm_r50_flow", "vjepa2_1"}
    assert files - of_several == set(preset_names()) - set(VJEPA2_1_PRESETS)
    of_others = {*TRANSFORMERS_PRESETS, *IMAGE_PRESETS, *GST_PRESETS, *VJEPA2_1_PRESETS}
    assert {*ZOO_PRESETS, *of_others} < set(preset_names())


def test_image_presets_need_nothing_but_their_packages(tmp_path):
    chosen = settings_of("efficientnet_lite0", tmp_path)
    assert (chosen.num_frames, chosen.size_px, chosen.batch_size) == (8, 224, 8)
    assert (CONFIGS.parent / chosen.weights).is_file(), "what DVC depends on has to exist"
    chosen = settings_of("timm", tmp_path)
    assert is_timm_name(chosen.name) and chosen.size_px is None


@pytest.mark.parametrize("name", sorted(ZOO_PRESETS))
def test_settings_of_a_preset_are_its_configs_own_input(name, tmp_path):
    chosen, pipeline = settings_of(name, tmp_path), zoo_model(name).pipeline
    assert chosen.name == name and chosen.weights.endswith(".pth")
    assert (chosen.num_frames, chosen.size_px) == (pipeline.num_frames, pipeline.size_px)


@pytest.mark.parametrize("name", TRANSFORMERS_PRESETS)
def test_transformers_presets_leave_the_input_to_the_model(name, tmp_path):
    chosen = settings_of(name, tmp_path)
    assert (chosen.name, chosen.num_frames, chosen.size_px) == (name, None, None)


def test_swin_b_follows_the_recipe_for_something_something(tmp_path):
    model = zoo_model("swin_b")
    backbone, pipeline = model.recognizer["backbone"], model.pipeline
    assert backbone["arch"] == "base" and tuple(backbone["window_size"]) == (16, 7, 7)
    assert backbone["drop_path_rate"] == 0.4 and backbone["pretrained2d"] is False
    assert pipeline.sampler == "swin_uniform" and pipeline.sample(320).shape == (1, 32)
    assert (pipeline.resize_px, pipeline.size_px) == (224, 224)
    assert settings_of("swin_b", tmp_path).key_map == "video_swin"


@pytest.mark.parametrize(
    ("name", "views", "length"),
    [
        ("tpn_slowonly_r50", 10, 8),
        ("tpn_tsm_r50", 2, 8),
        ("swin_t", 4, 32),
        ("slowfast_r50", 10, 32),
        ("i3d_r50", 10, 32),
        ("tsm_r50", 2, 8),
        ("mvit_s", 1, 16),
    ],
)
def test_sampling_is_that_of_the_published_test(name, views, length):
    assert zoo_model(name).pipeline.sample(300, 30.0).shape == (views, length)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "num_frames", "map_shape"),
    [
        ("tsm_r50", 8, (2048, 8, 2, 2)),
        ("i3d_r50", 16, (2048, 2, 2, 2)),
        ("mvit_s", 8, (768, 4, 2, 2)),
    ],
)
def test_presets_build(name, num_frames, map_shape):
    backbone = build_backbone(name, weights="random", num_frames=num_frames, size_px=64)
    assert backbone.map_shape == map_shape and backbone.name == name
    assert backbone.resize_px == zoo_model(name).pipeline.resized(size_px=64).resize_px
    assert backbone.describe()["input"]["num_frames"] == num_frames


def test_segments_of_a_shifting_backbone_follow_the_number_of_frames():
    backbone = build_backbone("tsm_r50", weights="random", num_frames=4, size_px=32)
    assert backbone.recognizer.backbone.num_segments == 4 and backbone.map_shape[1] == 4


def test_any_config_of_the_zoo_goes_by_its_name():
    name = "tsn_imagenet-pretrained-r50_8xb32-1x1x3-100e_kinetics400-rgb"
    backbone = build_backbone(name, weights="random", num_frames=2, size_px=32)
    assert backbone.name == name and backbone.map_shape == (2048, 2, 1, 1)
    with pytest.raises(SettingsError, match="did you mean 'swin_t'"):
        build_backbone("swim_t", weights="random")


def test_models_that_need_other_packages_say_so():
    with pytest.raises(UserError, match="cannot build this model .*choose another backbone.name"):
        build_model({"type": "Recognizer2D", "backbone": {"type": "NoSuchNet"}})
    assert accepts("SwinTransformer3D", "pretrained2d") and accepts("ResNetTSM", "depth")
    assert not accepts("SwinTransformer3D", "num_segments") and not accepts(None, "depth")
