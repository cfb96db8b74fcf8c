"""UDL's three steps (paper 3.3, Eq. 9-11) on an mmaction2 recognizer with a `DSTSHead`.

Enters: a recognizer, its optimiser wrapper, two disjoint preprocessed batches. Leaves: updated
parameters and the losses of the pass that updated d. The losses are the recognizer's own, auxiliary
ones included. Upstream parameters are the head's scoring kernels and gates; all others that require
gradients are downstream, the backbone's among them.

Where the simulated step leaves the backbone alone, each map is computed once: step 1, its
derivative and the validation pass go through the head only, and step 3 goes on from the same maps.
Otherwise all passes over one batch use the same random numbers (dropout, stochastic depth).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dsts_pipeline.head import LayerNoise
from dsts_pipeline.learn.objective import Objective
from dsts_pipeline.learn.precision import LossScale, Precision, forward_context
from dsts_pipeline.learn.processes import ALONE, Processes
from dsts_pipeline.learn.products import Method
from dsts_pipeline.learn.udl import meta_gradient_of_parts
from dsts_pipeline.serve.mmaction2.cls_head import HeadPass

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
