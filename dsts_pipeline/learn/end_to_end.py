"""Backbone and head as one model: uint8 frames in, logits out.

Enters: frames `[B, T, H, W, 3]`. Between: the backbone's map `[B, C, T', H', W']`. Leaves: logits
`[B, K]`. Before its first step it gives what the frozen backbone and the head give one after the
other, but for the rounding of stored maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.taps import KEEP_TIME, Recognizer
from dsts_pipeline.extract.weights import CLASSIFIER_BIAS, CLASSIFIER_WEIGHT, save_weights
from dsts_pipeline.head.neurons import widen

# ---- stages --------------------------------------------------------------------------------------
#
# In the order of the data's way. A stage is a child of `backbone` that has parameters (a ResNet's
# stem and its four layers; Swin's patch embedding and final norm), or an entry of such a child that
# is a list (Swin's layers, a transformer's blocks); a neck is one more.


def stages_of(root: nn.Module) -> dict[str, nn.Module]:
    """Stages by their names below `root`, the first one next to the pixels."""
    stages: dict[str, nn.Module] = {}
    inner = getattr(root, "backbone", None)
    if not isinstance(inner, nn.Module):
        _add_children("", root, stages)
        return stages
    _add_children("backbone.", inner, stages)
    neck = getattr(root, "neck", None)
    if isinstance(neck, nn.Module):
        stages["neck"] = neck
    return stages


def _add_children(prefix: str, module: nn.Module, stages: dict[str, nn.Module]) -> None:
    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        entries = list(child.named_children())
        holds_a_list = len(entries) == 1 and isinstance(entries[0][1], nn.ModuleList)
        is_entry = isinstance(module, nn.ModuleList)
        # Such as an encoder that is its blocks; what is in a list is a stage whatever it holds.
        if not is_entry and (isinstance(child, nn.ModuleList) or holds_a_list):
            _add_children(f"{prefix}{name}.", child, stages)
        else:
            stages[f"{prefix}{name}"] = child


def stage_number(name: str, stages: Iterable[str]) -> int | None:
    """Which stage the parameter `name` is in; None where in none, such as a class token."""
    for number, stage in enumerate(stages):
        if name.startswith(f"{stage}."):
            return number
    return None


def choose_frozen(
    names: Iterable[str],
    stages: Mapping[str, nn.Module],
    *,
    num_stages: int,
    prefixes: Iterable[str],
) -> set[str]:
    """Parameters that keep their values: of the first `num_stages` stages, or named.

    What lies in no stage (position embeddings) counts as the first one.

    Args:
        names: Of all parameters below the root.
        prefixes: Beginnings of names.

    Raises:
        SettingsError: There are not so many stages, or nothing begins like that.
    """
    if num_stages > len(stages):
        raise SettingsError(
            f"finetune.frozen_stages is {num_stages}, this backbone has {len(stages)}: "
            f"{', '.join(stages)}; set it to at most that"
        )
    names = list(names)
    frozen = set()
    for prefix in prefixes:
        found = {name for name in names if name.startswith(prefix)}
        if not found:
            close = get_close_matches(prefix, stages, n=1) or list(stages)[:1]
            raise SettingsError(
                f"finetune.frozen: no parameter of the backbone begins with {prefix!r}; expected "
                f"such as {close[0]!r}"
            )
        frozen |= found
    return frozen | {name for name in names if (stage_number(name, stages) or 0) < num_stages}


# ---- activation checkpointing --------------------------------------------------------------------
#
# A stage's activations are dropped and computed again when needed (Chen et al. 2016, arXiv
# 1604.06174; `torch.utils.checkpoint`, non-reentrant, which may be differentiated twice), with the
# parameter values of its own pass: UDL asks for gradients at values that the module itself does not
# hold (`functional_call`), and when the recomputation comes, the module has its own again. Running
# statistics of batch norms move in the first computation only.


@contextmanager
def statistics_still(module: nn.Module) -> Iterator[None]:
    """Within the block running statistics of batch norms below `module` do not move."""
    norms = [part for part in module.modules() if isinstance(part, _BatchNorm) and part.training]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum = momentum
            norm.num_batches_tracked = count


def compute_twice(modules: Iterable[nn.Module]) -> None:
    """Let each of `modules` drop its activations in passes that are differentiated."""
    for module in modules:
        module.forward = _Recomputed(module)


class _Recomputed:
    """The forward of a module whose activations are not kept."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._forward: Callable[..., Any] = module.forward
        self._is_inside = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._is_inside or not torch.is_grad_enabled():
            return self._forward(*args, **kwargs)
        # The values of this pass, be they the module's own or not.
        values = dict(self._module.named_parameters())
        return checkpoint(
            self._run, values, args, kwargs, use_reentrant=False, context_fn=self._contexts
        )

    def _run(self, values: dict[str, Any], args: tuple, kwargs: dict[str, Any]) -> Any:
        self._is_inside = True
        try:
            return functional_call(self._module, values, args, kwargs)
        finally:
            self._is_inside = False

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), statistics_still(self._module)


