"""Small variants of a head, to be trained alone and together."""

from __future__ import annotations

import torch

from dsts_pipeline.head import AttentiveProbe, DSTSHead, LinearProbe
from dsts_pipeline.learn.processes import ALONE
from dsts_pipeline.learn.resume import CheckpointOptions
from dsts_pipeline.learn.together import Member
from tests.learn.recipes import recipe
from tests.learn.train_process import HOUSE, ReportingFeed

# With this order nearly all keep a trained head, not the one that they began with.
COMMON = {"num_epochs": 2, "batch_size": 4, "learning_rate": 0.02, "data_seed": 5}
COMMON |= {"heldout_fraction": 0.2, "recompute_clips": 16}
DENSE = {"num_neurons": 3, "num_layers": 1, "impulse": "mean"}
# Head's arguments (or class), and options: UDL and plain, selected and dense, other depths.
VARIANTS = {
    "full": (HOUSE, {"seed": 1}),
    "full again": (HOUSE, {"seed": 2, "mixup_alpha": 0.4}),
    "without udl": (HOUSE, {"seed": 1, "udl": False, "ema_decay": 0.5}),
    "dense": (DENSE, {"seed": 1, "optimizer": "sgd", "clip_norm": 1.0}),
    "dense plain": (DENSE, {"seed": 4, "udl": False, "num_epochs": 3}),
    "all averaged": (HOUSE | {"synapse": False}, {"seed": 1}),
    "probe": (LinearProbe, {"seed": 1, "udl": False, "early_stopping_epochs": 1}),
    "attention": (AttentiveProbe, {"seed": 5, "udl": False}),
    "attentive": (
        DENSE
        | {"bottleneck": 3, "common_neuron": True, "readout_dropout": 0.3}
        | {"readout": "attentive", "readout_heads": 2},
        {"seed": 6},
    ),
}
OF_PROBE = {"readout_heads": 2, "readout_dropout": 0.2}


def build(name):
    kind, options = VARIANTS[name]
    torch.manual_seed(options["seed"])
    if isinstance(kind, dict):
        return DSTSHead.paper(6, 4, **kind)
    return kind(6, 4, **(OF_PROBE if kind is AttentiveProbe else {}))


def options_of(name, **changes):
    return COMMON | VARIANTS[name][1] | changes


def member(name, feed, root=None, every_batches=3, **changes):
    checkpoints = None if root is None else CheckpointOptions(root, every_batches=every_batches)
    chosen = recipe(**options_of(name, **changes))
    return Member(name, lambda: build(name), feed, chosen, ALONE, checkpoints)


def feed(on_read=lambda: None, num_clips=32):
    return ReportingFeed(on_read, num_clips=num_clips)
