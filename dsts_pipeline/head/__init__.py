"""Batches to logits: the DSTS head, its variants and the baselines it is compared with."""

from dsts_pipeline.head.checkpoint import load_head, save_head
from dsts_pipeline.head.compiled import CompiledHead, compile_head
from dsts_pipeline.head.dsts import DSTSHead, HeadNoise, take_over_classifier
from dsts_pipeline.head.layer import DSTSLayer, LayerRecord
from dsts_pipeline.head.probes import (
    AttentiveProbe,
    ConvBlockHead,
    GSTHead,
    LinearProbe,
    count_parameters,
)
from dsts_pipeline.head.readout import AttentivePooler, ReadoutHead, attention_map
from dsts_pipeline.head.routing import LayerNoise
from dsts_pipeline.head.tqn import TQNHead

__all__ = [
    "AttentivePooler",
    "AttentiveProbe",
    "CompiledHead",
    "ConvBlockHead",
    "DSTSHead",
    "DSTSLayer",
    "GSTHead",
    "HeadNoise",
    "LayerNoise",
    "LayerRecord",
    "LinearProbe",
    "ReadoutHead",
    "TQNHead",
    "attention_map",
    "compile_head",
    "count_parameters",
    "load_head",
    "save_head",
    "take_over_classifier",
]
