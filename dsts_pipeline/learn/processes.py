"""The processes that train one head together, and the device of each.

Enters: a device and how many of them. Leaves: a `Processes`. Lightning Fabric starts the other
processes (or finds those that `torchrun` started), names their devices and joins them. One process
needs none of that: then Fabric, which takes seconds to import, stays out.

Every process holds the whole head, takes its own share of every batch, and makes the same update.
Norms, standardized impulses and the load-balancing loss belong to the joined batch, and so does the
noise, so that W processes with batches of B make the step that one process makes with a batch of
W * B.
"""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dsts_pipeline.base.children import end_with_parent, watch_parent
from dsts_pipeline.base.errors import BusyError, SettingsError, UserError, import_extra
from dsts_pipeline.base.files import hold_alone
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Device
from dsts_pipeline.head.norms import SumAcross

# ---- sums over processes -------------------------------------------------------------------------
#
# What is differentiated is the sum of all processes' scalars, each process asking for the gradient
# by its own copy of the parameters. A sum over processes reaches every process's scalar, so its
# gradient is the sum of theirs: `d/dx_r sum_s f_s(sum_r x_r) = sum_s f_s'`. That is a sum over
# processes again, which is why the second order needs nothing more.


class ProcessLostError(UserError):
    """Another process of the training ended or does not answer."""


def sum_in_place(values: Tensor) -> Tensor:
    """`values`, overwritten with their sum over processes.

    Raises:
        ProcessLostError: Another process is gone.
    """
    try:
        dist.all_reduce(values)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[0]
        raise ProcessLostError(
            f"another process of this training ended or does not answer ({reason}); see its own "
            "message; the same command goes on from the last checkpoint"
        ) from None
    return values


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor) -> Tensor:
        return sum_in_place(values.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.apply(gradient)

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor) -> Tensor:
        return _Sum.apply(tangent)


def differentiable_sum(values: Tensor) -> Tensor:
    """Sum over processes, differentiable any number of times, forwards and backwards."""
    return _Sum.apply(values)


