"""A module run by two processes that meet through a file, as a distributed training does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from tests.pipeline import ROOT


def run_in_two_processes(module: str, folder: Path) -> list[dict[str, Tensor]]:
    """What each process wrote: `python -m MODULE RANK 2 RENDEZVOUS OUTPUT`."""
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", module, str(rank), "2"),
                *(str(folder / "rendezvous"), str(folder / f"{rank}")),
            ],
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for rank in (0, 1)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0]
    finally:
        for process in running:
            process.kill()
    return [load_file(folder / f"{rank}") for rank in (0, 1)]
