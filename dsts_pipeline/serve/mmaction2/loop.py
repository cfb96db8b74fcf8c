"""A training loop for mmaction2 configs that makes UDL's three steps in every iteration.

Enters: mmengine's runner with an `OptimWrapper` and a recognizer with a `DSTSHead`. Leaves: trained
parameters; hooks, schedules, logs and checkpoints are mmengine's.

Each batch of 2B clips is split in halves, the first trains, the second validates: they are disjoint
because a data loader hands out each clip once an epoch. So an epoch visits every clip once, and
updates d by half of them.
"""

from __future__ import annotations

from typing import Any

import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.extract.models.mmaction_compat import import_mmaction
from dsts_pipeline.learn.precision import LossScale, Precision
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.products import Method, check_method
from dsts_pipeline.serve.mmaction2.cls_head import DSTSHead
from dsts_pipeline.serve.mmaction2.step import RecognizerBatch, RecognizerStep

import_mmaction()
from mmaction.registry import LOOPS  # noqa: E402
from mmengine.dist import get_rank, get_world_size  # noqa: E402
from mmengine.model import is_model_wrapper  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.runner import EpochBasedTrainLoop  # noqa: E402


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
