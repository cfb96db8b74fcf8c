"""Training on cached maps: `python -m benchmarks.train`.

For each backbone's maps, three things side by side in each round: the loop of training (read, move,
UDL's step, head of the default settings), the step alone on a pair of batches that lies on the
device, and reading alone. Once with the maps preloaded, as small stores are, once from the shards.

Then a cached epoch against an end-to-end one with the backbone frozen: per training clip, what the
loop takes against decoding the clip, the backbone's forward pass and the same step of the head. UDL
needs a second batch of clips in each iteration; its decoding and forward pass are left out, so the
end-to-end epoch is shown faster than it is. It is extrapolated from `--clips` clips. Weights are
random and videos synthetic (96 px and 16 frames for stick_r18, else 320 px and 64 frames, H.264).

Both clocks are shown: the wall's, and the process's, which other work on the machine hardly
lengthens. Figures are medians over rounds, ratios medians of the ratios within a round. Peak memory
is that of the resident set beyond what was held before.

At last an ablation: `--variants` heads trained in one pass over the maps against one after the
other, each once: evaluations and statistics of norms are part of it.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.extract import write_videos
from benchmarks.launches import count_launches, describe
from benchmarks.measure import peak_mib, wait
from benchmarks.train_stages import PROCESS, WALL, Clock, Iterations, Rounds, write_random_store
from benchmarks.train_together import COLUMNS, add_comparison
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head.neurons import force_form

DATA_GOAL, EPOCH_GOAL = 0.02, 20.0
VIDEOS = {"stick_r18": (16, 96)}  # frames, width in pixels
OTHER_VIDEOS = (64, 320)


def measure_stages(
    arguments: argparse.Namespace, store: FeatureStore, title: str, table: Table
) -> dict[str, Rounds]:
    """Rows of the preloaded and the streamed feed."""
    found = {}
    for name, preload_bytes in (("memory", 2**40), ("shards", 0)):
        feed = FeatureFeed(
            store,
            device=arguments.device,
            preload_bytes=preload_bytes,
            device_preload_bytes=preload_bytes,
        )
        steps = Iterations(feed, arguments.batch, arguments.steps, torch.device(arguments.device))
        rounds = found[name] = steps.measure(arguments.rounds)
        for clock, label in ((WALL, "wall"), (PROCESS, "process")):
            table.add_row(f"{title}, from {name}", label, *_stage_cells(rounds, clock))
    return found


def _stage_cells(rounds: Rounds, clock: int) -> list[str]:
    """One clock's figures of `rounds`."""
    loops = [loop[clock] for loop in rounds.loop]
    per_clip = 1e3 / rounds.num_clips
    cells = [
        f"{statistics.median(getattr(loop, stage) for loop in loops) * per_clip:.3f}"
        for stage in ("read", "transfer", "step")
    ]
    share = rounds.median(lambda k: loops[k].data_share)
    mark = "met" if share <= DATA_GOAL else "missed"
    rate = rounds.median(lambda k: rounds.num_clips / loops[k].total)
    of_step = rounds.median(lambda k: rounds.pure_step[k][clock] / loops[k].total)
    of_read = rounds.median(lambda k: rounds.num_clips / rounds.pure_read[k][clock])
    return [
        f"{rate:.1f}",
        *cells,
        f"{share:.1%} (<= {DATA_GOAL:.0%} {mark})",
        f"{of_step:.2f}",
        f"{of_read:.0f}",
        f"{rounds.peak:.0f}",
    ]


def measure_end_to_end(
    arguments: argparse.Namespace, backbone: Backbone, name: str
) -> tuple[list[Any], float]:
    """Seconds `[decode, forward]` on both clocks for `--clips` clips; peak MiB."""
    num_frames, width_px = VIDEOS.get(name, OTHER_VIDEOS)
    found: list[Any] = []
    with tempfile.TemporaryDirectory() as folder:
        index = write_videos(Path(folder), arguments.clips, num_frames, width_px)
        jobs = list(ViewPlan(index, backbone).jobs(range(arguments.clips)))
        size = arguments.forward_batch

        def run() -> None:
            clock, decode, forward = Clock(), 0.0, 0.0
            for start in range(0, len(jobs), size):
                frames = [torch.from_numpy(decode_clip(job)) for job in jobs[start : start + size]]
                decode = decode + clock.lap()
                batch = torch.cat([clip if clip.dim() == 5 else clip[None] for clip in frames])
                with torch.inference_mode():
                    backbone(batch.to(arguments.device))
                wait(torch.device(arguments.device))
                forward = forward + clock.lap()
            found.append((decode, forward))

        with torch.inference_mode():  # the first pass of a shape sets the backbone up
            pixels = backbone.size_px, backbone.size_px, 3
            frames = torch.zeros(1, backbone.num_frames, *pixels, dtype=torch.uint8)
            backbone(frames.to(arguments.device))
        return found, peak_mib(run, torch.device(arguments.device), warm_up=False)


