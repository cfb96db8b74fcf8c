"""`use`: choices that last, in a copy of the project's files; --set with groups."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dsts_pipeline.base.choices import CHOICES
from dsts_pipeline.base.files import hold_alone
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.settings import Settings
from stages import use
from tests.pipeline import ROOT, run_cli, tell_plainly
from tests.test_architecture import compose, group_options

OWN = ["dataset=folder", "dataset.root=/data/mine", "backbone=swin_t"]
PARAMS = Path("params.yaml")


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """Settings and groups, in a folder that is the current one."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / CHOICES).unlink(missing_ok=True)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def choose(*texts: str) -> Settings:
    use.run(texts, PARAMS, reset=False)
    return load_settings(PARAMS)


def composed(*overrides: str) -> Settings:
    """What `dvc exp run -S` would compose here."""
    from dvc.utils.hydra import compose_and_dump

    configs = str(Path("configs").resolve())
    compose_and_dump("composed.yaml", configs, None, "config", configs, list(overrides))
    return load_settings(Path("composed.yaml"))


def refused(folder: Path, *texts: str) -> str:
    """The message of a refused `use`, after which all files are as they were."""
    before = {path: path.read_bytes() for path in folder.rglob("*.yaml")}
    told = tell_plainly(run_use(folder, *texts))
    assert {path: path.read_bytes() for path in folder.rglob("*.yaml")} == before
    return told


def run_use(folder: Path, *texts: str):
    command = [sys.executable, str(ROOT / "cli.py"), "use", *texts]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


# ---- use --------------------------------------------------------------------------------------


def test_choices_last_and_later_ones_add_to_them(project):
    assert choose(*OWN) == composed()
    settings = choose("dataset.test_fraction=0.2", "head=attentive")
    dataset = settings.dataset
    assert (dataset.root, dataset.test_fraction, dataset.render) == ("/data/mine", 0.2, None)
    assert settings.backbone.name == "swin_t" and settings.head.readout == "attentive"
    one = composed("head.width=5", "backbone=tsm_r50")
    assert one.dataset == dataset and one.backbone.name == "tsm_r50" and one.head.width == 5


def test_an_experiment_is_laid_over_the_choices(project):
    choose(*OWN, "train.num_epochs=40", "head.width=16")
    settings = composed("experiment=paper_tables")
    assert settings.dataset.root == "/data/mine" and settings.head.width == 16
    assert settings.train.num_epochs == 4 and settings.ablate.variants
    assert composed("experiment=ssv2_tpn").backbone.name == "tpn_tsm_r50", "it overrides, too"


def test_an_experiment_may_be_a_choice(project):
    settings = choose("experiment=ssv2_tpn", "dataset=folder", "dataset.root=/data/mine")
    assert settings.backbone.name == "tpn_tsm_r50" and settings.dataset.format == "folder"
    assert choose("experiment=without_udl").backbone.name == "stick_r18"
    assert not load_settings(PARAMS).udl.enabled


def test_videos_that_are_there_are_not_rendered_whatever_the_experiment_renders(project):
    assert choose("experiment=small").dataset.render.num_train == 240
    settings = choose("dataset=folder", "dataset.root=/data/mine", "backbone=swin_t")
    assert settings.dataset.render is None and settings.train.num_epochs == 2
    assert settings == composed()


def test_another_option_of_a_group_begins_its_section_anew(project, capsys):
    choose(*OWN)
    assert choose("dataset=csv").dataset.root == "data/csv"
    assert "dataset.root=/data/mine" in capsys.readouterr().err
    assert choose("dataset=csv", "dataset.root=/data/other").dataset.root == "/data/other"
    assert choose("dataset=csv").dataset.root == "/data/other", "the same option keeps it"


def test_the_settings_file_keeps_its_comments_and_reset_brings_the_defaults_back(project):
    text = PARAMS.read_text()
    choose(*OWN)
    assert "root: /data/mine # folder of the data set" in PARAMS.read_text()
    use.run([], PARAMS, reset=True)
    assert PARAMS.read_text() == text and not CHOICES.exists()


def test_what_was_written_by_hand_stays(project):
    choose(*OWN)
    CHOICES.write_text(CHOICES.read_text() + "seed: 7 # my lucky one\n")
    assert choose("head.width=8").seed == 7
    assert "seed: 7 # my lucky one" in CHOICES.read_text()


def test_what_only_the_settings_file_had_is_told(project, capsys):
    choose(*OWN)
    PARAMS.write_text(PARAMS.read_text().replace("num_epochs: 40", "num_epochs: 7"))
    use.run([], PARAMS, reset=False)
    assert "differs from these choices in: train.num_epochs=7\n" in capsys.readouterr().err
    choose("head.width=8")
    told = capsys.readouterr().err
    assert "no more in params.yaml, since it was set there alone: train.num_epochs=7\n" in told


