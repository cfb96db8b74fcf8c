"""The benchmarks run and print their tables; sizes are tiny, times mean nothing here."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--width", "4", "--extent", "2", "3", "3", "--batch", "4", "--rounds", "1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("products", TINY, ["dense, products", "selected, products"]),
        ("head", ["--channels", "8", *TINY], ["test time", "selected training step"]),
        ("udl", ["--channels", "8", *TINY], ["UDL, selected, exact", "relative error"]),
    ],
)
def test_prints_its_table(name, options, rows):
    run = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
    )
    assert run.returncode == 0, run.stderr
    assert all(row in run.stdout for row in rows), run.stdout