def add_epochs(
    arguments: argparse.Namespace, table: Table, name: str, ends: list[Any], peak: float, of: Rounds
) -> None:
    """Rows of both clocks: milliseconds per training clip."""
    decode, forward = ends[0]
    for clock, label in ((WALL, "wall"), (PROCESS, "process")):
        loops = [loop[clock] for loop in of.loop]
        parts = [1e3 * part[clock] / arguments.clips for part in (decode, forward)]
        step = statistics.median(loop.step for loop in loops) * 1e3 / of.num_clips
        cached = statistics.median(loop.total for loop in loops) * 1e3 / of.num_clips
        whole = sum(parts) + step
        ratio = whole / cached
        mark = "met" if ratio >= EPOCH_GOAL else "missed"
        table.add_row(
            name,
            label,
            *(f"{part:.1f}" for part in (*parts, step, whole)),
            f"{cached:.2f}",
            f"{ratio:.1f} (>= {EPOCH_GOAL:g} {mark})",
            f"{peak:.0f} / {of.peak:.0f}",
        )


def print_launches(arguments: argparse.Namespace, store: FeatureStore, title: str) -> None:
    """What an iteration launches in the form that a GPU runs."""
    feed = FeatureFeed(store, preload_bytes=2**40)
    steps = Iterations(feed, arguments.batch, 1, torch.device(arguments.device))
    with force_form("columns"):
        steps.step(steps.resident)  # makes the optimisers' state
        counts = describe(count_launches(lambda: steps.step(steps.resident)))
    print(f"UDL iteration on maps of {title}: {counts}")


def new_table(title: str, columns: str) -> Table:
    """A table whose first two columns are text."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns.split("|")):
        table.add_column(column, justify="left" if number < 2 else "right")
    return table


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbones", nargs="*", default=["stick_r18", "tpn_slowonly_r50"])
    parser.add_argument("--maps", type=int, default=192, help="of the store")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=6, help="iterations a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--clips", type=int, default=8, help="decoded and passed end to end")
    parser.add_argument("--forward-batch", type=int, default=8, help="clips a forward pass")
    parser.add_argument("--variants", type=int, default=4, help="heads of the ablation; 0: none")
    parser.add_argument("--size-px", type=int, default=None, help="input; the model's own if not")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    about = f"batch {arguments.batch}, {torch.get_num_threads()} threads, {arguments.device}"
    stages = new_table(
        f"A training's iteration, ms per training clip, {about}",
        "maps|clock|clips/s|read|transfer|step|data / step|of pure step|pure reading/s|peak MiB",
    )
    epochs = new_table(
        f"Epoch end to end (from {arguments.clips} clips) against cached, ms per clip, {about}",
        "backbone|clock|decode|forward|step|end to end|cached|ratio|peak MiB, both",
    )
    together = new_table(f"{arguments.variants} heads, one epoch, {about}", COLUMNS)
    for name in arguments.backbones:
        backbone = build_backbone(name, weights="random", size_px=arguments.size_px)
        backbone.to(arguments.device)
        shape = "x".join(map(str, backbone.map_shape))
        with tempfile.TemporaryDirectory() as folder:
            store = write_random_store(Path(folder), backbone.map_shape, arguments.maps)
            found = measure_stages(arguments, store, shape, stages)
            if arguments.variants:
                how = {"num_variants": arguments.variants, "batch": arguments.batch}
                add_comparison(together, store, device=arguments.device, **how)
            print_launches(arguments, store, shape)
        ends, peak = measure_end_to_end(arguments, backbone, name)
        add_epochs(arguments, epochs, name, ends, peak, found["memory"])
    Console(width=150).print(stages, epochs, together)


if __name__ == "__main__":
    main()
