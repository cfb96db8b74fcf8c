"""How long a training will take, said before it begins: by its first steps and one pass over maps.

Enters: what the training is of. Leaves: seconds, as if it had the machine to itself. The steps are
made on a head of their own, which is thrown away. A GPU's graphs are left out and reading is not
counted: who shows the time left goes by the pace that is seen as soon as there is one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import cycle

import torch
from torch import nn

from dsts_pipeline.feed import FeatureFeed, split_batches
from dsts_pipeline.head.recalibration import num_recalibration_passes
from dsts_pipeline.learn.processes import Processes
from dsts_pipeline.learn.together import OwnRandomness
from dsts_pipeline.learn.training import Recipe, Training

# Steps and passes are repeated for so long, and the fastest counts: another program's are slower.
REPEAT_SECONDS = 0.5


def estimate_seconds(
    build: Callable[[], nn.Module], feed: FeatureFeed, recipe: Recipe, processes: Processes
) -> float:
    """Seconds of the training of `build()`; draws nothing from the generators of others.

    The first step, in which memory is fetched and kernels are chosen, is not counted.

    Raises:
        SettingsError: The training diverges in its first steps.
    """
    train = recipe.train.model_copy(update={"cuda_graph": "off"})
    recipe = Recipe(train, recipe.udl, recipe.reading, recipe.seed)
    with OwnRandomness(processes.device).within():
        training = Training(build(), feed, recipe, processes)
        if not training.how.num_epochs:
            return 0.0
        training.begin_epoch()
        step_seconds = _time_a_step(training, feed)
        map_seconds = _time_a_map(training, feed)
    num_epochs = training.how.num_epochs
    num_steps = num_epochs * training.cursor.num_batches
    num_maps = len(training.heldout) * (num_epochs + 1)
    if training.how.recompute_statistics:
        ends = len(training.draw_rows(train.recompute_clips_at_end))
        of_epoch = len(training.draw_rows(training.how.recompute_clips))
        num_passes: float = num_recalibration_passes(training.head)
        if training.dsts is not None:  # of all layers, half are run through on the average
            num_passes = (num_passes + 2) / 2
        num_maps += round(num_passes * (num_epochs * of_epoch + ends))
    return num_steps * step_seconds + num_maps * map_seconds


def _time_a_step(training: Training, feed: FeatureFeed) -> float:
    device = training.processes.device
    orders = cycle(training.remaining())  # of few clips, an epoch is one step

    def step() -> float:
        rows = next(orders)
        parts = rows if training.udl else (rows,)
        batches = [feed.batch(part).to(device) for part in parts]
        _wait_for(device)
        start = time.perf_counter()
        training.step(batches[0], batches[1] if training.udl else None)
        training.catch_up()
        _wait_for(device)
        return time.perf_counter() - start

    return _fastest(step)


@torch.no_grad()
def _time_a_map(training: Training, feed: FeatureFeed) -> float:
    """Of a pass without gradients, of one map in a batch."""
    device = training.processes.device
    (rows, *_) = split_batches(training.rows, training.pass_size)
    maps = feed.batch(rows).to(device).maps
    training.head.eval()

    def make_pass() -> float:
        start = time.perf_counter()
        training.head(maps)
        _wait_for(device)
        return time.perf_counter() - start

    return _fastest(make_pass) / len(rows)


def _fastest(timed: Callable[[], float]) -> float:
    """Of its calls but the first: at least one, and more for `REPEAT_SECONDS`."""
    timed()
    found = [timed()]
    while sum(found) + min(found) < REPEAT_SECONDS:
        found.append(timed())
    return min(found)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tell_seconds(seconds: float) -> str:
    """Such as "12 min" or "40 s"."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
