"""Trains a small head in a process of its own, to be stopped; run by the tests of resuming.

    python tests/learn/train_process.py FOLDER VARIANT [devices=N] [fail_after=N] [double]

Checkpoints go to FOLDER/checkpoints, the trained head's values to FOLDER/<VARIANT>.safetensors.
Prints a line per batch that is read. `fail_after` makes files above 1 kB impossible from that
batch on, as a full disk does. `double` trains in float64.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import signal
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn import (
    CheckpointOptions,
    joined_processes,
    remove_checkpoints,
    stop_on_sigterm,
    train_head,
)
from tests.learn.recipes import how
from tests.learn.small_feed import ordered_feed

COMMON = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.02, "seed": 3}
HOUSE = {"num_neurons": 3, "num_layers": 2, "width": 4, "impulse": "standardized"}
HOUSE |= {"routing_gradient": "selected", "layer_residual": True}
VARIANTS = {
    "udl": (HOUSE, {"heldout_fraction": 0.2}),
    "paper": (
        {"num_neurons": 3, "num_layers": 1, "impulse": "mean"},
        {"optimizer": "sgd", "learning_rate": 0.1, "part_size": 2, "clip_norm": 1.0},
    ),
    "options": (
        HOUSE,
        {
            "heldout_fraction": 0.2,
            "learning_rate": 0.005,
            "seed": 5,
            "ema_decay": 0.5,
            "mixup_alpha": 0.4,
            "schedule": "steps",
            "label_smoothing": 0.1,
            "class_balanced": True,
            "redraw_noise": True,
        },
    ),
    "attentive": (
        {name: value for name, value in HOUSE.items() if name != "width"}
        | {"bottleneck": 4, "common_neuron": True, "readout_dropout": 0.3}
        | {"readout": "attentive", "readout_heads": 2},
        {"heldout_fraction": 0.2, "learning_rate": 0.005},
    ),
    "plain": (HOUSE, {"udl": False, "heldout_fraction": 0.2, "batch_size": 8}),
    "joined": (HOUSE, {"batch_size": 8, "heldout_fraction": 0.25}),
}


class ReportingFeed(FeatureFeed):
    """Calls `on_read` for every batch that is served; optionally in float64."""

    def __init__(self, on_read, double=False, num_clips=32):
        super().__init__(ordered_feed(num_clips).store)
        self.on_read, self.double = on_read, double

    def batches(self, order):
        for batch in super().batches(order):
            self.on_read()
            yield dataclasses.replace(batch, maps=batch.maps.double()) if self.double else batch


def new_head(variant, double=False):
    torch.manual_seed(1)
    head = DSTSHead.paper(6, 4, **VARIANTS[variant][0])
    return head.double() if double else head


def train_variant(variant, on_read, checkpoints, processes=None, double=False, **changes):
    """The trained head and its history."""
    head = new_head(variant, double)
    options = COMMON | VARIANTS[variant][1] | changes
    together = {} if processes is None else {"processes": processes}
    feed = ReportingFeed(on_read, double, 64 if variant == "joined" else 32)
    return head, train_head(head, feed, checkpoints=checkpoints, **together, **how(**options))


def main(folder, variant, *flags):
    """Train as the module says."""
    given = dict(flag.partition("=")[::2] for flag in flags)
    count = 0

    def on_read():
        nonlocal count
        count += 1
        print("read", count, flush=True)
        if str(count) == given.get("fail_after"):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))

    devices = int(given.get("devices", 1))
    double, changes = "double" in given, {}
    if devices > 1:
        changes["batch_size"] = VARIANTS[variant][1]["batch_size"] // devices
    with joined_processes("cpu", devices) as processes, stop_on_sigterm() as stop:
        checkpoints = CheckpointOptions(Path(folder) / "checkpoints", every_batches=3, stop=stop)
        head, history = train_variant(variant, on_read, checkpoints, processes, double, **changes)
        if processes.is_first:
            save_file(head.state_dict(), Path(folder) / f"{variant}.safetensors")
            (Path(folder) / f"{variant}.json").write_text(json.dumps(history))
            remove_checkpoints(checkpoints)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