def sum_all(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Sums over processes of many tensors, in one exchange per dtype."""
    result: list[Tensor] = list(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [place for place, tensor in enumerate(tensors) if tensor.dtype == dtype]
        joined = torch.cat([tensors[place].detach().reshape(-1) for place in places])
        parts = sum_in_place(joined).split([tensors[place].numel() for place in places])
        for place, part in zip(places, parts, strict=True):
            result[place] = part.view(tensors[place].shape)
    return result


# ---- processes and devices -----------------------------------------------------------------------

_STARTED_BY = "DSTS_STARTED_BY"  # process id


@dataclass(frozen=True)
class Processes:
    """This process among those that train together.

    Args:
        rank, world_size: Its number, from 0, and how many there are.
        device: Where its tensors are.
    """

    rank: int = 0
    world_size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    @property
    def sum_across(self) -> SumAcross | None:
        """Differentiable sum over processes; None where there is one."""
        return differentiable_sum if self.world_size > 1 else None

    def sum_gradients(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Gradients summed over processes; None stays None (the same ones everywhere)."""
        if self.world_size == 1:
            return gradients
        summed = iter(sum_all([gradient for gradient in gradients if gradient is not None]))
        return [None if gradient is None else next(summed) for gradient in gradients]

    def sum_named(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        """`values` summed over processes, by name."""
        if self.world_size == 1:
            return values
        return dict(zip(values, sum_all(list(values.values())), strict=True))

    def sum_numbers(self, values: Tensor) -> Tensor:
        """Numbers summed over processes, without derivative."""
        if self.world_size == 1:
            return values
        return sum_in_place(values.detach().clone().to(self.device))

    def any(self, flag: bool) -> bool:
        """Whether `flag` holds on some process: the same answer everywhere."""
        if self.world_size == 1:
            return flag
        return bool(sum_in_place(torch.tensor(int(flag), device=self.device)))

    def gather(self, value: Any) -> list[Any]:
        """Every process's `value`, in order of rank."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value)
        return found

    def adopt(self, head: nn.Module) -> None:
        """Move `head` here, give it the first process's values, synchronise its statistics.

        Raises:
            SettingsError: Several processes, and a norm whose statistics can't be synchronised.
        """
        head.to(self.device)
        for name, module in head.named_modules():
            if self.world_size > 1 and _keeps_own_statistics(module):
                raise SettingsError(
                    f"{type(head).__name__}.{name} keeps statistics of one process's batch only, "
                    f"and {self.world_size} processes train; set train.devices to 1"
                )
            if hasattr(module, "sum_across"):
                module.sum_across = self.sum_across
        if self.world_size > 1:
            for tensor in head.state_dict().values():
                dist.broadcast(tensor, src=0)


def _keeps_own_statistics(module: nn.Module) -> bool:
    """Whether it is a batch norm that is not held still (see `EndToEnd.train`)."""
    is_norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
    return is_norm and not getattr(module, "statistics_frozen", False)


ALONE = Processes()


def keep_freed_memory() -> None:
    """Let the C library keep memory that tensors give back, for the next ones.

    A step asks for megabytes a thousand times; given back to the kernel each time, they are mapped
    and cleared anew, which takes a tenth of a step on a CPU. Other C libraries are left alone.
    """
    try:
        tune = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    tune(_MMAP_THRESHOLD, 32 * 2**20)  # the most that glibc takes
    tune(_TRIM_THRESHOLD, 512 * 2**20)


_TRIM_THRESHOLD = -1  # the names of mallopt's parameters in malloc.h
_MMAP_THRESHOLD = -3


def choose_device(name: Device) -> str:
    """ "cpu" or "cuda"; "auto" takes a GPU where there is one.

    Raises:
        SettingsError: "cuda" and there is none.
    """
    has_gpu = torch.cuda.is_available()
    if name == "cuda" and not has_gpu:
        raise SettingsError(
            "train.device is cuda and torch finds no GPU; set it to auto or cpu, or see "
            "`python cli.py doctor`"
        )
    return "cuda" if has_gpu and name != "cpu" else "cpu"


@contextmanager
def joined_processes(device: Device, num_devices: int) -> Iterator[Processes]:
    """Start or find the processes of a training; messages come from the first one alone.

    Args:
        num_devices: Processes on this machine, each on a device of its own (or sharing the CPU).
            Under `torchrun` that one's numbers count.

    Raises:
        SettingsError: There are fewer GPUs than asked for.
    """
    kind = choose_device(device)
    if num_devices == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Processes(device=torch.device(kind))
        return
    fabric = _launch(kind, num_devices)
    quiet = console.quiet
    console.quiet = fabric.global_rank > 0
    try:
        yield Processes(fabric.global_rank, fabric.world_size, fabric.device)
    finally:
        console.quiet = quiet
        if dist.is_initialized():
            dist.destroy_process_group()


@contextmanager
def hold_together(processes: Processes, folder: Path, work: str) -> Iterator[None]:
    """Keep other trainings out of `folder`; see `base.files.hold_alone`. The first process does.

    Raises:
        BusyError: Another training holds it; every process raises it.
    """
    with ExitStack() as held:
        refusal = None
        if processes.is_first:
            try:
                held.enter_context(hold_alone(folder, work))
            except BusyError as error:
                refusal = str(error)
        if told := processes.gather(refusal)[0]:
            raise BusyError(told)
        yield


def _launch(kind: str, num_devices: int) -> Any:
    """A launched Fabric."""
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", num_devices))
    num_nodes = int(os.environ.get("WORLD_SIZE", per_node)) // per_node
    if kind == "cuda" and per_node > torch.cuda.device_count():
        raise SettingsError(
            f"{per_node} processes are to train on GPUs and there are "
            f"{torch.cuda.device_count()}; set train.devices to at most that"
        )
    fabric_library = import_extra("lightning_fabric", "training by several processes")
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = fabric_library.Fabric(
        accelerator=kind, devices=per_node, num_nodes=num_nodes, strategy="ddp"
    )
    with _ending_together():
        fabric.launch()
    return fabric


@contextmanager
def _ending_together() -> Iterator[None]:
    """What is launched within the block ends when the process that launched it does.

    Fabric starts the same command again: who finds a process named in its environment was started
    by that one. Under `torchrun` it is the agent that starts all of them, and they own the output.
    """
    if (first := os.environ.pop(_STARTED_BY, None)) is not None:
        end_with_parent(int(first))
    elif "TORCHELASTIC_RUN_ID" in os.environ:
        watch_parent(os.getppid())
    else:
        os.environ[_STARTED_BY] = str(os.getpid())
    try:
        yield
    finally:
        os.environ.pop(_STARTED_BY, None)
