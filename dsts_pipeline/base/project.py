"""The files of a project: what a folder needs for `dvc repro` and `python cli.py` to run in it.

A checkout of the repository is such a project. A wheel carries the same files in its folder
`project` (pyproject.toml puts them there), from which `dsts new` makes more.
"""

from __future__ import annotations

import re
from pathlib import Path

from dsts_pipeline import __version__
from dsts_pipeline.base.errors import SettingsError

PROJECT_FILES = (
    "cli.py",
    "stages",
    "configs",
    "params.yaml",
    "dvc.yaml",
    "extra",
    ".gitignore",
    ".dvcignore",
    ".dvc/config",
    ".dvc/.gitignore",
    ".dvc/plots",
)
REQUIREMENTS = "requirements.txt"  # of a project made by `dsts new`: the release that it is for
_PACKAGE = Path(__file__).resolve().parents[1]


def find_template() -> Path:
    """The folder that new projects are copied from: in the wheel, or the checkout itself."""
    carried = _PACKAGE / "project"
    return carried if carried.is_dir() else _PACKAGE.parent


def is_project(folder: Path) -> bool:
    """Whether a folder has a command line and settings of its own."""
    names = ("cli.py", "params.yaml", "configs/config.yaml", "stages/prepare.py")
    return all((folder / name).is_file() for name in names)


def installed_version() -> str:
    """The version of this package, by its own word: files of an older install may say another."""
    return __version__


def require_release(folder: Path) -> None:
    """Refuse to run a project with another release than it was made for.

    Its stages and settings are those of that release.

    Raises:
        SettingsError: The project's requirements.txt names another release than is installed.
    """
    try:
        text = (folder / REQUIREMENTS).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return
    wanted = re.search(r"^dsts-pipeline(?:\[[^]]*\])?==(\S+)", text, re.MULTILINE)
    if wanted and wanted[1] != installed_version():
        raise SettingsError(
            f"this project was made for dsts-pipeline {wanted[1]}, installed is "
            f"{installed_version()}: `pip install -r {REQUIREMENTS}`, or make a new project by "
            "`dsts new` and copy configs/experiment/mine.yaml into it"
        )
