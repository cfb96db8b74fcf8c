"""What a config of mmaction2 may name besides loop and transform: the head and its hooks.

Enters: what mmaction2 and mmengine hand to components of each kind. Leaves: a recognizer with a
DSTS head, trained and saved by mmaction2's own tools.
"""

from __future__ import annotations

import codecs
import json
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmaction.models.heads import BaseHead
from mmaction.registry import HOOKS, MODELS
from mmengine.dist import broadcast, get_rank, get_world_size
from mmengine.hooks import EMAHook, Hook
from mmengine.logging import HistoryBuffer, print_log
from mmengine.model import is_model_wrapper
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.extract.taps import keep_time
from dsts_pipeline.head import DSTSHead as Head
from dsts_pipeline.head import HeadNoise
from dsts_pipeline.head.dsts import NOT_OF_DSTS, PAPER
from dsts_pipeline.head.neurons import widen
from dsts_pipeline.head.norms import SumAcross
from dsts_pipeline.head.recalibration import recalibrate
from dsts_pipeline.head.routing import balance_loss
from dsts_pipeline.serve.mmaction_files import decode_options, encode_options

# ---- the head ----------------------------------------------------------------------------------
#
# A recognizer hands its `cls_head` maps [B, C, T, H, W] (3-D), or [B * T, C, H, W] (2-D, frames
# folded into the batch), and expects a dict of losses, or data samples with scores [K].


@dataclass(frozen=True)
class HeadPass:
    """How the next passes of a head run; the defaults are those of ordinary training."""

    noise: HeadNoise | None = None
    update_statistics: bool = True
    first_order: bool = True


