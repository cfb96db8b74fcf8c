"""Whether this machine can do what is asked of it: findings, versions, free space.

A check is a function that returns what it found, or raises a `UserError` that says what to do.
Leaves: `Finding`s, one line each.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dsts_pipeline.base.errors import UserError

DISTRIBUTION = "dsts-pipeline"
_NUM_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One line of a checkup.

    Attributes:
        topic: What was looked at, in a word or two.
        is_ok: False if something must be done first.
        text: What was found, and what to do.
    """

    topic: str
    is_ok: bool
    text: str


def examine(topic: str, check: Callable[[], str]) -> Finding:
    """Run `check`; a problem that a user can act on becomes a finding, a bug stays an exception."""
    try:
        return Finding(topic, True, check())
    except UserError as error:
        return Finding(topic, False, str(error))
    except ImportError as error:
        return Finding(topic, False, f"a package cannot be loaded ({error}); run `make setup`")


def check_versions(
    requirements: Iterable[str] | None = None,
    *,
    installed: Callable[[str], str] = importlib.metadata.version,
    tested: Mapping[str, str] | None = None,
) -> str:
    """Compare installed packages with those that this project asks for.

    Args:
        requirements: Such as "zarr>=3.1,<4"; by default this project's own, extras left out.
        installed: Name -> version; raises PackageNotFoundError.
        tested: Name -> version that the project's tests run with; a difference is told only.

    Raises:
        UserError: Python or a package is missing or of a wrong version.
    """
    problems, others, count = [], [], 0
    for requirement in map(
        Requirement, _own_requirements() if requirements is None else requirements
    ):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        count += 1
        name, expected = requirement.name, str(requirement.specifier) or "any version"
        try:
            version = installed(name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{name} is missing (expected {expected})")
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            problems.append(f"{name} is {version}, expected {expected}")
        elif tested and tested.get(name, version) != version.split("+")[0]:
            others.append(f"{name} {version} (tested: {tested[name]})")
    if problems:
        raise UserError(
            f"{_list(problems)}; run `make setup`, or pip install -c constraints.txt -e ."
        )
    text = f"Python {platform.python_version()}, {count} packages as required"
    return f"{text}; untested: {_list(others)}" if others else text


def _own_requirements() -> list[str]:
    metadata = importlib.metadata.metadata(DISTRIBUTION)
    wanted = metadata["Requires-Python"] or ""
    if not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
        raise UserError(
            f"Python is {platform.python_version()}, expected {wanted}; install that one"
        )
    return importlib.metadata.requires(DISTRIBUTION) or []


def read_constraints(path: str | Path) -> dict[str, str]:
    """Versions by package of a constraints file ("name==version" per line); none if not there."""
    path = Path(path)
    if not path.is_file():
        return {}
    found = re.findall(r"(?m)^([\w.-]+)==([^\s;]+)", path.read_text())
    return dict(found)


def check_space(folder: str | Path, needed_bytes: int) -> str:
    """Compare free space where `folder` is, or will be, with what is needed.

    Raises:
        UserError: Too little is free.
    """
    place = Path(os.path.abspath(folder))
    place = next(parent for parent in (place, *place.parents) if parent.is_dir())
    free = shutil.disk_usage(place).free
    text = (
        f"{needed_bytes / 1e9:,.2f} GB are still needed in {folder}, {free / 1e9:,.2f} GB are free"
    )
    if needed_bytes > free:
        raise UserError(
            f"{text}; free space, choose another store.root, or a smaller store.dtype or "
            "store.codec = zstd"
        )
    return text


def _list(items: list[str]) -> str:
    rest = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return ", ".join(items[:_NUM_SHOWN]) + rest
