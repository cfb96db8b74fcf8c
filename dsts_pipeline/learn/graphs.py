"""Iterations of a training as CUDA graphs: captured once, then replayed as one launch.

Enters: an iteration, a function of batches, noise and rates that launches the same for all of them.
Leaves: what it returns, at the price of copying its inputs into place.

A head's iteration is thousands of small kernels, and a GPU computes each of them faster than a host
can launch it. Nothing of what an iteration decides may lie on the host, then: learning rates,
alpha, the loss scale and running statistics are tensors, noise is drawn outside and copied in.
Batches of another shape (the last one of an epoch) have no graph until they come again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from dsts_pipeline.base.progress import console

# ---- inputs as lists of tensors ------------------------------------------------------------------


def tensors_of(value: Any, device: torch.device) -> list[Tensor]:
    """All tensors on `device` in a tree of dataclasses, named tuples, tuples and lists."""
    if isinstance(value, Tensor):
        return [value] if value.device.type == device.type else []
    return [tensor for part in _parts(value) for tensor in tensors_of(part, device)]


def signature(value: Any) -> Any:
    """What of such a tree is fixed in a graph: types, shapes, and all that is no tensor."""
    if isinstance(value, Tensor):
        return value.dtype, tuple(value.shape), value.stride()
    parts = _parts(value)
    return (type(value), *map(signature, parts)) if _is_tree(value) else value


def with_tensors(value: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    """The same tree with every tensor replaced."""
    if isinstance(value, Tensor):
        return replace(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        changed = {name: with_tensors(getattr(value, name), replace) for name in names}
        return dataclasses.replace(value, **changed)
    if hasattr(value, "_fields"):
        return type(value)(*(with_tensors(part, replace) for part in value))
    if isinstance(value, list | tuple):
        return type(value)(with_tensors(part, replace) for part in value)
    return value


def _is_tree(value: Any) -> bool:
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return is_record or isinstance(value, list | tuple)


def _parts(value: Any) -> list[Any]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [getattr(value, field.name) for field in dataclasses.fields(value)]
    return list(value) if isinstance(value, list | tuple) else []


# ---- graphs --------------------------------------------------------------------------------------


class Recording(Protocol):
    """Something that captures what a function launches, without doing it, and replays it."""

    def warm_up(self, make: Callable[[], Any]) -> Any:
        """Do it, where a capture will find what it needs."""

    def capture(self, make: Callable[[], Any]) -> Any:
        """Capture it; what it returned has its values after a `replay`."""

    def replay(self) -> None:
        """Do what was captured on the tensors that it was captured on."""


class CudaRecording:
    """A CUDA graph; warm-up and capture have a stream of their own, as torch asks for."""

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()
        self._graph = torch.cuda.CUDAGraph()

    def warm_up(self, make: Callable[[], Any]) -> Any:
        """On the side stream, in order with the present one."""
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            found = make()
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def capture(self, make: Callable[[], Any]) -> Any:
        """Into the graph."""
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            return make()

    def replay(self) -> None:
        """One launch."""
        self._graph.replay()


NUM_WARM_UPS = 3  # iterations of a kind, made as ever, before it is captured


@dataclasses.dataclass
class _Captured:
    recording: Recording
    num_made: int = 0
    inputs: Any = None
    outputs: Any = None


class IterationGraphs:
    """The graphs of one training, one per kind of iteration and shape of its inputs.

    Args:
        device: Where the inputs' tensors are.
        new_recording: Makes one; tests have their own.
    """

    def __init__(
        self, device: torch.device, new_recording: Callable[[], Recording] = CudaRecording
    ) -> None:
        self.device = device
        self.new_recording = new_recording
        self.is_abandoned = False
        self._known: dict[Any, _Captured] = {}

    def run(self, make: Callable[..., Any], *inputs: Any) -> Any:
        """`make(*inputs)`; what it returns holds until the next call of the kind."""
        if self.is_abandoned:
            return make(*inputs)
        key = make.__name__, signature(inputs)
        if key not in self._known:
            self._known[key] = _Captured(self.new_recording())
        kind = self._known[key]
        if kind.inputs is None and kind.num_made < NUM_WARM_UPS:
            kind.num_made += 1
            return kind.recording.warm_up(lambda: make(*inputs))
        if kind.inputs is None:
            try:
                kind.inputs = with_tensors(inputs, self._own)
                kind.outputs = kind.recording.capture(lambda: make(*kind.inputs))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                console.print(f"no CUDA graph of the iteration ({reason}); it is made step by step")
                self.is_abandoned = True
                self._known.clear()
                return make(*inputs)
        places = tensors_of(kind.inputs, self.device)
        for place, tensor in zip(places, tensors_of(inputs, self.device), strict=True):
            place.copy_(tensor, non_blocking=True)
        kind.recording.replay()
        return kind.outputs

    def _own(self, tensor: Tensor) -> Tensor:
        return tensor.clone() if tensor.device.type == self.device.type else tensor
