"""Batches of frames through a frozen backbone, so that its device always has work.

Enters: frames uint8 [n, T, H, W, C] and the memory that their maps go to. Leaves: maps float32
[n, C, T', H', W'] in that memory, at the latest after `finish`.

On a CUDA device frames are sent from pinned memory and maps come back into pinned memory while the
next batch is gathered; one batch is under way. On a CPU a batch is done when `submit` returns.

Batch size and bits: a batch that does not fit the memory is halved, and so are all that follow. A
backbone may sum in another order at another batch size, which can change the last bit of a
float32; the same size gives the same bits.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import BackboneSettings

Precision = Literal["float32", "bfloat16", "float16"]
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_OUT_OF_MEMORY_WORDS = ("not enough memory", "can't allocate memory", "out of memory")


class MapMaker(Protocol):
    """What extraction asks of a backbone, `extract.Backbone` or a test's stand-in."""

    name: str
    num_frames: int
    size_px: int
    map_shape: tuple[int, int, int, int]

    @property
    def device(self) -> torch.device: ...
    def __call__(self, frames: Tensor) -> Tensor: ...


def map_shapes(backbone: MapMaker) -> list[tuple[int, int, int, int]]:
    """(C, T', H', W') of the maps of one clip, tap by tap."""
    shapes = getattr(backbone, "map_shapes", None)
    return [backbone.map_shape] if shapes is None else list(shapes.values())


def input_shape(backbone: MapMaker) -> tuple[int, int, int, int]:
    """(T, H, W, C) of one clip; frames of three channels unless the backbone says otherwise."""
    num_channels = getattr(backbone, "num_channels", 3)
    return backbone.num_frames, backbone.size_px, backbone.size_px, num_channels


# ---- how it is run ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Computing:
    """How a backbone is run.

    Attributes:
        batch_size: Clips per forward pass, at most.
        precision: Of autocast; "float32" means that there is none.
        compile: Whether torch.compile is used.
        channels_last: Whether kernels, and so the maps between layers, have channels innermost.
    """

    batch_size: int = 32
    precision: Precision = "float32"
    compile: bool = False
    channels_last: bool = False

    def describe(self) -> dict[str, Any]:
        """What of this a store's fingerprint names; empty where all is plain.

        Choice: the batch size is left out. It can change the last bit of a float32, as another
        processor can, and a store should outlive a change of either.
        """
        described: dict[str, Any] = {}
        if self.precision != "float32":
            described["precision"] = self.precision
        if self.compile:
            described["compiled"] = True
        if self.channels_last:
            described["channels_last"] = True
        return described


def choose_computing(chosen: BackboneSettings) -> Computing:
    """How the settings want the backbone to be run."""
    return Computing(chosen.batch_size, chosen.precision, chosen.compile, chosen.channels_last)


def choose_device(
    wanted: Literal["auto", "cpu", "cuda"], environment: Mapping[str, str] = os.environ
) -> torch.device:
    """The CUDA device of this process's number on its host (LOCAL_RANK, as torchrun sets it).

    Several processes share a device where there are fewer devices than processes.

    Args:
        wanted: "auto" takes the CPU where there is no CUDA device.

    Raises:
        UserError: "cuda" is wanted and there is none.
    """
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not num_devices):
        return torch.device("cpu")
    if not num_devices:
        raise UserError(
            "backbone.device is cuda, but torch sees no CUDA device; set it to auto or cpu, or "
            "install a build of torch for this machine's driver"
        )
    return torch.device("cuda", int(environment.get("LOCAL_RANK", "0")) % num_devices)


def count_work_threads(device: torch.device) -> int:
    """Cores of this machine that a model on `device` computes on; 0 where it is a GPU."""
    return torch.get_num_threads() if device.type == "cpu" else 0


# ---- batches ------------------------------------------------------------------------------------


class _UnderWay(NamedTuple):
    on_device: list[Tensor]
    pinned: list[Tensor]
    outs: list[np.ndarray]
    started: torch.cuda.Event
    ended: torch.cuda.Event
    num_clips: int


