"""Looking at the processes below another one."""

from __future__ import annotations

import os
import time
from pathlib import Path


def children_of(parent: int) -> list[int]:
    """Processes that any thread of `parent` started."""
    lists = Path(f"/proc/{parent}/task").glob("*/children")
    return [int(pid) for path in lists for pid in path.read_text().split()]


def descendants_of(parent: int) -> list[int]:
    """Processes below `parent`, however deep."""
    return [pid for child in children_of(parent) for pid in (child, *descendants_of(child))]


def wait_until_gone(processes: list[int], seconds: float = 20.0) -> bool:
    """Whether all of `processes` end within `seconds`."""
    deadline = time.monotonic() + seconds
    while any(is_alive(pid) for pid in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def is_alive(pid: int) -> bool:
    """Whether it runs; one that ended and was not collected yet does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
