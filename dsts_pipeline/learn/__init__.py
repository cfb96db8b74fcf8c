"""Logits to a trained head: UDL, the plain step, the loop."""

from dsts_pipeline.learn.loop import train_head
from dsts_pipeline.learn.options import TrainingOptions
from dsts_pipeline.learn.udl import meta_gradient

__all__ = ["TrainingOptions", "meta_gradient", "train_head"]