# ---- the model -----------------------------------------------------------------------------------


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
    their outer taps are zeroed whenever weights are loaded, see `extract.taps`.

    Args:
        backbone: Frozen when it comes here.
        head: `DSTSHead`, `LinearProbe` or another one on maps.
        frozen_stages: The first so many stages keep their values; see `stages_of`.
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
        self.backbone = backbone
        self.head = head
        self.norms = norms
        self.dropout = dropout
        root = self.root
        self.stages = tuple(stages_of(root))
        kept = choose_frozen(
            (name for name, _ in root.named_parameters()),
            stages_of(root),
            num_stages=frozen_stages,
            prefixes=frozen,
        )
        if KEEP_TIME in backbone.tapped:
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
        backbone = self.backbone
        names = [name for name, _ in self.root.named_parameters()]
        parameters = [self.root.get_parameter(name) for name in names]
        frames = torch.zeros((1, *backbone.input_shape), dtype=torch.uint8, device=backbone.device)
        try:
            self.root.requires_grad_(True)
            found = torch.autograd.grad(backbone(frames).sum(), parameters, allow_unused=True)
        finally:
            self.root.requires_grad_(False)
        used = {name for name, g in zip(names, found, strict=True) if g is not None}
        if not used:
            raise SettingsError(f"{backbone.name}: the map at {backbone.taps[0]} has no parameters")
        return used


# ---- a trained backbone as a weights file --------------------------------------------------------
#
# One safetensors file: the recognizer's parameters and buffers by mmaction2's names, float32, and
# as its classifier the head's own, what the head says without its module.


def check_can_be_saved(backbone: Backbone) -> None:
    """Refuse models that are no weights file but a folder, before hours of training.

    Raises:
        SettingsError: The backbone is a model of the transformers library.
    """
    if not isinstance(backbone.model, Recognizer):
        raise SettingsError(
            f"{backbone.name} is a model of the transformers library, kept as a folder; only "
            "recognizers of mmaction2 are trained end to end: choose another backbone.name"
        )


def save_backbone(model: EndToEnd, path: str | Path) -> None:
    """Write the backbone of `model`, with the head's classifier where it fits and reads averages,
    atomically."""
    recognizer = model.backbone.recognizer
    classifier = model.head.classifier
    assert isinstance(classifier, nn.Linear)
    own = dict(recognizer.named_parameters()).get(CLASSIFIER_WEIGHT)
    extra: dict[str, Tensor] = {}
    fits = own is None or own.shape == classifier.weight.shape
    if fits and model.head.pooler is None:
        extra = {CLASSIFIER_WEIGHT: classifier.weight, CLASSIFIER_BIAS: classifier.bias}
    with torch.no_grad():
        save_weights(recognizer, path, extra=extra)