def test_without_a_choice_they_are_shown(project):
    assert "You have chosen nothing yet" in run_use(project).stderr
    choose(*OWN)
    shown = run_use(project).stderr.splitlines()
    assert shown[:3] == ["dataset=folder", "backbone=swin_t", "dataset.root=/data/mine"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("dataset=foldr", "did you mean folder?"),
        ("datset=folder", "datset is not a setting; did you mean dataset?"),
        ("experiment=smal", "did you mean small?"),
        ("head.wdth=3", "did you mean head.width?"),
        ("head.width", "expected GROUP=OPTION or KEY=VALUE"),
        ("head.width=[", "is no YAML value"),
        ("head.width=ten", 'head.width: found "ten" (text), expected a valid integer'),
        ("udl=x", 'udl: found "x" (text), expected a section of settings'),
        ("head.num_layers=0", "udl.enabled is true and head.num_layers 0"),
        ("dataset.format=folder", "dataset.render renders stick_something, which is ssv2"),
    ],
)
def test_an_unsound_choice_is_refused_and_nothing_is_written(project, text, expected):
    assert expected in refused(project, "seed=3", text)


def test_an_unsound_file_is_told_and_can_be_forgotten(project):
    CHOICES.write_text("defaults: [\n")
    assert "not readable as YAML: line 2" in refused(project, "seed=3")
    CHOICES.write_text("seed: 3\n")
    assert "no list `defaults`" in refused(project)
    assert run_use(project, "--reset").returncode == 0 and not CHOICES.exists()


# ---- --set with groups ------------------------------------------------------------------------


@pytest.mark.parametrize("option", group_options())
def test_a_group_given_by_set_is_what_hydra_composes(option, repository, monkeypatch):
    monkeypatch.chdir(repository)
    expected = Settings.model_validate_json(json.dumps(compose(option)))
    assert load_settings(ROOT / "params.yaml", [option]) == expected


def test_groups_and_keys_are_applied_in_their_order(project):
    after = load_settings(PARAMS, ["dataset=folder", "dataset.root=/data/mine"])
    assert after.dataset.root == "/data/mine" and after.dataset.render is None
    before = load_settings(PARAMS, ["dataset.root=/data/mine", "dataset=folder"])
    assert before.dataset.root == "data/folder"


def test_a_group_where_there_are_none_is_told(tmp_path):
    told = tell_plainly(run_cli(tmp_path, "show", dataset="folder"))
    assert "there is no folder configs/dataset here" in told


# ---- what `prepare` says and refuses before it renders ----------------------------------------


@pytest.mark.parametrize("name", ["mine", "empty", "stick_diving_empty"])
def test_nothing_is_rendered_into_a_folder_that_is_not_for_it(tmp_path, name):
    root = tmp_path / name
    if "empty" in name:
        root.mkdir()
    told = tell_plainly(run_cli(tmp_path, "prepare", dataset__root=root))
    assert "would write about 3,600 clips" in told and "dataset=folder" in told
    assert not root.exists() or not list(root.iterdir())


def test_another_data_set_than_the_last_runs_is_told(tmp_path):
    sizes = {"num_train": 2, "num_test": 2, "size_px": 32, "num_frames": 4, "num_workers": 1}
    values = {f"dataset__render__{key}": value for key, value in sizes.items()}
    assert "the last run had" not in run_cli(tmp_path, "prepare", **values).stderr
    assert "the last run had" not in run_cli(tmp_path, "prepare", **values).stderr
    root = tmp_path / "stick_diving_b"
    told = run_cli(tmp_path, "prepare", dataset__root=root, **values).stderr
    assert f"data set: stick_diving in {root}, to be rendered; the last run had" in told


DAMAGED = {
    "a reference to nothing": "defaults: [null]\n",
    "itself": "defaults: [mine, _self_]\n",
    "a tag": "# @package _global_\ndefaults: [_self_]\nseed: !foo 3\n",
    "a number for an option": "# @package _global_\ndefaults: [{override /dataset: 5}, _self_]\n",
    "no text": b"defaults: [_self_]\n# \xff\n",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_told_and_can_be_forgotten(project, content):
    CHOICES.write_bytes(content if isinstance(content, bytes) else content.encode())
    told = tell_plainly(run_use(project, "seed=1"))
    assert str(CHOICES) in told and "--reset" in told
    use.run([], PARAMS, reset=True)
    assert not CHOICES.exists() and choose("seed=1").seed == 1


@pytest.mark.parametrize("text", ["on", "a ${oc.env:HOME} b", "${dataset.root}"])
def test_a_reference_is_a_text_like_any_other(project, text):
    assert choose(f"dataset.name={text}").dataset.name == text
    assert composed("seed=4").dataset.name == text


def test_two_at_once_do_not_lose_a_choice(project):
    with hold_alone(CHOICES, "use"):
        told = tell_plainly(run_use(project, "seed=1"))
    assert "use" in told and not CHOICES.exists()
    assert choose("seed=1").seed == 1
