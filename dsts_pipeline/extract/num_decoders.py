"""How many processes decode, where the settings leave it to the program (`auto`).

Enters: the cores of this process, and what a view of a clip takes its decoder and its consumer (a
backbone, or a training), as measured. Leaves: a number of processes. Nothing here needs torch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

NumWorkers = int | Literal["auto"]
"""Decode processes; 0: this process decodes; "auto": as many as it takes, by what is measured."""

_HEADROOM = 1.25  # decoders beside each other are slower than one alone, and clips differ
_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def count_cores(environment: Mapping[str, str] = os.environ, quota_file: Path = _QUOTA) -> int:
    """Cores for this process: by its affinity and its container's quota (cgroup v2), at least 1.

    Processes that torchrun started on this machine (LOCAL_WORLD_SIZE) share them.
    """
    try:
        num_cores = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        num_cores = os.cpu_count() or 1
    try:
        quota, period = quota_file.read_text().split()
        num_cores = min(num_cores, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup v2, or "max": no quota
        pass
    return max(1, num_cores // int(environment.get("LOCAL_WORLD_SIZE", "1")))


def choose_num_decoders(
    decode_seconds: float, work_seconds: float, num_cores: int, num_work_threads: int
) -> int:
    """Decode processes that keep the consumer at work.

    As many as decode at the consumer's pace, but no more than there are cores left: on a GPU all
    but one; where the consumer computes on the same cores, the decoders' share of all work there.

    Args:
        decode_seconds, work_seconds: A view takes one decoder, and the consumer.
        num_work_threads: Cores that the consumer computes on; 0: it computes on a GPU.

    >>> choose_num_decoders(0.2, 0.05, num_cores=16, num_work_threads=0)
    5
    >>> choose_num_decoders(0.2, 0.05, num_cores=4, num_work_threads=0)
    3
    >>> choose_num_decoders(0.2, 0.05, num_cores=4, num_work_threads=4)  # half of all work
    2
    """
    needed = math.ceil(_HEADROOM * decode_seconds / max(work_seconds, 1e-9))
    if num_work_threads:
        share = decode_seconds / (decode_seconds + num_work_threads * work_seconds)
        left = math.ceil(num_cores * share)
    else:
        left = num_cores - 1
    return max(1, min(needed, left))
