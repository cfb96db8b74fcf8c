"""docs/cached-views.md says what its result file says, and the figures are computed right."""

from __future__ import annotations

import base64

import numpy as np
import pytest

from benchmarks.cached_views import RESULTS
from benchmarks.cached_views_page import compare, read_rows, render
from dsts_pipeline.base.files import read_json

MEANT = {"plain": 10, "1": 8, "2": 12, "4": 14, "8": 16, "fly": 16}  # right, of 24


def results(meant=MEANT, seeds=3):
    """Results in which each way is right on its first so many clips, one more or less by seed."""

    def run(count, seed, name):
        hits = np.arange(24) < count + seed - 1
        bits = base64.b64encode(np.packbits(hits).tobytes()).decode()
        return {"right": bits, "epoch_seconds": 8.0 if name == "fly" else 0.5}

    render_settings = {"num_test": 24, "num_train": 10, "num_frames": 24, "size_px": 96}
    found = {
        "regime": {
            "render": render_settings,
            "augmentation": {"crop": "multi_scale", "flip": 0.5, "color_jitter": 0.4},
            "how": {"num_epochs": 40, "learning_rate": 2e-3, "batch_size": 32},
        },
        "extract_seconds": {"1": 0.1, "2": 0.2, "4": 0.4, "8": 0.8},
        "map_bytes": 32768,
        "num_classes": 24,
    }
    found["seeds"] = {
        str(seed): {name: run(count, seed, name) for name, count in meant.items()}
        for seed in range(seeds)
    }
    return found


@pytest.mark.skipif(not RESULTS.exists(), reason="not measured to its end yet")
def test_the_page_is_that_of_the_result_file():
    page = RESULTS.with_suffix(".md").read_text(encoding="utf-8")
    assert page == render(read_json(RESULTS)), "run python -m benchmarks.cached_views"


def test_figures_are_those_of_the_answers():
    rows = read_rows(results())
    assert list(rows) == ["plain", "1", "2", "4", "8", "fly"]
    assert rows["4"].top1 == pytest.approx([100 * n / 24 for n in (13, 14, 15)])
    found = compare(rows["2"], rows["fly"])
    assert found.points == pytest.approx(-100 * 4 / 24)
    assert found.low == pytest.approx(found.high)  # the same difference in every seed
    assert found.clips_low < found.points < found.clips_high


def test_the_page_tells_which_counts_are_behind():
    page = render(results())
    assert "gain 25.0 points on one plain view" in page
    assert "V = 1, 2, 4 is surely behind them, V = 8 is not" in page
    assert "takes 16 times as long" in page and "worth 1.1 such epochs" in page
    level = render(results(dict.fromkeys(MEANT, 12)))
    assert "do nothing sure" in level and "No number of cached views is surely behind" in level
