"""`dsts new`: what it writes, what it refuses, what it says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from cli import choose_in
from dsts_pipeline.base.errors import DataError, SettingsError, UserError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.project import PROJECT_FILES, installed_version, require_release
from stages import new
from tests.clips.test_layouts import class_folders
from tests.pipeline import ROOT


def make(folder: Path, **options) -> list[str]:
    """Make a project; the choices that were written for its videos."""
    chosen: list[str] = []
    given = {"videos": None, "backbone": None, "git": False} | options
    new.run(folder, choose=lambda _, choices: chosen.extend(choices), **given)
    return chosen


def read_stages(folder: Path, name: str = "dvc.yaml"):
    return YAML(typ="safe", pure=True).load((folder / name).read_text())["stages"]


def test_a_project_holds_the_repositorys_own_files(tmp_path):
    project = tmp_path / "p"
    assert make(project) == []
    for name in ("cli.py", "params.yaml", "stages/prepare.py", "configs/config.yaml", ".gitignore"):
        assert (project / name).read_bytes() == (ROOT / name).read_bytes()
    named = f"dsts-pipeline[pipeline,mmaction2]=={installed_version()}\n"
    assert (project / "requirements.txt").read_text() == named
    assert not list(tmp_path.rglob("__pycache__")) and not list(tmp_path.glob(".*.tmp"))


def test_choices_of_the_checkout_are_left_behind(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    for name in PROJECT_FILES:
        source, target = ROOT / name, checkout / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(source, target) if source.is_dir() else shutil.copy(source, target)
    choose_in(checkout, ["train.num_epochs=3"])
    monkeypatch.setattr(new, "find_template", lambda: checkout)
    for name, videos in (("plain", None), ("mine", class_folders(tmp_path / "videos", 6))):
        given = {"videos": videos, "backbone": None, "git": False}
        new.run(tmp_path / name, choose=choose_in, **given)
        defaults = load_settings(ROOT / "params.yaml").train
        assert load_settings(tmp_path / name / "params.yaml").train == defaults


@pytest.mark.parametrize("name", ["dvc.yaml", "extra/dvc.yaml"])
def test_its_stages_depend_on_the_release_in_place_of_the_packages_files(tmp_path, name):
    make(tmp_path / "p")
    own = read_stages(tmp_path / "p", name)
    for stage, content in read_stages(ROOT, name).items():
        of_project = [dep for dep in content["deps"] if not dep.startswith("dsts_pipeline/")]
        of_release = ["requirements.txt"] if of_project != content["deps"] else []
        assert own[stage] == {**content, "deps": [*of_project, *of_release]}


def test_the_wheel_carries_the_same_list():
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    carried = build["targets"]["wheel"]["force-include"]
    assert carried == {name: f"dsts_pipeline/project/{name}" for name in PROJECT_FILES}
    assert all((ROOT / name).exists() for name in PROJECT_FILES)


def test_choices_for_videos(tmp_path, capsys):
    videos = class_folders(tmp_path / "my clips", 6)
    chosen = make(tmp_path / "p", videos=videos, backbone="swin_t")
    assert chosen == [
        "dataset=folder",
        'dataset.name="my_clips"',
        f'dataset.root="{videos}"',
        "dataset.test_fraction=0.34",
        "backbone=swin_t",
    ]
    told = capsys.readouterr().err
    assert "18 clips of 3 classes" in told
    assert "jump: 6 clips" in told
    assert "no test split: 34%" in told


def test_without_git_dvc_is_told_so(tmp_path):
    make(tmp_path / "p")
    assert "no_scm = true" in (tmp_path / "p" / ".dvc" / "config.local").read_text()


def test_with_git_a_repository_begins(tmp_path, monkeypatch):
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    make(tmp_path / "p", git=True)
    listed = subprocess.run(
        ["git", "-C", str(tmp_path / "p"), "ls-files"], capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"cli.py", "dvc.yaml", ".dvc/config", ".gitignore"} <= set(listed)
    assert not (tmp_path / "p" / ".dvc" / "config.local").exists()


def test_git_may_begin_later(tmp_path, monkeypatch):
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "t")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "t@example.org")
    make(tmp_path / "p")
    local = tmp_path / "p" / ".dvc" / "config.local"
    local.write_text(local.read_text() + "['remote \"mine\"']\n    password = a%b\n")
    make(tmp_path / "p", git=True)
    assert (tmp_path / "p" / ".git").is_dir()
    assert "no_scm" not in local.read_text() and "password = a%b" in local.read_text()
    with pytest.raises(UserError, match="is a project already"):
        make(tmp_path / "p", git=True)


def test_a_user_that_git_does_not_know_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "")
    make(tmp_path / "p", git=True)
    assert (tmp_path / "p" / "cli.py").exists()
    assert "git commit did not work" in capsys.readouterr().err


def test_a_folder_in_use_is_refused(tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "mine.txt").touch()
    with pytest.raises(UserError, match="something is there already"):
        make(tmp_path / "p")
    assert [path.name for path in (tmp_path / "p").iterdir()] == ["mine.txt"]


def test_a_project_is_not_made_twice(tmp_path):
    make(tmp_path / "p")
    with pytest.raises(UserError, match="is a project already"):
        make(tmp_path / "p")


def test_an_empty_folder_may_be_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(Path("."))
    assert Path("cli.py").exists()


def test_nothing_is_left_where_the_videos_cannot_be_read(tmp_path):
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError):
        make(tmp_path / "p", videos=tmp_path / "videos")
    assert [path.name for path in tmp_path.iterdir()] == ["videos"]


def test_a_project_of_another_release_is_refused(tmp_path):
    make(tmp_path / "p")
    require_release(tmp_path / "p")
    (tmp_path / "p" / "requirements.txt").write_text("dsts-pipeline[pipeline]==0.0.1\n")
    with pytest.raises(SettingsError, match=r"made for dsts-pipeline 0\.0\.1, installed is"):
        require_release(tmp_path / "p")


@pytest.mark.parametrize("name", ["2024", "null", "on", "1e3", "a: #b", "${oc.env:HOME}"])
def test_a_folders_name_is_a_text_whatever_it_looks_like(tmp_path, name):
    videos = class_folders(tmp_path / name, 6)
    run = run_cli_new(tmp_path, videos)
    assert run.returncode == 0, run.stderr
    settings = load_settings(tmp_path / "p" / "params.yaml")
    assert settings.dataset.root == str(videos) and isinstance(settings.dataset.name, str)


def run_cli_new(folder: Path, videos: Path):
    command = [sys.executable, str(ROOT / "cli.py"), "new", "p", "--videos", str(videos)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_class_of_one_clip_each_is_refused(tmp_path):
    with pytest.raises(DataError, match="every class has one clip"):
        make(tmp_path / "p", videos=class_folders(tmp_path / "videos", 1))
