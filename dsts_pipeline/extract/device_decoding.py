"""Decoding where the backbone is: frames of torchcodec on CUDA that never leave the device.

Enters: `FrameRequest`s. Leaves: uint8 [V, T, H, W, 3], a tensor on the backbone's device, scaled
and cut there by the arithmetic of `pipelines.scale_frames` in whole numbers: bit for bit what the
host makes of the same decoded frames, so a store does not depend on where that was done.

Not everything can stay on the device: frames that a decoder's own rule scales (backbones without a
`pipeline`), augmented views and optical flow go by the host, in decode processes, as with any other
decoder; and clips that the fallback decoder reads come from the host.

A thread decodes, not a process, since frames of another process's GPU memory would have to be
copied. A decoder that hangs is given up after its time as everywhere, and its clip is tried again
and then listed; but a thread can't be killed: what hangs keeps its memory until the extraction
ends, and a crash of the decoder or of CUDA ends the extraction. The same command goes on after it.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.clips.decode import Tally, decode_to_device
from dsts_pipeline.clips.probe import VideoError
from dsts_pipeline.extract.decode_pool import (
    Decoded,
    DecodePool,
    WorkerLost,
    answer,
    check_content,
    decode_counted,
)
from dsts_pipeline.extract.num_decoders import NumWorkers
from dsts_pipeline.extract.pipelines import (
    Scaling,
    choose_size,
    cut_square,
    weigh,
    weigh_smoothly,
)
from dsts_pipeline.extract.views import DecodeJob, FrameRequest, ViewPlan


def stays_on_device(plan: ViewPlan, device: torch.device) -> bool:
    """Whether frames can be decoded, scaled and cut on `device`, the backbone's."""
    has_rule = getattr(plan.input, "pipeline", None) is not None
    is_rgb = getattr(plan.input, "modality", "rgb") == "rgb"
    is_plain = has_rule and is_rgb and not plan.views.augmentation.is_on
    return plan.decoder == "torchcodec_cuda" and device.type == "cuda" and is_plain


class DevicePool(DecodePool):
    """Decode threads whose frames are on `device`; see `DecodePool` for the rest.

    Args:
        num_workers: Threads, each with a decoder of its own; 0: this thread, without a time limit.
        prefetch_bytes: Of the device's memory.
    """

    def __init__(
        self,
        device: torch.device,
        num_workers: NumWorkers,
        *,
        clip_timeout_seconds: float,
        prefetch_bytes: int,
    ) -> None:
        super().__init__(
            num_workers,
            clip_timeout_seconds=clip_timeout_seconds,
            prefetch_bytes=prefetch_bytes,
            decode=partial(decode_on_device, device=device),
        )

    def _reach(self, job: DecodeJob, limit_seconds: float) -> Decoded:
        answers: queue.SimpleQueue[Decoded] = queue.SimpleQueue()

        def work() -> None:
            answers.put(answer(self._decode, job))

        threading.Thread(target=work, name="decode_on_device", daemon=True).start()
        try:
            return answers.get(timeout=limit_seconds)
        except queue.Empty:
            raise WorkerLost(f"decoding took longer than {limit_seconds:g} s") from None


def decode_on_device(request: FrameRequest, *, device: torch.device) -> Decoded:
    """The frames of `request` as a tensor on `device`; every frame is decoded once.

    Raises:
        VideoError: The file changed since it was indexed, or cannot be decoded.
    """
    if not request.decoder.startswith("torchcodec"):  # the pool goes on with the fallback
        return _send(decode_counted(request), device)
    if request.content is not None:
        check_content(request.path, request.content)
    try:
        return _decode_on_device(request, device)
    except VideoError as error:
        if request.fallback is None:
            raise
        first = error.reason
    try:
        return _send(decode_counted(replace(request, decoder=request.fallback)), device)
    except VideoError as error:
        both = first if error.reason == first else f"{first}; {request.fallback}: {error.reason}"
        raise VideoError(request.path, both) from None


def _send(decoded: Decoded, device: torch.device) -> Decoded:
    sent: Any = torch.as_tensor(decoded.frames).to(device)
    return replace(decoded, frames=sent)


def _decode_on_device(request: FrameRequest, device: torch.device) -> Decoded:
    assert request.scaling is not None and request.size_px is not None
    numbers = np.unique(np.concatenate([view.indices for view in request.views]))
    tally = Tally()
    scale = partial(
        scale_on_device,
        scaling=request.scaling,
        shorter_px=request.resize_px or request.size_px,
        squeezes=request.squeezes,
    )
    with torch.inference_mode():
        found = decode_to_device(request.path, numbers, str(device), scale=scale, tally=tally)
        whole: Any = torch.cat(found)
        height, width = whole.shape[1:3]
        if min(height, width) < request.size_px:
            raise VideoError(request.path, f"frames of {width} x {height} px are too small")
        views = []
        for view in request.views:
            places = torch.from_numpy(np.searchsorted(numbers, view.indices)).to(whole.device)
            square = cut_square(whole, request.size_px, view.crop, request.scaling)
            views.append(square[places])
        frames: Any = torch.stack(views)
    return Decoded(frames, num_decoded=tally.num_frames)


# ---- scaling, by the arithmetic of `pipelines` ---------------------------------------------------


def scale_on_device(
    frames: Tensor, scaling: Scaling, shorter_px: int, *, squeezes: bool = False
) -> Tensor:
    """What `pipelines.scale_frames` does, with tensors uint8 [T, H, W, 3] on any device."""
    height, width = frames.shape[1:3]
    wanted_width, wanted_height = choose_size(width, height, scaling, shorter_px, squeezes=squeezes)
    if scaling == "opencv":
        return _resize(frames, wanted_width, wanted_height)
    across = _filter(frames, wanted_width, 2, scaling)
    return _filter(across, wanted_height, 1, scaling)


def _resize(frames: Tensor, width: int, height: int) -> Tensor:
    """OpenCV's bilinear rule, see `pipelines.resize_by_numpy`."""
    if frames.shape[1:3] == (height, width):
        return frames
    device = frames.device
    left, right, from_left, from_right = (
        torch.from_numpy(part).to(device) for part in weigh(frames.shape[2], width)
    )
    upper, lower, from_upper, from_lower = (
        torch.from_numpy(part).to(device) for part in weigh(frames.shape[1], height)
    )
    whole = frames.int()
    across = whole[:, :, left] * from_left[:, None] + whole[:, :, right] * from_right[:, None]
    across >>= 4
    above = (from_upper[:, None, None] * across[:, upper]) >> 16
    below = (from_lower[:, None, None] * across[:, lower]) >> 16
    return ((above + below + 2) >> 2).clamp(0, 255).to(torch.uint8)


def _filter(frames: Tensor, wanted: int, axis: int, kind: str) -> Tensor:
    """`wanted` pixels along `axis`, antialiased, see `pipelines.resize_smoothly`."""
    length = frames.shape[axis]
    if length == wanted:
        return frames
    first, weights, bits = weigh_smoothly(length, wanted, kind)
    shape = [1, 1, 1, 1]
    shape[axis] = wanted
    sizes = list(frames.shape)
    sizes[axis] = wanted
    total = torch.full(sizes, 1 << (bits - 1), dtype=torch.int32, device=frames.device)
    for number, of_tap in enumerate(weights.T):
        places = torch.from_numpy((first + number).clip(0, length - 1)).to(frames.device)
        weight = torch.from_numpy(np.ascontiguousarray(of_tap)).to(frames.device)
        total += frames.index_select(axis, places).int() * weight.view(shape)
    return (total >> bits).clamp(0, 255).to(torch.uint8)
