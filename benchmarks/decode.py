"""What exactness costs: `python -m benchmarks.decode`.

16 frames spread over a clip, shorter side 64 px, by each way of decoding, in turn, on files of
several kinds. Compared is decord's own random access, with nothing looked at before or after; where
that hands over other frames than a player shows, its time is of no use and its mistakes count.
"auto, as extraction" knows from the clip index what a file is; "auto" looks at every packet first,
as `predict` does with a video that it has never seen. The figures are medians over rounds, of time
on the processors: decord works in threads of its own, and decode processes share cores.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import decord
import numpy as np
from rich.console import Console
from rich.table import Table

from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.probe import VideoInfo, probe
from dsts_pipeline.clips.sampling import uniform_frames

GOAL = 0.9
_SIZE_PX, _NUM_WANTED = 64, 16
KINDS = {
    "96 px, 16 frames, mp4": (96, 96, 16, "mp4", {}),
    "320 x 240, 150 frames, mp4": (320, 240, 150, "mp4", {}),
    "640 x 360, 830 frames, mp4": (640, 360, 830, "mp4", {}),
    "427 x 240, 48 frames, webm": (428, 240, 48, "webm", {}),
    "320 x 240, open groups": (320, 240, 150, "mp4", {"x264-params": "open-gop=1:keyint=25"}),
    "640 x 360, 830 frames, open groups": (
        640,
        360,
        830,
        "mp4",
        {"x264-params": "open-gop=1:keyint=25"},
    ),
    "320 x 240, MPEG-4 in AVI": (320, 240, 150, "avi", {}),
}
_CODECS = {"mp4": "libx264", "webm": "libvpx-vp9", "avi": "mpeg4"}


def write_clip(
    path: Path, width: int, height: int, num_frames: int, options: dict[str, str]
) -> None:
    """A textured picture that moves, with its grey level rising by frame."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 100, (height // 8 + 1, width // 8 + 40), dtype=np.uint8)
    picture = np.kron(texture, np.ones((8, 8), np.uint8))
    codec = _CODECS[path.suffix[1:]]
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        if codec == "mpeg4":
            stream.max_b_frames = 2
        if codec == "libvpx-vp9":
            options = {"deadline": "realtime", "cpu-used": "8"}
        stream.options = {"preset": "veryfast"} | options if codec == "libx264" else options
        for number in range(num_frames):
            shift = number % 300
            image = picture[:height, shift : shift + width] + np.uint8(number * 150 // num_frames)
            frame = av.VideoFrame.from_ndarray(np.repeat(image[..., None], 3, 2), "rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


def by_decord(path: Path, wanted: np.ndarray, info: VideoInfo) -> np.ndarray:
    """decord's random access, scaled as the pipeline scales."""
    shorter = min(info.width, info.height)
    width, height = (round(side * _SIZE_PX / shorter) for side in (info.width, info.height))
    reader = decord.VideoReader(str(path), width=width, height=height, num_threads=1)
    return reader.get_batch(wanted).asnumpy()


def measure(ways: dict[str, Callable[[], np.ndarray]], num_rounds: int) -> dict[str, list[float]]:
    """Processor seconds by way, the ways taken in turn in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(num_rounds + 1):
        for name, way in ways.items():
            started = time.process_time()
            way()
            if number:  # the first round warms up
                seconds[name].append(time.process_time() - started)
    return seconds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args(arguments)
    decord.logging.set_level(decord.logging.QUIET)
    table = Table(title=f"rate over decord's random access, 16 frames (goal {GOAL:g})")
    for column in ("file", "decord, ms", "wrong", "auto, as extraction", "auto", "pyav"):
        table.add_column(column, justify="left" if column == "file" else "right")
    with tempfile.TemporaryDirectory() as folder:
        for name, (width, height, num_frames, ending, encoding) in KINDS.items():
            path = Path(folder, f"clip.{ending}")
            write_clip(path, width, height, num_frames, encoding)
            info, wanted = probe(path), uniform_frames(num_frames, _NUM_WANTED)

            def ours(decoder, known=None, path=path, wanted=wanted):
                return decode_frames(
                    path, wanted, decoder=decoder, size_px=_SIZE_PX, is_cut=False, info=known
                )

            ways = {
                "decord": lambda path=path, wanted=wanted, info=info: by_decord(path, wanted, info),
                "known": lambda info=info, ours=ours: ours("auto", info),
                "auto": lambda ours=ours: ours("auto"),
                "pyav": lambda ours=ours: ours("pyav"),
            }
            seconds = measure(ways, options.rounds)
            difference = ways["decord"]().astype(int) - ours("pyav")
            num_wrong = int((np.abs(difference).mean(axis=(1, 2, 3)) > 4).sum())
            middle = {way: statistics.median(times) for way, times in seconds.items()}
            ratios = [f"{middle['decord'] / middle[way]:.2f}" for way in ("known", "auto", "pyav")]
            wrong = f"{num_wrong} of {_NUM_WANTED}"
            table.add_row(name, f"{1e3 * middle['decord']:.1f}", wrong, *ratios)
    Console().print(table)


if __name__ == "__main__":
    main()
