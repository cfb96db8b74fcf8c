"""Hooks of a training by mmaction2's tools: norms for test time, and TPN's neck with its time.

Enters: mmengine's runner. Leaves: the recognizer, changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from mmaction.registry import HOOKS  # noqa: E402
from mmengine.dist import broadcast, get_rank, get_world_size  # noqa: E402
from mmengine.hooks import EMAHook, Hook  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from torch import Tensor

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.mmaction_compat import import_mmaction
from dsts_pipeline.extract.taps import keep_time
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.mmaction2.cls_head import DSTSHead

import_mmaction()


def _recognizer_of(runner: Any) -> Any:
    return runner.model.module if is_model_wrapper(runner.model) else runner.model


@HOOKS.register_module()
class RecalibrateNormsHook(Hook):
    """Recomputes the head's norms without noise after each epoch, before checkpoint and validation.

    Training draws another gate pattern in every pass, test time uses one, which the running
    statistics of training never described: without this, accuracy is poor (see
    `head.recalibration`). Maps of `num_clips` training clips, in evaluation mode and as the train
    pipeline gives them, are held in memory (on the CPU) meanwhile.

    Args:
        num_clips: Training clips that serve for it; the first of the epoch's order.

    Several processes: the first one's clips serve, the others take its statistics over.

    Raises:
        SettingsError: The head is no `DSTSHead`, or an `EMAHook` swaps in weights that these
            statistics do not belong to.
    """

    priority = "NORMAL"  # CheckpointHook's is VERY_LOW: it comes later

    def __init__(self, num_clips: int = 512) -> None:
        if num_clips < 2:
            raise SettingsError(f"num_clips={num_clips}; statistics need at least 2 clips")
        self.num_clips = num_clips

    def before_train(self, runner: Any) -> None:
        """Refuse what this hook cannot serve."""
        head = getattr(_recognizer_of(runner), "cls_head", None)
        if not isinstance(head, DSTSHead):
            raise SettingsError(
                f"custom_hooks: RecalibrateNormsHook is for a cls_head of type DSTSHead, found "
                f"{type(head).__name__}"
            )
        if any(isinstance(hook, EMAHook) for hook in runner.hooks):
            raise SettingsError(
                "custom_hooks: EMAHook evaluates averaged weights, whose statistics are not those "
                "that RecalibrateNormsHook computes; use one of the two"
            )

    def after_train_epoch(self, runner: Any) -> None:
        """Recompute the statistics."""
        recognizer = _recognizer_of(runner)
        if get_rank() == 0:
            recalibrate_recognizer(recognizer, runner.train_dataloader, self.num_clips)
        if get_world_size() > 1:
            for buffer in recognizer.cls_head.buffers():
                broadcast(buffer)


@torch.no_grad()
def recalibrate_recognizer(recognizer: Any, batches: Any, num_clips: int) -> None:
    """Recompute the statistics of the recognizer's head on the first `num_clips` of `batches`.

    Args:
        batches: Collated batches as a data loader gives them.
    """
    head, was_training = recognizer.cls_head, recognizer.training
    device = next(recognizer.parameters()).device
    recognizer.eval()
    try:
        maps = list(_first_maps(recognizer, batches, num_clips))
        recalibrate(head.head, lambda: (part.to(device) for part in maps))
    finally:
        recognizer.train(was_training)


def _first_maps(recognizer: Any, batches: Any, num_clips: int) -> Iterator[Tensor]:
    """Maps [B, C, T, H, W] of the first `num_clips` clips, on the CPU."""
    left = num_clips
    for batch in batches:
        inputs = recognizer.data_preprocessor(batch, False)["inputs"][:left]
        features, options = recognizer.extract_feat(inputs)
        yield recognizer.cls_head.to_maps(features, options.get("num_segs")).float().cpu()
        left -= len(inputs)
        if left < 1:
            return


@HOOKS.register_module()
class KeepTimeOfTPNHook(Hook):
    """Starts a training with a TPN neck that keeps T as extraction's tap `neck_time` has it.

    For configs with `temporal_modulation_cfg=dict(downsample_scales=(1, 1))`, which take the pool
    over time away. The outer taps of the bottom-up path's temporal convolutions were never trained
    (see `extract.models.tpn`): they are set to zero once, before the first iteration, and learn
    from there.
    """

    def before_train(self, runner: Any) -> None:
        """Set the taps to zero, unless the training is resumed.

        Raises:
            SettingsError: The neck is no TPN, or pools time away.
        """
        neck = getattr(_recognizer_of(runner), "neck", None)
        pools = [operation.pool for operation in getattr(neck, "temporal_modulation_ops", ())]
        if any(pool.kernel_size[0] != 1 for pool in pools):
            raise SettingsError(
                "custom_hooks: KeepTimeOfTPNHook is for a neck that keeps T; set the neck's "
                "temporal_modulation_cfg=dict(downsample_scales=(1, 1))"
            )
        if runner.iter == 0:
            keep_time(neck)