class ForwardPass:
    """Runs batches; `seconds` is how long the backbone took so far.

    Attributes:
        batch_size: The largest batch that is tried now.
        num_threads: Cores of this machine that the backbone computes on; 0: it is on a GPU.
    """

    def __init__(self, backbone: MapMaker, computing: Computing) -> None:
        self._device = backbone.device
        self._precision = computing.precision
        if computing.channels_last and isinstance(backbone, nn.Module):
            _put_channels_last(backbone)
        self._backbone = _all_taps(backbone)
        if computing.compile:
            self._backbone = torch.compile(self._backbone)
        self.batch_size = computing.batch_size
        self.num_threads = count_work_threads(self._device)
        self.seconds = 0.0
        self._settled_seconds = 0.0  # without the first batch, which sets the backbone up
        self._settled_clips: int | None = None
        self._under_way: _UnderWay | None = None

    @property
    def seconds_per_clip(self) -> float | None:
        """What a clip takes the backbone; None before a second batch is done."""
        return self._settled_seconds / self._settled_clips if self._settled_clips else None

    def submit(self, frames: np.ndarray | Tensor, *outs: np.ndarray) -> None:
        """Start on `frames`; `outs` (float32, as many rows, one per tap) are filled now or later.

        Args:
            frames: A tensor that is on the device already is not copied.

        Raises:
            UserError: Not even one clip fits the device's memory.
        """
        started = time.monotonic()
        done = 0
        while done < len(frames):
            rows = slice(done, done + self.batch_size)
            try:
                self._run(frames[rows], [out[rows] for out in outs])
            except RuntimeError as error:
                if not _is_out_of_memory(error):
                    raise
                self._halve(len(frames[rows]))
                continue
            done += len(frames[rows])
        if self._device.type != "cuda":
            self._note(time.monotonic() - started, len(frames))

    def finish(self) -> None:
        """Wait for the batch under way."""
        batch = self._under_way
        self._under_way = None
        if batch is None:
            return
        batch.ended.synchronize()
        for out, pinned in zip(batch.outs, batch.pinned, strict=True):
            out[:] = pinned.numpy()
        self._note(batch.started.elapsed_time(batch.ended) / 1000, batch.num_clips)

    def _note(self, seconds: float, num_clips: int) -> None:
        self.seconds += seconds
        if self._settled_clips is None:
            self._settled_clips = 0
            return
        self._settled_seconds += seconds
        self._settled_clips += num_clips

    def _run(self, frames: np.ndarray | Tensor, outs: list[np.ndarray]) -> None:
        if self._device.type != "cuda":
            with self._autocast():
                maps = self._backbone(torch.as_tensor(frames).to(self._device))
            for out, value in zip(outs, maps, strict=True):
                out[:] = value.float().cpu().numpy()
            return
        started = torch.cuda.Event(enable_timing=True)
        ended = torch.cuda.Event(enable_timing=True)
        started.record()
        if isinstance(frames, Tensor):
            sent = frames.to(self._device)
        else:
            sent = torch.from_numpy(frames).pin_memory().to(self._device, non_blocking=True)
        with self._autocast():
            maps = [value.float() for value in self._backbone(sent)]
        pinned = [torch.empty(m.shape, dtype=torch.float32, pin_memory=True) for m in maps]
        for target, value in zip(pinned, maps, strict=True):
            target.copy_(value, non_blocking=True)
        ended.record()
        self.finish()  # the one before, now that the device has its next work
        self._under_way = _UnderWay(maps, pinned, outs, started, ended, len(frames))

    def _autocast(self) -> AbstractContextManager[Any]:
        if self._precision == "float32":
            return nullcontext()
        return torch.autocast(self._device.type, dtype=_AUTOCAST[self._precision])

    def _halve(self, num_clips: int) -> None:
        if num_clips == 1:
            raise UserError(
                f"one clip alone does not fit the memory of {self._device}; free memory, choose "
                "another device by backbone.device, or set backbone.precision to bfloat16"
            )
        self.finish()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        self.batch_size = num_clips // 2
        console.print(
            f"{num_clips} clips do not fit the memory of {self._device}: going on with batches of "
            f"{self.batch_size} (backbone.batch_size)"
        )


def _all_taps(backbone: Any) -> Callable[[Tensor], list[Tensor]]:
    if len(map_shapes(backbone)) > 1:
        return lambda frames: list(backbone.extract(frames).values())
    return lambda frames: [backbone(frames)]


def _put_channels_last(module: nn.Module) -> None:
    """Kernels of convolutions over space, or space and time, with channels innermost."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in module.parameters():
        if parameter.dim() in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.dim()])


def _is_out_of_memory(error: RuntimeError) -> bool:
    told = str(error).lower()
    is_told = any(words in told for words in _OUT_OF_MEMORY_WORDS)
    return isinstance(error, torch.OutOfMemoryError) or is_told
