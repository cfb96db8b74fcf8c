"""Backbone and head as one model: uint8 frames in, logits out.

Enters: frames `[B, T, H, W, 3]`. Between: the backbone's map `[B, C, T', H', W']`. Leaves: logits
`[B, K]`. Before its first step it gives what the frozen backbone and the head give one after the
other, but for the rounding of stored maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.models.backbones import Backbone
from dsts_pipeline.extract.models.taps import KEEP_TIME
from dsts_pipeline.head.neurons import widen
from dsts_pipeline.learn.end_to_end.recompute import compute_twice, statistics_still
from dsts_pipeline.learn.end_to_end.stages import choose_frozen, stages_of


class EndToEnd(nn.Module):
    """A head on the map of a backbone that trains as far as it is not frozen.

    Choice: batch norms of the backbone keep the statistics that its weights came with, in training
    as at test ("frozen"). Batches of videos are small, and of UDL's three passes over two batches
    none would see the statistics of another; with fixed ones the map is a function of the clip
    alone, the same in all three, on every process, and at test. "batch" normalises by the batch
    and moves the running statistics in step 3 only.

    Choice: dropout and stochastic depth of the backbone are off unless `dropout`; then every batch
    draws them once for all passes over it.

    Choice: TPN's bottom-up convolutions stay as they are where its time is kept (tap `neck_time`):
    their outer taps are zeroed whenever weights are loaded, see `extract.models.tpn`.

    Args:
        backbone: Frozen when it comes here.
        head: `DSTSHead`, `LinearProbe` or another one on maps.
        frozen_stages: The first so many stages keep their values; see `stages`.
        frozen: So do parameters whose names below the recognizer begin like one of these.
        norms: "frozen" or "batch".
        recompute: Activation checkpointing of every stage.

    Raises:
        SettingsError: No such stage or parameter, or nothing of the backbone reaches the map.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        frozen_stages: int = 0,
        frozen: Iterable[str] = (),
        norms: str = "frozen",
        dropout: bool = False,
        recompute: bool = False,
    ) -> None:
        super().__init__()
        if norms not in ("frozen", "batch"):
            raise ValueError(f"norms={norms!r}; expected 'frozen' or 'batch'")
        self.backbone, self.head = backbone, head
        self.norms, self.dropout = norms, dropout
        root = self.root
        self.stages = tuple(stages_of(root))
        kept = choose_frozen(
            (name for name, _ in root.named_parameters()),
            stages_of(root),
            num_stages=frozen_stages,
            prefixes=frozen,
        )
        if KEEP_TIME in backbone.taps:
            kept |= {n for n, _ in root.named_parameters() if n.startswith("neck.downsample_ops.")}
        for name in self._used_parameters() - kept:
            root.get_parameter(name).requires_grad_(True)
        if recompute:
            compute_twice(stages_of(root).values())
        self.train()

    @property
    def root(self) -> nn.Module:
        """The recognizer, below which stages and parameters are named."""
        return self.backbone.model.root

    @property
    def backbone_parameters(self) -> dict[str, nn.Parameter]:
        """What of the backbone trains, by name below `root`."""
        return {n: p for n, p in self.root.named_parameters() if p.requires_grad}

    def name_below_root(self, name: str) -> str | None:
        """The backbone's own name of this model's parameter `name`; None for the head's."""
        prefix = next(n for n, module in self.named_modules() if module is self.root)
        return name.removeprefix(f"{prefix}.") if name.startswith(f"{prefix}.") else None

    def train(self, mode: bool = True) -> EndToEnd:
        """Training mode for the head, and for what of the backbone is not held still."""
        super().train(mode)
        for module in self.root.modules():
            is_norm = isinstance(module, _BatchNorm)
            module.training = mode and (self.norms == "batch" if is_norm else self.dropout)
            if is_norm:
                # Asked by `Processes.adopt`; a plain value, which nn.Module's types don't foresee.
                module.__dict__["statistics_frozen"] = self.norms == "frozen"
        return self

    def maps(
        self, frames: Tensor, *, update_statistics: bool = True, seed: int | None = None
    ) -> Tensor:
        """Maps `[B, C, T', H', W']`, float32 at least, of frames uint8 `[B, T, H, W, 3]`.

        Args:
            update_statistics: Whether running statistics move (with `norms` "batch").
            seed: Of dropout and stochastic depth.
        """
        if not (self.training and (self.dropout or self.norms == "batch")):
            return widen(self.backbone(frames))
        devices = [frames.device] if frames.device.type == "cuda" else []
        with torch.random.fork_rng(devices, enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            if update_statistics:
                return widen(self.backbone(frames))
            with statistics_still(self.root):
                return widen(self.backbone(frames))

    def forward(self, frames: Tensor, *, seed: int | None = None, **options: Any) -> Any:
        """What the head gives on the map of `frames`; `options` are the head's."""
        update = options.get("update_statistics", True)
        return self.head(self.maps(frames, update_statistics=update, seed=seed), **options)

    def _used_parameters(self) -> set[str]:
        """Names below the root of parameters that the map depends on, found by trying."""
        backbone, names = self.backbone, [name for name, _ in self.root.named_parameters()]
        parameters = [self.root.get_parameter(name) for name in names]
        shape = (1, backbone.num_frames, backbone.size_px, backbone.size_px, 3)
        frames = torch.zeros(shape, dtype=torch.uint8, device=backbone.device)
        try:
            self.root.requires_grad_(True)
            found = torch.autograd.grad(backbone(frames).sum(), parameters, allow_unused=True)
        finally:
            self.root.requires_grad_(False)
        used = {name for name, g in zip(names, found, strict=True) if g is not None}
        if not used:
            raise SettingsError(f"{backbone.name}: the map at {backbone.taps[0]} has no parameters")
        return used
