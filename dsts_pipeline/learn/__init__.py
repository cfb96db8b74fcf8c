"""Logits to a trained head: UDL, the plain step, the loop, its checkpoints and processes."""

from dsts_pipeline.base.children import TrainingStopped, stop_on_sigterm
from dsts_pipeline.learn.processes import Processes, hold_together, joined_processes
from dsts_pipeline.learn.resume import CheckpointOptions, remove_checkpoints
from dsts_pipeline.learn.train import check_clips, fit_recipe, train_head
from dsts_pipeline.learn.training import Recipe
from dsts_pipeline.learn.udl import meta_gradient

__all__ = [
    "CheckpointOptions",
    "Processes",
    "Recipe",
    "TrainingStopped",
    "check_clips",
    "fit_recipe",
    "hold_together",
    "joined_processes",
    "meta_gradient",
    "remove_checkpoints",
    "stop_on_sigterm",
    "train_head",
]
