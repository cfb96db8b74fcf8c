"""A search over small trainings, in a process of its own, to be killed.

    python tests/learn/search/search_process.py FOLDER NUM_TRIALS

Prints a line per epoch, and the records of all trials at the end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from dsts_pipeline.base.settings import SearchSettings
from dsts_pipeline.head import LinearProbe
from dsts_pipeline.learn import CheckpointOptions, remove_checkpoints, train_head
from dsts_pipeline.learn.search import Dimension, Study, locked_study
from tests.learn.recipes import how
from tests.learn.small_feed import ordered_feed

SPACE = [
    Dimension("learning_rate", low=0.001, high=10.0, log=True),
    Dimension("batch_size", (8, 16)),
    Dimension("momentum", low=0.0, high=0.95),
]
PRESENT = {"learning_rate": 0.01, "batch_size": 16, "momentum": 0.9}


def search(folder, num_trials, report=lambda line: None):
    """Records of all trials, without times."""
    feed, seen = ordered_feed(32), []

    def train(number, values, on_epoch):
        torch.manual_seed(0)
        saved = CheckpointOptions(folder / "checkpoints", every_batches=1)

        def tell(entry):
            report(f"trial {number} epoch {entry['epoch']}")
            on_epoch(entry)

        options = {"num_epochs": 3, "optimizer": "sgd", "heldout_fraction": 0.25} | values
        train_head(LinearProbe(6, 4), feed, on_epoch=tell, checkpoints=saved, **how(**options))
        seen.append(number)
        remove_checkpoints(saved)

    with locked_study(folder):
        early = SearchSettings(pruner="median", startup_trials=2, warmup_epochs=0)
        study = Study(folder, "s", SPACE, present=PRESENT, seed=7, how=early)
        while len(study.finished) < num_trials:
            study.run_trial(train)
        records = [record.to_json() for record in study.finished]
    return [{k: v for k, v in r.items() if k not in ("seconds", "number")} for r in records]


if __name__ == "__main__":
    found = search(Path(sys.argv[1]), int(sys.argv[2]), lambda line: print(line, flush=True))
    print(json.dumps(found), flush=True)
