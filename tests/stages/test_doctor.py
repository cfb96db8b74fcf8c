"""doctor names what is wrong (decoder, versions, data, space, weights), or that all is well."""

from __future__ import annotations

import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import render_embedded
from stages import doctor, prepare
from tests.pipeline import WEIGHTS, params_of, run_cli

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here")
SIZES = {"num_train": 6, "num_test": 4, "size_px": 64, "num_frames": 6, "difficulty": 1.0}


@pytest.fixture
def settings_of(repository, tmp_path, monkeypatch):
    """A function of overrides; the data set is a rendered one that is used as it lies there."""
    monkeypatch.chdir(tmp_path)
    render_embedded(tmp_path / "data", RenderSettings(seed=1, num_workers=1, **SIZES))

    def load(*overrides: str):
        own = ["dataset.root=data", "dataset.render=null", f"backbone.weights={WEIGHTS}"]
        own += ["backbone.num_decode_workers=0", "dataset.num_probe_workers=1"]
        return load_settings(params_of(), [*own, *overrides])

    return load


def findings(settings) -> dict:
    return {finding.topic: finding for finding in doctor.examine_all(settings)}


def test_a_sound_machine_is_told_so_before_and_after_prepare(settings_of):
    settings = settings_of()
    found = findings(settings)
    assert all(finding.is_ok for finding in found.values()), found
    assert "10 clips of 48 classes in data, 0 missing" in found["data"].text
    assert "fits stick_r18: maps of 128 x 8 x 4 x 4" in found["weights"].text
    assert "unknown before" in found["time"].text
    prepare.run(settings)
    assert "for 10 pending clips, measured on 4 of them" in findings(settings)["time"].text


@pytest.mark.parametrize("decoder", ["decord", "auto", "pyav"])
def test_a_missing_decoder_is_named(settings_of, monkeypatch, decoder):
    monkeypatch.setitem(sys.modules, "decord", None)
    found = findings(settings_of(f"backbone.decoder={decoder}"))["decoder"]
    assert found.is_ok == (decoder != "decord")
    if decoder == "decord":
        assert '"dsts-pipeline[decord]"' in found.text
    assert ("PyAV reads all" in found.text) == (decoder == "auto")


def test_a_device_that_is_not_there_is_named(settings_of, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = findings(settings_of("backbone.device=cuda"))["devices"]
    assert not found.is_ok and "torch sees no CUDA device" in found.text
    assert "extraction runs on cpu" in findings(settings_of())["devices"].text


def test_missing_data_is_named(settings_of, tmp_path):
    found = findings(settings_of("dataset.root=elsewhere"))["data"]
    assert not found.is_ok and "elsewhere does not exist" in found.text
    (tmp_path / "data" / "rgb" / "stick_train_00003.mp4").unlink()
    found = findings(settings_of())["data"]
    assert not found.is_ok
    assert "1 of 10 annotated videos are missing, first rgb/stick_train_00003.mp4" in found.text
    assert findings(settings_of("dataset.max_problem_fraction=0.2"))["data"].is_ok


def test_too_little_space_is_named(settings_of, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    found = findings(settings_of())["space"]
    assert not found.is_ok and "are free; free space" in found.text


def test_weights_that_do_not_fit_are_named(settings_of, tmp_path):
    state = safetensors.torch.load_file(WEIGHTS)
    state["cls_head.fc_cls.weight"] = torch.zeros(3, 3)
    safetensors.torch.save_file(state, tmp_path / "other.safetensors")
    found = findings(settings_of("backbone.weights=other.safetensors"))["weights"]
    assert not found.is_ok and "cls_head.fc_cls.weight (3, 3) instead of (3, 128)" in found.text
    found = findings(settings_of("backbone.weights=gone.safetensors"))["weights"]
    assert not found.is_ok and "gone.safetensors" in found.text


def test_wrong_versions_are_named(settings_of, monkeypatch):
    monkeypatch.setattr("stages.doctor._own_requirements", lambda: ["numpy>=99", "no-such-package"])
    found = findings(settings_of())["versions"]
    assert not found.is_ok
    assert "numpy is" in found.text and "no-such-package is missing" in found.text


@pytest.mark.slow
def test_exit_status_and_lines_of_the_command(settings_of, tmp_path):
    settings = {"dataset__render": "null", "dataset__root": "data", "backbone__weights": WEIGHTS}
    sound = run_cli(tmp_path, "doctor", **settings)
    assert sound.returncode == 0, sound.stderr
    topics = [line.split()[:2] for line in sound.stderr.splitlines()]
    names = "versions decoder devices data weights space time".split()
    assert topics == [["ok", name] for name in names]
    (tmp_path / "data" / "Diving48_V2_test.json").write_text(json.dumps([]))
    ill = run_cli(tmp_path, "doctor", **settings)
    assert ill.returncode == 1
    assert "do  data" in ill.stderr and "test split is empty" in ill.stderr
    assert ill.stderr.splitlines()[-1].startswith("error: 1 of these checks failed")


def test_weights_with_another_digest_than_the_settings_are_told(settings_of):
    chosen = settings_of(f"backbone.weights_sha256={'a' * 64}").backbone
    with pytest.raises(CheckpointError, match="aaaa"):
        doctor.check_weights(chosen)
