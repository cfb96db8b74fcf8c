"""A training loop for mmaction2 configs that makes UDL's three steps in every iteration.

Enters: mmengine's runner with an `OptimWrapper` and a recognizer with a `DSTSHead`. Leaves: trained
parameters; hooks, schedules, logs and checkpoints are mmengine's.

Each batch of 2B clips is split in halves, the first trains, the second validates: they are disjoint
because a data loader hands out each clip once an epoch. So an epoch visits every clip once, and
updates d by half of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from mmaction.registry import LOOPS
from mmengine.dist import get_rank, get_world_size
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.provenance import derive_seed
from dsts_pipeline.head import LayerNoise
from dsts_pipeline.learn.optimizers import LossScale, Precision, forward_context
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.steps import Objective
from dsts_pipeline.learn.udl import Method, check_method, meta_gradient_of_parts
from dsts_pipeline.mmaction2.components import DSTSHead, HeadPass

# ---- UDL's three steps (paper 3.3, Eq. 9-11) on an mmaction2 recognizer with a `DSTSHead`. ------
#
# Enters: a recognizer, its optimiser wrapper, two disjoint preprocessed batches. Leaves: updated
# parameters and the losses of the pass that updated d. The losses are the recognizer's own,
# auxiliary ones included. Upstream parameters are the head's scoring kernels and gates; all others
# that require gradients are downstream, the backbone's among them.
#
# Where the simulated step leaves the backbone alone, each map is computed once: step 1, its
# derivative and the validation pass go through the head only, and step 3 goes on from the same
# maps. Otherwise all passes over one batch use the same random numbers (dropout, stochastic depth).

_ROOT = "recognizer."
_HEAD = f"{_ROOT}cls_head."


@dataclass(frozen=True)
class RecognizerBatch:
    """What the data preprocessor gives: frames, and data samples with labels."""

    inputs: Tensor
    data_samples: list[Any]

    def __len__(self) -> int:
        return len(self.data_samples)


@dataclass(frozen=True)
class Draw:
    """A batch with the randomness of its passes and, where they are there, its features.

    Attributes:
        noise: The head's.
        seed: Of all other random numbers of a pass.
        features: What the head gets, with keywords; None: to be computed in every pass.
    """

    batch: RecognizerBatch
    noise: tuple[LayerNoise, ...]
    seed: int
    features: tuple[Any, dict[str, Any]] | None = None


class _Losses(nn.Module):
    """The recognizer's training pass as one module, to be called with other parameter values."""

    def __init__(self, recognizer: Any) -> None:
        super().__init__()
        self.recognizer = recognizer

    def forward(self, draw: Draw, with_auxiliary: bool) -> dict[str, Tensor]:
        samples = draw.batch.data_samples
        features, options = draw.features or self.recognizer.extract_feat(
            draw.batch.inputs, data_samples=samples
        )
        losses = self.recognizer.cls_head.loss(features, samples, **options)
        return losses | (options.get("loss_aux") or {} if with_auxiliary else {})


