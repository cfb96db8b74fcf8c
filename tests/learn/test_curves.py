"""Learning curves: whole after a stop, in DVCLive's files and in TensorBoard's."""

from __future__ import annotations

import sys

import pytest

from dsts_pipeline.base.errors import MissingExtraError
from dsts_pipeline.learn.train import log_curves

LAYER = {"usage": [0.5, 0.5], "entropy": 0.69, "dead": 0, "saturated_share": None}
HISTORY = [
    {"epoch": epoch, "train_loss": 2.0 - epoch, "best": True, "seconds": 1.0, "layers": [LAYER]}
    for epoch in range(2)
]


def test_both_kinds_of_curves_hold_the_same(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second run starts both anew
        with log_curves(tmp_path / "live", tmp_path / "board") as log:
            for entry in HISTORY:
                log(entry)
    live = sorted(path.stem for path in (tmp_path / "live").rglob("*.tsv"))
    assert live == ["dead", "entropy", "train_loss"]
    rows = (tmp_path / "live/plots/metrics/train_loss.tsv").read_text().split()[-4:]
    assert rows == ["0", "2.0", "1", "1.0"]
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    assert sorted(board.Tags()["scalars"]) == ["layer_1/dead", "layer_1/entropy", "train_loss"]
    points = [(event.step, event.value) for event in board.Scalars("train_loss")]
    assert points == [(0, 2.0), (1, 1.0)]


def test_other_processes_log_nothing(tmp_path):
    with log_curves(tmp_path / "live", tmp_path / "board", is_first=False) as log:
        log(HISTORY[0])
    assert not any(tmp_path.iterdir())


def test_missing_tensorboard_is_explained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"train.tensorboard=true .*\[tensorboard\]"):
        with log_curves(tmp_path / "live", tmp_path / "board"):
            pass
