"""Extraction against the bare forward pass: `python -m benchmarks.extract`.

How many clips a second go from video files to committed shards, over how many the backbone alone
does on frames that lie ready in memory, with 0 (here, without a process) to n decode processes.
Both use one batch size and all threads that torch is given. Weights are random: they change no
time. Videos are written first: H.264, noise on top of grey, `--video-px` wide and 3/4 as high.

A round runs one extraction per number of processes, into a store of its own that is removed, each
between two bare passes whose mean rate it is compared with, so that a machine that grows faster or
slower harms neither; the figures are medians over rounds. The start of the decode processes and of
the store is part of an extraction's time, which a large data set would spread over more clips.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.forward import Computing, ForwardPass
from dsts_pipeline.extract.progress import ExtractionSummary
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StorePlan, StoreWriter

GOAL = 0.95
COLUMNS = (
    "decode processes",
    "clips/s",
    "bare",
    "ratio",
    "range",
    "backbone",
    "waiting",
    "rest",
)


@dataclass(frozen=True)
class Measured:
    """By number of processes: extractions and the bare rates around them, by rounds."""

    bare_rates: dict[int, list[float]]
    summaries: dict[int, list[ExtractionSummary]]


def write_videos(root: Path, num_clips: int, num_frames: int, width_px: int) -> ClipIndex:
    """An index of clips that share a few files."""
    files = [root / f"video{number}.mp4" for number in range(min(4, num_clips))]
    for number, path in enumerate(files):
        _write_video(path, num_frames, (width_px, width_px * 3 // 4), number)
    digests = {path: sha256_file(path) for path in files}
    clips = [
        Clip(
            id=f"clip{number}",
            path=(path := files[number % len(files)]).name,
            label=0,
            split="test",
            num_frames=num_frames,
            start_frame=0,
            end_frame=num_frames,
            size_bytes=path.stat().st_size,
            sha256=digests[path],
        )
        for number in range(num_clips)
    ]
    return ClipIndex("benchmark", str(root), ("a",), (), (), tuple(clips))


def _write_video(path: Path, num_frames: int, size: tuple[int, int], seed: int) -> None:
    generator = np.random.default_rng(seed)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=24)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(num_frames):
            image = np.full((size[1], size[0], 3), 10 + 2 * number % 220, np.uint8)
            image[: size[1] // 4] = generator.integers(0, 256, (size[1] // 4, size[0], 3))
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())


def time_bare_pass(backbone: Backbone, num_clips: int, batch_size: int) -> float:
    """Clips a second of the backbone alone, on frames that lie ready, maps left where they are."""
    size = backbone.size_px
    shape = (batch_size, backbone.num_frames, size, size, 3)
    frames = torch.randint(0, 256, shape, dtype=torch.uint8).to(backbone.device)
    started = time.monotonic()
    with torch.inference_mode():
        for start in range(0, num_clips, batch_size):
            backbone(frames[: num_clips - start])
        if backbone.device.type == "cuda":
            torch.cuda.synchronize()
    return num_clips / (time.monotonic() - started)


def time_extraction(
    index: ClipIndex, backbone: Backbone, *, num_workers: int, batch_size: int
) -> ExtractionSummary:
    """From video files to a finished store, which is removed."""
    rows = ViewPlan(index, backbone)
    plan = StorePlan(
        {"benchmark": backbone.name},
        clips=rows.samples,
        class_names=index.class_names,
        map_shape=backbone.map_shape,
        samples_per_shard=max(batch_size, 16),
    )
    folder = Path(tempfile.mkdtemp())
    try:
        with StoreWriter(folder, plan) as writer:
            settings = BackboneSettings(num_decode_workers=num_workers, batch_size=batch_size)
            summary = extract_features(rows, backbone, writer, settings)
            writer.finish({})
    finally:
        shutil.rmtree(folder)
    return summary


def measure(
    index: ClipIndex,
    backbone: Backbone,
    *,
    workers: Sequence[int],
    batch_size: int,
    num_rounds: int,
) -> Measured:
    """All ways side by side, `num_rounds` times."""
    forward = ForwardPass(backbone, Computing(batch_size))
    size = backbone.size_px
    once = np.zeros((batch_size, backbone.num_frames, size, size, 3), np.uint8)
    with torch.inference_mode():  # the first pass of a shape sets the backbone up
        forward.submit(once, np.empty((batch_size, *backbone.map_shape), np.float32))
        forward.finish()
    bare: dict[int, list[float]] = {number: [] for number in workers}
    summaries: dict[int, list[ExtractionSummary]] = {number: [] for number in workers}
    last = time_bare_pass(backbone, len(index.clips), batch_size)
    for _ in range(num_rounds):
        for number in workers:
            summaries[number].append(
                time_extraction(index, backbone, num_workers=number, batch_size=batch_size)
            )
            before, last = last, time_bare_pass(backbone, len(index.clips), batch_size)
            bare[number].append((before + last) / 2)
    return Measured(bare, summaries)


def print_table(title: str, measured: Measured) -> None:
    """A row per number of decode processes."""
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="right")
    for number, runs in measured.summaries.items():
        bare_rates = measured.bare_rates[number]
        bare = statistics.median(bare_rates)
        ratios = [
            run.num_clips / run.seconds / rate for run, rate in zip(runs, bare_rates, strict=True)
        ]
        ratio = statistics.median(ratios)
        rate = statistics.median(run.num_clips / run.seconds for run in runs)
        forward = statistics.median(run.forward_seconds / run.seconds for run in runs)
        waiting = statistics.median(run.decode_wait_seconds / run.seconds for run in runs)
        mark = "met" if ratio >= GOAL else "missed"
        shares = [f"{share:.0%}" for share in (forward, waiting, 1 - forward - waiting)]
        table.add_row(
            str(number),
            f"{rate:.2f}",
            f"{bare:.2f}",
            f"{ratio:.2f} (>= {GOAL} {mark})",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            *shares,
        )
    Console(width=120).print(table)


def main() -> None:
    """Print one table per backbone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="+", default=["stick_r18", "tpn_slowonly_r50"])
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--video-frames", type=int, default=64)
    parser.add_argument("--video-px", type=int, default=320)
    parser.add_argument("--size-px", type=int, default=None, help="input; the model's own if not")
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        index = write_videos(
            Path(folder), arguments.clips, arguments.video_frames, arguments.video_px
        )
        for name in arguments.backbones:
            backbone = build_backbone(name, weights="random", size_px=arguments.size_px)
            backbone.to(arguments.device)
            measured = measure(
                index,
                backbone,
                workers=arguments.workers,
                batch_size=arguments.batch,
                num_rounds=arguments.rounds,
            )
            shape = "x".join(map(str, backbone.map_shape))
            print_table(
                f"{name}, {arguments.clips} clips, batch {arguments.batch}, maps of {shape}, "
                f"{torch.get_num_threads()} threads, {arguments.device}",
                measured,
            )


if __name__ == "__main__":
    main()
