"""A bundle without a training: the embedded backbone, and a head with drawn weights."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import torch

from dsts_pipeline.clips.decode import name_decoder
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.serve import BackboneSource, Bundle
from tests.pipeline import WEIGHTS

SOURCE = BackboneSource("stick_r18", str(WEIGHTS), "backbone", num_frames=16, size_px=64)
FINGERPRINT = "0123456789abcdef" * 2
CLASSES = ("forward somersault", "<b>twist</b> & pike", "tuck", "inward", "reverse", "armstand")


@cache
def backbone() -> Backbone:
    """The embedded one."""
    return SOURCE.build()


def make_of(maker: Backbone) -> dict[str, Any]:
    """What a store's manifest says of maps that `maker` made."""
    made_of = {"backbone": maker.describe(), "decoder": name_decoder("decord")}
    return json.loads(json.dumps(made_of))


def make_head(channels: int = 128, num_classes: int = len(CLASSES), seed: int = 0) -> DSTSHead:
    """A head whose neurons differ and whose answers are not all alike."""
    torch.manual_seed(seed)
    head = DSTSHead.paper(channels, num_classes, num_neurons=3, num_layers=2, width=8)
    for layer in head.dsts_layers():
        torch.nn.init.normal_(layer.gate_logits)
    return head.eval()


def make_bundle(**changes: Any) -> Bundle:
    """A sound bundle; `changes` replace parts."""
    parts: dict[str, Any] = {
        "head": make_head(),
        "head_record": {"store": FINGERPRINT, "title": "a head", "provenance": {"commit": None}},
        "backbone": backbone(),
        "source": SOURCE,
        "made_of": make_of(backbone()),
        "store": {"fingerprint": FINGERPRINT, "stored_type": "float16"},
        "class_names": CLASSES,
        "attribute_names": ("takeoff",),
        "attributes": tuple((name[:3],) for name in CLASSES),
        "provenance": {"bundle": {"commit": None}},
        "figures": {"split": "test", "head": {"top1": 0.5}},
    }
    return Bundle(**(parts | changes))
