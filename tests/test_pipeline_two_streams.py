"""TSM's two streams on the embedded dives: frames and optical flow to a row of Tables 1 and 2.

Random weights and few clips of few pixels: the way is tested, the figure says nothing.
"""

from __future__ import annotations

import re

import pytest

from dsts_pipeline.base.files import read_json, read_signed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import open_store
from stages import common, evaluate, extract, prepare, report, train_head

BACKBONE = {"name": "tsm_r50", "weights": "random", "num_frames": 8, "size_px": 32}


def settings(root: str, stream: str, other: str | None) -> Settings:
    render = {"num_train": 48, "num_test": 24, "size_px": 64, "num_workers": 1}
    return Settings.model_validate(
        {
            "dataset": {"root": root, "render": render},
            "backbone": BACKBONE | {"input": stream, "num_decode_workers": 0},
            "head": {"num_layers": 0},
            "udl": {"enabled": False},
            "train": {"num_epochs": 1, "batch_size": 16},
            "evaluate": {"num_bootstrap": 100, "fuse": {"run": other, "head": "linear_probe"}},
            "report": {"write_plots": False, "num_mistakes": 0, "num_cell_clips": 0},
        }
    )


@pytest.mark.slow
def test_frames_and_flow_of_dives_become_a_row_of_the_papers_tables(tmp_path, monkeypatch):
    stores = []
    for stream, other in (("flow", None), ("rgb", "../flow/outputs")):
        (tmp_path / stream).mkdir()
        monkeypatch.chdir(tmp_path / stream)
        chosen = settings(str(tmp_path / "stick_diving"), stream, other)
        for stage in (prepare, extract, train_head, evaluate):
            stage.run(chosen)
        stores.append(open_store(read_json(common.FEATURES)["store"]))
    report.run(chosen)
    flow, frames = (store.manifest["made_of"] for store in stores)
    assert flow["optical_flow"]["num_fields"] == 5 and "optical_flow" not in frames
    assert flow["clips"] == frames["clips"] and stores[0].map_shape == (2048, 8, 1, 1)
    found = read_signed(common.METRICS)["heads"]["two_streams"]
    html = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", common.REPORT.read_text()))
    for number, printed in ((1, "66.6 91.3"), (2, "52.5 32.7")):
        table = html[html.index(f"The paper’s Table {number}.") :]
        own = f"this run: 2 streams, fused late {100 * found['top1']:.1f}"
        assert f"TSM, two streams {printed} {own}" in table
