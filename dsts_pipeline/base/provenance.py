"""Where a result comes from: commit, settings, versions. No times, no host names, no paths.

Enters: the settings of a run, as a plain dictionary. Leaves: a dictionary that is written into
result files. The same code, settings and packages give the same bytes, so that a rerun can be
compared with its first run.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# Packages that decide figures: arithmetic, models, decoding, storage.
PACKAGES = (
    "dsts-pipeline",
    "torch",
    "numpy",
    "mmaction2",
    "mmcv-lite",
    "mmengine",
    "decord",
    "av",
    "zarr",
    "numcodecs",
    "safetensors",
)
CODE_PATHS = ("dsts_pipeline", "stages", "cli.py")


def collect_provenance(settings: dict[str, Any], root: str | Path = ".") -> dict[str, Any]:
    """Commit, settings and versions behind a result.

    Args:
        settings: The settings that decided it, JSON-like.
        root: A folder of the repository whose commit is named.

    Returns:
        Keys "commit" (40 hex digits, or None outside a git repository), "code_changed" (whether
        the code differs from that commit; None if unknown), "settings", "versions", "python",
        "machine" (architecture).
    """
    return {
        "commit": _git(root, "rev-parse", "HEAD"),
        "code_changed": _code_changed(root),
        "settings": settings,
        "versions": package_versions(),
        "python": platform.python_version(),
        "machine": platform.machine(),
    }


def package_versions() -> dict[str, str]:
    """Installed version of each package in `PACKAGES`; one that is missing is left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _code_changed(root: str | Path) -> bool | None:
    # Only code counts: DVC itself writes dvc.lock and params.yaml while a run is under way.
    present = [path for path in CODE_PATHS if (Path(root) / path).exists()]
    status = _git(root, "status", "--porcelain", "--", *present)
    return None if status is None else bool(status)


def _git(root: str | Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


# ---- seeds ---------------------------------------------------------------------------------------


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` under the run's `seed`.

    Streams of different names are independent: adding one never shifts another.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