@dataclass
class RecognizerStep:
    """Makes UDL iterations on `recognizer`.

    Args:
        recognizer: A `Recognizer2D` or `Recognizer3D` whose `cls_head` is a `DSTSHead`.
        simulate_backbone: Whether the simulated step moves the backbone (and neck), too.
        method: How the meta-gradient's product is computed; see `learn.products`.
        redraw_noise: Whether step 3 draws new noise.
        precision, scale: Of forward passes, and the loss scale that float16 needs.
        processes: Those that train together, with the sums over them that the second order needs.
        generator: Source of the head's noise.
    """

    recognizer: Any
    simulate_backbone: bool = False
    method: Method = "exact"
    redraw_noise: bool = False
    precision: Precision = "float32"
    scale: LossScale = field(default_factory=LossScale)
    processes: Processes = ALONE
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        self._losses = _Losses(self.recognizer)

    def parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """u and d by name: all parameters that require gradients."""
        upstream = {f"{_HEAD}head.{n}" for n in self.recognizer.cls_head.head.upstream_parameters()}
        trained = {n: p for n, p in self._losses.named_parameters() if p.requires_grad}
        return (
            {name: p for name, p in trained.items() if name in upstream},
            {name: p for name, p in trained.items() if name not in upstream},
        )

    def __call__(
        self,
        optim_wrapper: Any,
        train_batch: RecognizerBatch,
        val_batch: RecognizerBatch,
        inner_lr: float,
    ) -> dict[str, Tensor]:
        """Update u, then d; returns the losses of step 3 by name, their sum as `loss`.

        Args:
            optim_wrapper: Of all parameters; it clips u's and d's gradients separately.
            inner_lr: alpha of the simulated step.
        """
        u, d = self.parameters()
        draw = self._draw(train_batch)
        meta = self._meta_gradient(u, d, draw, self._draw(val_batch, is_training=False), inner_lr)
        if self.scale.accepts(meta.values()):
            _update(optim_wrapper, u, [meta[name] for name in u])
        if self.redraw_noise:
            draw = Draw(train_batch, self._noise(train_batch), draw.seed, draw.features)
        losses = self._evaluate(draw, HeadPass(draw.noise), with_auxiliary=True)
        total, logged = self.recognizer.parse_losses(losses)
        factor = self.scale.value / self.processes.world_size
        found = torch.autograd.grad(total * factor, list(d.values()), allow_unused=True)
        summed = self.processes.sum_gradients(list(found))
        gradients = [None if g is None else g / self.scale.value for g in summed]
        if self.scale.accepts(gradients):
            _update(optim_wrapper, d, gradients)
        return logged

    def _meta_gradient(
        self,
        u: dict[str, nn.Parameter],
        d: dict[str, nn.Parameter],
        train: Draw,
        val: Draw,
        inner_lr: float,
    ) -> dict[str, Tensor]:
        def loss_fn(
            upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
        ) -> Tensor:
            return self._loss_at({**upstream, **downstream}, draw, first_order=False)

        def first_order_loss_fn(
            upstream: dict[str, Tensor], downstream: dict[str, Tensor], draw: Draw
        ) -> Tensor:
            return self._loss_at({**upstream, **downstream}, draw, first_order=True)

        moved = {n: p for n, p in d.items() if self.simulate_backbone or n.startswith(_HEAD)}
        weight = 1.0 / self.processes.world_size
        if train.features is not None:
            train = Draw(train.batch, train.noise, train.seed, _detached(train.features))
        with _spared_buffers(self.recognizer):
            return meta_gradient_of_parts(
                loss_fn,
                u,
                moved,
                [(train, weight)],
                [(val, weight)],
                inner_lr,
                method=self.method,
                first_order_loss_fn=first_order_loss_fn,
                loss_scale=self.scale.value,
                sum_across=self.processes.sum_named,
            )

    def _loss_at(self, values: dict[str, Tensor], draw: Draw, *, first_order: bool) -> Tensor:
        how = HeadPass(draw.noise, update_statistics=False, first_order=first_order)
        # What d_hat's backbone does to an auxiliary loss belongs to the loss where it moves.
        losses = self._evaluate(draw, how, values, with_auxiliary=self.simulate_backbone)
        return self.recognizer.parse_losses(losses)[0]

    def _evaluate(
        self,
        draw: Draw,
        how: HeadPass,
        values: dict[str, Tensor] | None = None,
        *,
        with_auxiliary: bool,
    ) -> dict[str, Tensor]:
        """Losses by name, at `values` or the recognizer's own."""
        device = draw.batch.inputs.device
        with (
            self.recognizer.cls_head.passing(how),
            _seeded(draw.seed, device),
            forward_context(self.precision, device),
        ):
            return functional_call(self._losses, values or {}, (draw, with_auxiliary))

    def _draw(self, batch: RecognizerBatch, *, is_training: bool = True) -> Draw:
        """Fix the randomness; compute the features where one pass over the backbone serves all."""
        seed = int(torch.randint(2**31, ()))
        noise, device = self._noise(batch), batch.inputs.device
        if self.simulate_backbone:
            return Draw(batch, noise, seed)
        with _seeded(seed, device), forward_context(self.precision, device):
            if is_training:
                found = self.recognizer.extract_feat(batch.inputs, data_samples=batch.data_samples)
            else:
                with torch.no_grad(), _spared_buffers(self.recognizer):
                    found = self.recognizer.extract_feat(batch.inputs)
        return Draw(batch, noise, seed, found)

    def _noise(self, batch: RecognizerBatch) -> tuple[LayerNoise, ...]:
        objective = Objective(self.recognizer.cls_head.head, processes=self.processes)
        sized: Any = batch  # of a batch it needs the length
        return tuple(objective.draw(sized, self.generator).noise or ())


