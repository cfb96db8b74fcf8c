"""A training loop for mmaction2 configs that makes UDL's three steps in every iteration.

Enters: mmengine's runner with an `OptimWrapper` and a recognizer with a `DSTSHead`. Leaves: trained
parameters; hooks, schedules, logs and checkpoints are mmengine's.

Each batch of 2B clips is split in halves, the first trains, the second validates: they are disjoint
because a data loader hands out each clip once an epoch. So an epoch visits every clip once, and
updates d by half of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
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
from dsts_pipeline.base.settings import Method, Precision, UdlSettings
from dsts_pipeline.head import HeadNoise
from dsts_pipeline.learn.optimizers import LossScale, forward_context
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.steps import Draw, Objective, udl_step
from dsts_pipeline.learn.udl import check_method
from dsts_pipeline.mmaction2.components import DSTSHead, HeadPass

# ---- UDL's three steps on a recognizer ---------------------------------------------------------
#
# The losses are the recognizer's own, auxiliary ones included. Upstream parameters are the head's
# scoring kernels and gates; all others that require gradients are downstream, the backbone's among
# them. Where the simulated step leaves the backbone alone, each map is computed once. Otherwise all
# passes over one batch use the same random numbers (dropout, stochastic depth).

_ROOT = "recognizer."
_HEAD = f"{_ROOT}cls_head."


@dataclass(frozen=True)
class RecognizerBatch:
    """What the data preprocessor gives: frames, and data samples with labels."""

    inputs: Tensor
    data_samples: list[Any]

    def __len__(self) -> int:
        return len(self.data_samples)


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


class RecognizerObjective:
    """The losses of a recognizer whose `cls_head` is a `DSTSHead`, for `udl_step`.

    Args:
        simulate_backbone: Whether the simulated step moves the backbone (and neck), too.
        precision: Of forward passes.
        processes: Those that train together, with the sums over them that the second order needs.
    """

    def __init__(
        self,
        recognizer: Any,
        *,
        simulate_backbone: bool,
        precision: Precision,
        processes: Processes,
    ) -> None:
        self.recognizer = recognizer
        self.simulate_backbone = simulate_backbone
        self.precision: Precision = precision
        self.processes = processes
        self._losses = _Losses(recognizer)

    def parameters(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """u and d by name: all parameters that require gradients."""
        upstream = {f"{_HEAD}head.{n}" for n in self.recognizer.cls_head.head.upstream_parameters()}
        trained = {n: p for n, p in self._losses.named_parameters() if p.requires_grad}
        return (
            {name: p for name, p in trained.items() if name in upstream},
            {name: p for name, p in trained.items() if name not in upstream},
        )

    def simulated(self) -> tuple[dict[str, nn.Parameter], dict[str, nn.Parameter]]:
        """u, and what of d the simulated step moves."""
        u, d = self.parameters()
        return u, {n: p for n, p in d.items() if self.simulate_backbone or n.startswith(_HEAD)}

    def draw(self, batch: RecognizerBatch, generator: torch.Generator | None) -> Draw:
        """Fix the randomness of all passes over `batch`."""
        seed = int(torch.randint(2**31, ()))
        return Draw(batch, self.noise(batch, generator), seed)

    def noise(self, batch: RecognizerBatch, generator: torch.Generator | None) -> HeadNoise | None:
        """The head's noise for `batch`."""
        objective = Objective(self.recognizer.cls_head.head, processes=self.processes)
        sized: Any = batch  # of a batch it needs the length
        return objective.draw(sized, generator).noise

    def with_features(self, draw: Draw, *, of_training: bool, with_graph: bool) -> Draw:
        """The draw with what the head gets, where one pass over the backbone serves all."""
        if self.simulate_backbone:
            return draw
        batch = draw.batch
        with self._random(draw), forward_context(self.precision, batch.inputs.device):
            if of_training:
                samples = batch.data_samples
                found = self.recognizer.extract_feat(batch.inputs, data_samples=samples)
            else:
                with torch.no_grad(), _spared_buffers(self.recognizer):
                    found = self.recognizer.extract_feat(batch.inputs)
        return replace(draw, features=found)

    def constant(self, draw: Draw) -> Draw:
        """The draw with its features cut from the graph that made them."""
        if draw.features is None:
            return draw
        maps, options = draw.features
        if isinstance(maps, tuple | list):
            cut: Any = type(maps)(part.detach() for part in maps)
        else:
            cut = maps.detach()
        return replace(draw, features=(cut, options))

    def __call__(self, upstream: Values, downstream: Values, draw: Draw) -> Tensor:
        """The loss at these parameter values; running statistics stay as they are."""
        return self._loss_at({**upstream, **downstream}, draw, first_order=False)

    def first_order_loss(self, upstream: Values, downstream: Values, draw: Draw) -> Tensor:
        """The same loss, whose gradient is not to be differentiated again."""
        return self._loss_at({**upstream, **downstream}, draw, first_order=True)

    def evaluate(self, draw: Draw, *, update_statistics: bool) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and all losses by name, at the recognizer's own values."""
        how = HeadPass(draw.noise, update_statistics=update_statistics)
        losses = self._evaluate(draw, how, {}, with_auxiliary=True)
        return self.recognizer.parse_losses(losses)

    def _loss_at(self, values: Values, draw: Draw, *, first_order: bool) -> Tensor:
        how = HeadPass(draw.noise, update_statistics=False, first_order=first_order)
        # What d_hat's backbone does to an auxiliary loss belongs to the loss where it moves.
        auxiliary = self.simulate_backbone
        with _spared_buffers(self.recognizer):
            losses = self._evaluate(draw, how, values, with_auxiliary=auxiliary)
        return self.recognizer.parse_losses(losses)[0]

    def _evaluate(
        self, draw: Draw, how: HeadPass, values: Values, *, with_auxiliary: bool
    ) -> dict[str, Tensor]:
        with (
            self.recognizer.cls_head.passing(how),
            self._random(draw),
            forward_context(self.precision, draw.batch.inputs.device),
        ):
            return functional_call(self._losses, values, (draw, with_auxiliary))

    def _random(self, draw: Draw) -> AbstractContextManager[None]:
        assert draw.seed is not None
        return _seeded(draw.seed, draw.batch.inputs.device)


