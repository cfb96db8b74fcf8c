"""Batches to logits: the DSTS head, its variants and the baselines it is compared with."""

from dsts_pipeline.head.baselines import LinearProbe
from dsts_pipeline.head.checkpoint import load_head, save_head
from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.layer import DSTSLayer, LayerRecord
from dsts_pipeline.head.noise import LayerNoise
from dsts_pipeline.head.takeover import take_over_classifier

__all__ = [
    "DSTSHead",
    "DSTSLayer",
    "LayerNoise",
    "LayerRecord",
    "LinearProbe",
    "load_head",
    "save_head",
    "take_over_classifier",
]