def _detached(features: tuple[Any, dict[str, Any]]) -> tuple[Any, dict[str, Any]]:
    maps, options = features
    if isinstance(maps, tuple | list):
        return type(maps)(part.detach() for part in maps), options
    return maps.detach(), options


def _update(
    optim_wrapper: Any, parameters: dict[str, nn.Parameter], gradients: Sequence[Tensor | None]
) -> None:
    """One step of the optimiser on `parameters` alone: it leaves those without gradient."""
    optim_wrapper.zero_grad()
    for parameter, gradient in zip(parameters.values(), gradients, strict=True):
        parameter.grad = gradient
    optim_wrapper.step()
    optim_wrapper.zero_grad()


@contextmanager
def _spared_buffers(module: nn.Module) -> Iterator[None]:
    """Let running statistics move on copies: the passes inside leave none behind.

    The buffers themselves are put aside, not overwritten: a graph may still need them.
    """
    kept = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    for owner, name, buffer in kept:
        owner._buffers[name] = buffer.clone()
    try:
        yield
    finally:
        for owner, name, buffer in kept:
            owner._buffers[name] = buffer


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """The same random numbers inside, whenever it is entered; outside none are taken."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


# ---- the loop ----------------------------------------------------------------------------------


@LOOPS.register_module()
class UDLTrainLoop(EpochBasedTrainLoop):
    """mmengine's epoch-based loop with UDL's three steps for an iteration.

    Args:
        runner, dataloader, max_epochs, ...: As for `EpochBasedTrainLoop`.
        simulate_backbone: Whether the simulated step moves the backbone, too; then every pass
            goes through it. Choice: it does not.
        inner_lr: alpha of the simulated step; None: the optimiser's current learning rate, before
            any multiplier of a group.
        udl_method: "exact", "forward_over_reverse" or "finite_difference".
        redraw_noise: Whether step 3 draws new noise for the head.
        precision: "float32", "bfloat16" or "float16": type of the forward passes. float16 scales
            the loss; its scale starts anew when a training is resumed.

    Several processes (`--launcher`): gradients are summed explicitly, those of the second order
    included, past DistributedDataParallel, which differentiates none of its own. The head's norms
    are those of the joined batch; the backbone's are, as ever, each process's own.

    Raises:
        SettingsError: The head is no `DSTSHead` or decides nothing, the optimiser wrapper is
            another one or accumulates gradients, activations are checkpointed, or a batch cannot be
            split.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_epochs: int,
        *,
        simulate_backbone: bool = False,
        inner_lr: float | None = None,
        udl_method: Method = "exact",
        redraw_noise: bool = False,
        precision: Precision = "float32",
        **options: Any,
    ) -> None:
        super().__init__(runner, dataloader, max_epochs, **options)
        check_method(udl_method)
        self.inner_lr = inner_lr
        self.recognizer = runner.model.module if is_model_wrapper(runner.model) else runner.model
        _check_head(self.recognizer)
        _check_batches(self.dataloader)
        device = next(self.recognizer.parameters()).device
        self.step = RecognizerStep(
            self.recognizer,
            simulate_backbone=simulate_backbone,
            method=udl_method,
            redraw_noise=redraw_noise,
            precision=precision,
            scale=LossScale.for_precision(precision),
            processes=Processes(get_rank(), get_world_size(), device),
            generator=torch.Generator(device),
        )

    def run(self) -> torch.nn.Module:
        """Launch training."""
        _check_optimizer(self.runner.optim_wrapper)
        _check_graph(self.recognizer, self.runner.cfg)
        if self.step.processes.world_size > 1:
            self.step.processes.adopt(self.recognizer.cls_head)
        return super().run()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One iteration: u's meta-update and d's update.

        Raises:
            SettingsError: The halves share a clip.
        """
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        train, val = (self._preprocess(half) for half in split_batch(data_batch))
        # From seed and iteration: a training that is resumed draws what it would have drawn.
        noise_seed = derive_seed(self.runner.seed or 0, f"udl_{self._iter}")
        assert self.step.generator is not None
        self.step.generator.manual_seed(noise_seed)
        rates = self.runner.optim_wrapper.get_lr()
        alpha = rates.get("base_lr", rates["lr"])[0] if self.inner_lr is None else self.inner_lr
        outputs = self.step(self.runner.optim_wrapper, train, val, alpha)
        self.runner.call_hook(
            "after_train_iter", batch_idx=idx, data_batch=data_batch, outputs=outputs
        )
        self._iter += 1

    def _preprocess(self, half: dict[str, Any]) -> RecognizerBatch:
        data = self.recognizer.data_preprocessor(half, True)
        return RecognizerBatch(data["inputs"], data["data_samples"])


def split_batch(data_batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """A collated batch as its first and its second half; of an odd one the second is longer.

    Raises:
        SettingsError: They share a clip (seen where samples carry `sample_idx`).
    """
    middle = len(data_batch["data_samples"]) // 2
    halves = (
        {key: values[:middle] for key, values in data_batch.items()},
        {key: values[middle:] for key, values in data_batch.items()},
    )
    train, val = (
        {sample.get("sample_idx") for sample in half["data_samples"]} - {None} for half in halves
    )
    if train & val:
        raise SettingsError(
            f"train_dataloader: clip {min(train & val)} is in both halves of a batch, UDL needs "
            "disjoint ones; use a sampler that gives each clip once an epoch, and drop_last=True"
        )
    return halves


def _check_head(recognizer: Any) -> None:
    head = getattr(recognizer, "cls_head", None)
    if not isinstance(head, DSTSHead):
        raise SettingsError(
            f"train_cfg: UDLTrainLoop trains a cls_head of type DSTSHead, found "
            f"{type(head).__name__}; use EpochBasedTrainLoop for others"
        )
    if not head.head.upstream_parameters():
        raise SettingsError(
            "train_cfg: this DSTSHead has no upstream parameters (nothing is routed or gated), so "
            "UDL has nothing to update; use EpochBasedTrainLoop"
        )


def _check_optimizer(wrapper: Any) -> None:
    if type(wrapper) is not OptimWrapper:
        raise SettingsError(
            f"optim_wrapper: UDLTrainLoop needs type OptimWrapper, found {type(wrapper).__name__}; "
            "for mixed precision set precision='bfloat16' or 'float16' in train_cfg instead (and "
            "leave --amp away)"
        )
    if wrapper._accumulative_counts != 1:
        raise SettingsError(
            f"optim_wrapper: accumulative_counts={wrapper._accumulative_counts}; UDL's second "
            "order needs the whole batch at once: leave it at 1 and use smaller batches or more "
            "processes"
        )


def _check_graph(recognizer: Any, config: Any) -> None:
    """mmengine's and mmaction2's activation checkpointing knows `backward()` only."""
    inside = [name for name, part in recognizer.named_modules() if getattr(part, "with_cp", False)]
    found = f"with_cp=True in {inside[0]}" if inside else "activation_checkpointing in the config"
    if inside or config.get("activation_checkpointing"):
        raise SettingsError(
            f"{found}: this activation checkpointing (reentrant) cannot give UDL the gradients "
            "that it asks for; switch it off and use smaller batches, or frozen_stages"
        )


def _check_batches(dataloader: Any) -> None:
    size = dataloader.batch_size
    if size is None or size < 2:
        raise SettingsError(
            f"train_dataloader: batch_size is {size}, expected at least 2: UDL trains on one half "
            "of each batch and validates on the other"
        )
    if not dataloader.drop_last and len(dataloader.sampler) % size == 1:
        raise SettingsError(
            f"train_dataloader: {len(dataloader.sampler)} clips in batches of {size} leave one "
            "over, which cannot be split; set drop_last=True"
        )