Values = dict[str, Tensor]


class _Updates:
    """Steps of an optimiser wrapper on some of its parameters: it leaves those without gradient."""

    def __init__(self, wrapper: Any, parameters: dict[str, nn.Parameter]) -> None:
        self.wrapper = wrapper
        self.parameters = list(parameters.values())

    def step(self, gradients: Iterable[Tensor | None], skip: Tensor | None = None) -> None:
        if skip is not None and bool(skip):
            return
        self.wrapper.zero_grad()
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            parameter.grad = gradient
        self.wrapper.step()
        self.wrapper.zero_grad()


class RecognizerStep:
    """Makes UDL iterations on `recognizer`; arguments as for `RecognizerObjective` and `udl_step`.

    Args:
        recognizer: A `Recognizer2D` or `Recognizer3D` whose `cls_head` is a `DSTSHead`.
        generator: Source of the head's noise.
    """

    def __init__(
        self,
        recognizer: Any,
        *,
        udl: UdlSettings = UdlSettings(),
        simulate_backbone: bool = False,
        precision: Precision = "float32",
        processes: Processes = ALONE,
        generator: torch.Generator | None = None,
    ) -> None:
        self.objective = RecognizerObjective(
            recognizer,
            simulate_backbone=simulate_backbone,
            precision=precision,
            processes=processes,
        )
        self.udl = udl
        device = next(recognizer.parameters()).device
        self.scale = LossScale.for_precision(precision, device)
        self.generator = generator

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
        objective = self.objective
        u, d = objective.parameters()
        weight = 1.0 / objective.processes.world_size
        train = objective.draw(train_batch, self.generator)
        val = objective.draw(val_batch, self.generator)
        redrawn = None
        if self.udl.redraw_noise:
            noise = objective.noise(train_batch, self.generator)
            redrawn = [replace(train, noise=noise)]
        _, (logged,) = udl_step(
            objective,
            [(train, weight)],
            [(val, weight)],
            inner_lr,
            upstream=_Updates(optim_wrapper, u),
            downstream=_Updates(optim_wrapper, d),
            scale=self.scale,
            udl=self.udl,
            redrawn=redrawn,
        )
        return logged


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
        self.processes = Processes(get_rank(), get_world_size(), device)
        self.step = RecognizerStep(
            self.recognizer,
            udl=UdlSettings(method=udl_method, redraw_noise=redraw_noise),
            simulate_backbone=simulate_backbone,
            precision=precision,
            processes=self.processes,
            generator=torch.Generator(device),
        )

    def run(self) -> torch.nn.Module:
        """Launch training."""
        _check_optimizer(self.runner.optim_wrapper)
        _check_graph(self.recognizer, self.runner.cfg)
        if self.processes.world_size > 1:
            self.processes.adopt(self.recognizer.cls_head)
        return super().run()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """One iteration: u's meta-update and d's update.

        Raises:
            SettingsError: The halves share a clip.
        """
        self.runner.call_hook("before_train_iter", batch_idx=idx, data_batch=data_batch)
        train, val = (self._preprocess(half) for half in halve_batch(data_batch))
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


def halve_batch(data_batch: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
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
