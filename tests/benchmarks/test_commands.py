"""The benchmarks run and print their tables; sizes are tiny, times mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TINY = ["--width", "4", "--extent", "2", "3", "3", "--batch", "4", "--rounds", "1"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("products", TINY, ["dense, products", "selected, products"]),
        ("head", ["--channels", "8", *TINY], ["test time", "selected training step"]),
        (
            "extract",
            ["--backbones", "stick_r18", "--clips", "6", "--batch", "3", "--workers", "0", "1"]
            + ["--rounds", "1", "--video-frames", "16", "--video-px", "96", "--size-px", "32"],
            ["stick_r18, 6 clips", "decode processes", ">= 0.95"],
        ),
        (
            "train",
            ["--backbones", "stick_r18", "--maps", "32", "--batch", "4", "--steps", "2"]
            + ["--rounds", "1", "--clips", "2", "--size-px", "32", "--variants", "2"],
            ["from memory", "from shards", "of pure step", "stick_r18", ">= 20", "one by one"],
        ),
        ("udl", ["--channels", "8", *TINY], ["UDL, selected, exact", "relative error"]),
        (
            "finetune",
            ["--batch", "2", "--rounds", "1", "--frames", "4", "--size-px", "32", "--width", "4"],
            ["UDL, all, recomputed", "goal: UDL over plain"],
        ),
        (
            "scale",
            ["--clips", "20000", "--rounds", "1", "--set", "train.batch_size=64"],
            ["import-features", "20,000", "start-up", "bytes of the page"],
        ),
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


@pytest.mark.long
def test_the_stores_benchmark_leaves_its_tables(tmp_path):
    command = [sys.executable, "-m", "benchmarks.store", "--quick", "--rounds=1"]
    for options in ([], ["--newest", "--note=On a busy machine."]):
        run = subprocess.run(
            [*command, f"--out={tmp_path}", *options],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        )
        assert run.returncode == 0, run.stderr
    results = json.loads((tmp_path / "store-benchmark.json").read_text())
    page = (tmp_path / "store-benchmark.md").read_text()
    assert results["quick"] and "the figures mean nothing" in page
    assert "`python -m benchmarks.store --newest`. On a busy machine." in page
    for sample in ("1.6 MB", "0.03 MB"):
        reading = {(row["way"], row["form"]) for row in results["reading"][sample]}
        assert {("memmap", "none"), ("ours, 1 thread", "checksum")} <= reading
        assert ("zarr-python, loop", "zstd + checksum") in reading
        for row in results["reading"][sample] + results["writing"][sample]:
            assert row["milliseconds"] > 0 and len(row["ratios"]) == 1
            assert f"| {row['way']} |" in page and row["way"] in run.stdout
