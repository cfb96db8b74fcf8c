"""prepare: the embedded data sets, and rules of mirroring that do not fit the classes."""

from __future__ import annotations

import json

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings
from stages import prepare
from tests.pipeline import params_of

SOMETHING = [
    "dataset.name=stick_something",
    "dataset.format=ssv2",
    "dataset.root=data/stick_something",
    "dataset.flip=label_mapped",
    "dataset.render.renderer=stick_something",
    "dataset.render.num_train=26",
    "dataset.render.num_test=25",
    "dataset.render.size_px=32",
    "dataset.render.num_frames=4",
    "dataset.render.num_workers=1",
]


def test_stick_something_is_rendered_and_indexed(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(
        params_of(), [*SOMETHING, "dataset.flip_pairs=[[11,12],[13,14],[21,22]]"]
    )
    prepare.run(settings)
    index = json.loads((tmp_path / "outputs/clips.json").read_text())
    assert [clip["split"] for clip in index["clips"]] == ["train"] * 26 + ["test"] * 25
    assert index["class_names"][11] == "Pulling something from left to right"
    assert {clip["num_frames"] for clip in index["clips"]} == {4} and index["problems"] == []


def test_flip_pairs_of_another_data_set_are_refused(repository, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = load_settings(params_of(), [*SOMETHING, "dataset.flip_pairs=[[86,87]]"])
    with pytest.raises(SettingsError, match="no class 86; expected 0 to 23"):
        prepare.run(settings)
    assert not (tmp_path / "outputs/clips.json").exists()
