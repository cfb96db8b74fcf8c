"""Settings: what is read, and what is said about what can't be."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import REMOVED_SETTINGS, load_settings, setting_keys
from dsts_pipeline.base.settings import Settings


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def fault_of(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(SettingsError) as caught:
        load_settings(write(folder, text), overrides)
    message = str(caught.value)
    assert len(message.splitlines()) <= 2
    return message


def test_empty_file_gives_all_defaults(tmp_path):
    assert load_settings(write(tmp_path, "")) == Settings()


def test_overrides_apply_in_order_and_to_missing_sections(tmp_path):
    overrides = ["head.num_neurons=3", "dataset.render.num_train=7", "head.num_neurons=5"]
    settings = load_settings(write(tmp_path, "seed: 4\n"), overrides)
    assert settings.seed == 4
    assert settings.head.num_neurons == 5
    assert settings.dataset.render is not None
    assert settings.dataset.render.num_train == 7


def test_values_are_read_as_yaml_1_2(tmp_path):
    # YAML 1.1 takes 1e-3 for a text and "no" for false.
    path = write(tmp_path, "dataset: {root: no}\nbackbone: {max_failed_fraction: 1e-3}\n")
    settings = load_settings(path, ["dataset.render=null"])
    assert settings.dataset.root == "no"
    assert settings.backbone.max_failed_fraction == 0.001
    assert settings.dataset.render is None


def test_whole_number_is_a_fine_fraction(tmp_path):
    assert load_settings(write(tmp_path, "backbone: {max_failed_fraction: 1}\n"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "head: {num_neuron: 4}",
            "head.num_neuron is not a setting; did you mean head.num_neurons",
        ),
        ("hed: {num_neurons: 4}", "hed is not a setting; did you mean head"),
        ("dataset: {render: {num_trian: 4}}", "did you mean dataset.render.num_train"),
        ("head: {num_neurons: ten}", 'head.num_neurons: found "ten" (text), expected a valid int'),
        ("head: {num_neurons: '4'}", 'found "4" (text), expected a valid integer'),
        ("head: {num_neurons: 0}", "found 0 (a number), expected greater than or equal to 1"),
        ("head: {num_neurons: 2.5}", "found 2.5 (a number), expected a valid integer"),
        ("train: {learning_rate: .inf}", "expected a finite number"),
        ("train: {mixup_alpha: .inf}", "expected a finite number"),
        ("head:", "head: found nothing (null), expected a section of settings"),
        (
            "backbone: {decoder: ffmpeg}",
            "expected 'auto', 'decord', 'pyav', 'torchcodec' or 'torchcodec_cuda'",
        ),
        ("udl: {method: first_order}", 'found "first_order" (text); first_order has no effect'),
        ("- 1", "found [1] (a list) at the top level, expected sections"),
        ("a: [", "not readable as YAML: line 2"),
        ("seed: 1\nseed: 2", 'line 2: found duplicate key "seed"'),
    ],
)
def test_fault_names_what_was_found_and_expected(tmp_path, text, expected):
    assert expected in fault_of(tmp_path, text + "\n")


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("num_neurons=4", "did you mean head.num_neurons"),
        ("head.num_neurons", "expected KEY=VALUE"),
        ("head.num_neurons=[", "is not a YAML value"),
        ("qqqqqqq=1", "`python cli.py show` lists all settings"),
        ("head.num_neurons=-1", "head.num_neurons: found -1"),
    ],
)
def test_fault_of_an_override(tmp_path, override, expected):
    assert expected in fault_of(tmp_path, "", override)


@pytest.mark.parametrize("key", REMOVED_SETTINGS)
def test_a_key_of_an_earlier_release_is_told_with_what_to_do(tmp_path, key):
    section, name = key.split(".")
    expected = f"{key} is no setting any more: {REMOVED_SETTINGS[key]}"
    assert expected in fault_of(tmp_path, f"{section}: {{{name}: 1}}\n")
    assert fault_of(tmp_path, "", f"{key}=1") == f"--set {key}=1: {expected}"
    assert key not in setting_keys()


def test_misspelt_name_is_told_before_other_faults(tmp_path):
    message = fault_of(tmp_path, "seed: x\nhead: {num_neuron: 3}\n")
    assert message.startswith(f"{tmp_path}/params.yaml: head.num_neuron is not a setting")
    assert message.endswith("(and 1 more fault)")


def test_missing_file(tmp_path):
    with pytest.raises(SettingsError, match="no such settings file"):
        load_settings(tmp_path / "nowhere.yaml")


def test_settings_can_not_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        Settings().seed = 3  # type: ignore[misc]


def test_keys_cover_nested_and_optional_sections():
    keys = set(setting_keys())
    assert {"seed", "head", "head.num_neurons", "dataset.render.num_train"} <= keys
