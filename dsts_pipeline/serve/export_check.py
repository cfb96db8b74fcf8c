"""Whether an exported model says what PyTorch says, and how long each takes.

Enters: models as functions and real inputs. Leaves: differences, or an `ExportError` that states
them; milliseconds per clip.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.base.errors import ExportError
from dsts_pipeline.serve.exporting import Run

TOLERANCE = 1e-4
BATCH_SIZES = (1, 8)


@dataclass(frozen=True)
class Comparison:
    """What a comparison with PyTorch found.

    Attributes:
        num_clips: Clips that were compared.
        largest_difference: Of two logits.
        largest_excess: Largest `|a - b| / (1e-4 + 1e-4 |b|)`; up to 1 counts as equal.
        num_routed_differently: Clips for which another neuron was chosen in any layer.
        num_routings: Different routings among the clips; 0 where nothing is routed.
    """

    num_clips: int
    largest_difference: float
    largest_excess: float
    num_routed_differently: int
    num_routings: int

    def describe(self) -> dict[str, Any]:
        """As JSON values, with the tolerance."""
        return asdict(self) | {"tolerance": {"relative": TOLERANCE, "absolute": TOLERANCE}}


@torch.inference_mode()
def compare(exported: Run, reference: Run, inputs: Tensor, *, batch_size: int = 8) -> Comparison:
    """Run both on `inputs` in batches, the last one smaller, and the first clip also alone.

    Args:
        exported: The exported model.
        reference: PyTorch's, the logits first, then the routing where there is one.
        inputs: At least two clips.

    Raises:
        ExportError: A logit differs by more than 1e-4 + 1e-4 |logit|, or one is not finite.
    """
    spans = [slice(0, 1), *(slice(i, i + batch_size) for i in range(0, len(inputs), batch_size))]
    difference = excess = 0.0
    rerouted, routings = 0, set[tuple[int, ...]]()
    for number, span in enumerate(spans):
        found, expected = exported(inputs[span]), reference(inputs[span])
        gap = (found[0].double() - expected[0].double()).abs()
        if not gap.isfinite().all():
            raise ExportError(f"exported logits of clips {span.start} on are not finite")
        difference = max(difference, float(gap.max()))
        allowed = TOLERANCE * (1.0 + expected[0].double().abs())
        excess = max(excess, float((gap / allowed).max()))
        if len(expected) > 1 and number > 0:
            rerouted += int((found[1] != expected[1]).any(dim=1).sum())
            routings |= {tuple(row) for row in expected[1].tolist()}
    result = Comparison(len(inputs), difference, excess, rerouted, len(routings))
    if excess > 1.0 or rerouted:
        raise ExportError(
            f"the exported model differs from PyTorch on {len(inputs)} clips: by up to "
            f"{difference:.2e} in a logit, {excess:.1f} times the tolerance of {TOLERANCE:g}; "
            f"{rerouted} clips are routed differently. Nothing was written; please report it"
        )
    return result


def time_runs(
    runs: Mapping[str, Run],
    inputs: Tensor,
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = 1.0,
) -> dict[str, dict[str, float]]:
    """Milliseconds per clip of each of `runs`, by batch size: the median over many calls.

    The models take turns, so that a slow moment of the machine meets all of them.

    Args:
        seconds: How long each model is called at each batch size, about.
    """
    figures: dict[str, dict[str, float]] = {name: {} for name in runs}
    for size in batch_sizes:
        repeats = -(-size // len(inputs))
        batch = inputs.repeat(repeats, *(1 for _ in inputs.shape[1:]))[:size]
        taken: dict[str, list[float]] = {name: [] for name in runs}
        for run in runs.values():
            _measure(run, batch)  # first calls allocate
        slowest = max(_measure(run, batch) for run in runs.values())
        for _ in range(min(200, max(5, int(seconds / slowest)))):
            for name, run in runs.items():
                taken[name].append(_measure(run, batch))
        for name, times in taken.items():
            figures[name][str(size)] = round(1000 * float(np.median(times)) / size, 4)
    return figures


def _measure(run: Run, batch: Tensor) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        run(batch)
    return time.perf_counter() - started