@MODELS.register_module()
class DSTSHead(BaseHead):
    """`dsts_pipeline.head.DSTSHead` as a `cls_head`.

    Args:
        num_classes, in_channels: K, and C of the map.
        num_segments: T of one view, for `Recognizer2D`; None: as many frames as there are.
        balance_weight: Weight of the load-balancing loss; 0 is the paper.
        average_clips: How views of a clip are averaged: "prob" as in `evaluate`.
        loss_cls, label_smooth_eps, multi_class, topk, init_cfg: As in mmaction2's `BaseHead`.
        options: All others of `dsts_pipeline.head.DSTSHead`, such as num_neurons and width; what
            is left out is as in the paper.

    A checkpoint that holds an ordinary head's `fc_cls` gives its weights to the classifier where
    they fit: with `zero_start=True` and `load_from`, training starts at that model's logits.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        *,
        num_segments: int | None = None,
        balance_weight: float = 0.0,
        average_clips: str | None = "prob",
        loss_cls: dict[str, Any] | None = None,
        label_smooth_eps: float = 0.0,
        multi_class: bool = False,
        topk: int | tuple[int, ...] = (1, 5),
        init_cfg: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            num_classes,
            in_channels,
            loss_cls=loss_cls or {"type": "CrossEntropyLoss", "loss_weight": 1.0},
            multi_class=multi_class,
            label_smooth_eps=label_smooth_eps,
            topk=topk,
            average_clips=average_clips,
            init_cfg=init_cfg,
        )
        self.num_segments = num_segments
        self.balance_weight = balance_weight
        self.head = Head.paper(in_channels, num_classes, **options)
        self.sum_across: SumAcross | None = None
        self._pass = HeadPass()

    def forward(self, x: Any, num_segs: int | None = None, **_: Any) -> Tensor:
        """Logits [views, K] of the features `x`; see `to_maps`."""
        return widen(self._run(self.to_maps(x, num_segs))[0])

    def loss(
        self, feats: Any, data_samples: list[Any], num_segs: int | None = None, **_: Any
    ) -> dict[str, Tensor]:
        """The losses of a training batch, by name."""
        logits, records = self._run(self.to_maps(feats, num_segs))
        losses = self.loss_by_feat(widen(logits), data_samples)
        if self.balance_weight:
            parts = [
                balance_loss(record.choice, record.impulses, self.sum_across)
                for record in records
                if record.choice is not None
            ]
            losses["loss_balance"] = self.balance_weight * torch.stack(parts).sum()
        return losses

    @contextmanager
    def passing(self, how: HeadPass) -> Iterator[None]:
        """Let the passes inside run like `how`."""
        before = self._pass
        self._pass = how
        try:
            yield
        finally:
            self._pass = before

    def to_maps(self, x: Any, num_segs: int | None = None) -> Tensor:
        """Maps [views, C, T, H, W] of what a recognizer hands over.

        Args:
            num_segs: Frames of a clip in the batch, as `Recognizer2D` counts them: T times the
                views of the clip.

        Raises:
            SettingsError: It is no single map, or its frames are no multiple of `num_segments`.
        """
        if isinstance(x, tuple | list):
            if len(x) != 1:
                raise SettingsError(
                    f"cls_head: the backbone gives {len(x)} maps, DSTSHead takes one; set the "
                    "backbone's out_indices to one stage, or add a neck that joins them"
                )
            x = x[0]
        if x.dim() == 5:
            return x
        if x.dim() != 4 or num_segs is None:
            raise SettingsError(
                f"cls_head: features of shape {tuple(x.shape)} are no maps; expected "
                "[B, C, T, H, W] of a Recognizer3D or [B * T, C, H, W] of a Recognizer2D"
            )
        length = self.num_segments if num_segs > 1 and self.num_segments else num_segs
        if num_segs % length:
            raise SettingsError(
                f"cls_head: {num_segs} frames a clip are no multiple of num_segments={length}; "
                "set num_segments to the number of frames of one view"
            )
        return x.unflatten(0, (-1, length)).transpose(1, 2).contiguous()

    def _run(self, maps: Tensor) -> tuple[Tensor, tuple[Any, ...]]:
        how = self._pass
        return self.head(
            maps,
            how.noise,
            update_statistics=how.update_statistics,
            first_order=how.first_order,
            with_records=True,
        )

    def get_extra_state(self) -> Tensor:
        """How the head is built, as JSON in bytes: a checkpoint of tensors alone tells it."""
        return encode_options(self.head.config)

    def set_extra_state(self, state: Tensor) -> None:
        """Refuse a checkpoint of a head that is built otherwise.

        Raises:
            CheckpointError: An option differs; shapes alone would not tell.
        """
        # An option that a checkpoint of an earlier release does not name had the paper's value.
        found = HeadSettings().model_dump(exclude=NOT_OF_DSTS) | PAPER
        found |= decode_options(state)
        own = json.loads(json.dumps(self.head.config))
        differing = sorted(k for k in found | own if found.get(k) != own.get(k))
        if differing:
            told = ", ".join(f"{k}={found.get(k)!r}" for k in differing)
            expected = ", ".join(f"{k}={own.get(k)!r}" for k in differing)
            raise CheckpointError(
                f"the checkpoint's head was built with {told}, the config's cls_head with "
                f"{expected}; give cls_head the checkpoint's options"
            )

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *arguments: Any) -> None:
        """Take an ordinary classifier over where there is one, then load as usual."""
        for part in ("weight", "bias"):
            foreign = state_dict.pop(f"{prefix}fc_cls.{part}", None)
            own = getattr(self.head.classifier, part)
            if foreign is None:
                continue
            if foreign.shape == own.shape and self.head.pooler is None:
                own.data.copy_(foreign)
                continue
            reason = f"does not fit the classifier's {tuple(own.shape)}"
            if self.head.pooler is not None:
                reason = "reads averages and the head attends"
            print_log(
                f"cls_head: the checkpoint's fc_cls.{part} of {tuple(foreign.shape)} {reason}: it "
                "is left out",
                logger="current",
                level=logging.WARNING,
            )
        super()._load_from_state_dict(state_dict, prefix, *arguments)


# ---- hooks: norms for test time, and TPN's neck with its time ----------------------------------


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
    head = recognizer.cls_head
    was_training = recognizer.training
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
    (see `extract.taps`): they are set to zero once, before the first iteration, and learn
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


# ---- checkpoints under torch's restricted unpickler --------------------------------------------
#
# Since torch 2.6 `torch.load` refuses what mmengine 0.10.7 writes beside the weights: its log.
# These names and no others are let in, so that mmaction2's tools can load what they saved. A
# `getattr` in such a file is a function that finds the four methods of the log and nothing else.

_METHODS = ("min", "max", "current", "mean")
_NUMPY_DTYPES = ("Float64", "Float32", "Int64", "Int32", "Bool")


def _method_of_log(owner: Any, name: str) -> Any:
    """What a file's `getattr(HistoryBuffer, name)` becomes."""
    if owner is HistoryBuffer and name in _METHODS:
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f"the checkpoint asks for {name} of {owner!r}; only the log's own methods are let in"
    )


def allow_checkpoints() -> None:
    """Let `torch.load` read the log of a training by mmengine, from now on in this process."""
    core: Any = np._core.multiarray  # type: ignore[attr-defined]
    names: list[Any] = [HistoryBuffer, np.ndarray, np.dtype]
    names += [getattr(np.dtypes, f"{name}DType") for name in _NUMPY_DTYPES]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        names += [(core.scalar, f"{module}.scalar")]
        names += [(core._reconstruct, f"{module}._reconstruct")]
    names += [(codecs.encode, "_codecs.encode"), (_method_of_log, "builtins.getattr")]
    torch.serialization.add_safe_globals(names)
