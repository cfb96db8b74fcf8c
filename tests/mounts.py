"""Small file systems of their own: full ones and read-only ones, where this machine lets us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def in_mount(options: str, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the Python `program` with a tmpfs at sys.argv[1], in a namespace of its own."""
    script = (
        f'mkdir -p "$2" && mount -t tmpfs -o {options} tmpfs "$2" && exec "$0" -c "$1" "${{@:2}}"'
    )
    return subprocess.run(
        ["unshare", "-rm", "bash", "-c", script, sys.executable, program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )


def can_mount(folder: Path) -> bool:
    if shutil.which("unshare") is None:
        return False
    return in_mount("size=1m", "pass", str(folder)).returncode == 0
