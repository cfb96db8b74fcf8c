"""A folder of 200 clips: sound ones of every odd kind, and every kind of broken one.

Most are copies of a few files, so that the folder is there within seconds.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import replace
from pathlib import Path

import av
import numpy as np

from dsts_pipeline.clips.index import Clip, ClipIndex
from tests.clips.videos import write_audio, write_video

NUM_FRAMES = 12
# How many copies of each sound kind, and of each broken one with what is told about it.
GOOD = {
    **{f"plain{number}": 15 for number in range(8)},
    "one_frame": 5,
    "huge": 2,
    "tiny": 6,
    "variable_rate": 6,
    "rotated": 6,
    "odd_size": 6,
    "no_duration": 6,
    "transport_stream": 5,
}
REASONS = {
    "empty": (6, "it is empty"),
    **{f"cut{percent}": (3, "cut off|FFmpeg|decord cannot") for percent in (5, 20, 50, 80, 97)},
    "text": (4, "FFmpeg: Invalid data found"),
    "noise": (4, "FFmpeg: |it holds no"),
    "sound_only": (5, "it holds no video stream"),
    "missing": (2, "it cannot be read .No such file"),
    "changed": (1, "its content changed since it was indexed"),
    "hanging": (1, "decoding took longer than 5 s, 2 times; pyav: decoding took longer"),
}


def write_kinds(folder: Path) -> None:
    """One file of each kind."""
    folder.mkdir(parents=True)
    for number in range(8):
        write_video(folder / f"plain{number}.mp4", num_frames=NUM_FRAMES, seed=number)
    write_video(folder / "one_frame.mp4", num_frames=1)
    write_video(folder / "huge.mp4", num_frames=3, size=(3840, 2160), codec="mpeg4")
    write_video(folder / "tiny.mp4", num_frames=NUM_FRAMES, size=(16, 16))
    write_video(
        folder / "variable_rate.mp4",
        num_frames=NUM_FRAMES,
        seed=20,
        duration_ticks=lambda number: 1 + 5 * (number % 3 == 0),
    )
    write_video(folder / "rotated.mp4", num_frames=NUM_FRAMES, size=(96, 64), rotation_degrees=-90)
    write_video(
        folder / "odd_size.mp4", num_frames=NUM_FRAMES, size=(81, 67), pixel_format="yuv444p"
    )
    write_video(
        folder / "no_duration.mkv", num_frames=NUM_FRAMES, seed=21, muxer_options={"live": "1"}
    )
    write_video(folder / "transport_stream.ts", num_frames=NUM_FRAMES, seed=22)
    _write_broken(folder)


def _write_broken(folder: Path) -> None:
    (folder / "empty.mp4").write_bytes(b"")
    for percent in (5, 20, 50, 80, 97):
        sound = write_video(
            folder / "sound.mp4", num_frames=NUM_FRAMES, faststart=percent in (50, 97)
        ).read_bytes()
        (folder / f"cut{percent}.mp4").write_bytes(sound[: len(sound) * percent // 100])
    (folder / "sound.mp4").unlink()
    (folder / "text.mp4").write_text("not a video\n" * 500)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_audio(folder / "sound_only.mp4")
    shutil.copy(folder / "plain0.mp4", folder / "missing.mp4")
    shutil.copy(folder / "plain0.mp4", folder / "changed.mp4")
    (folder / "hanging.mp4").write_bytes(b"")


def write_folder(kinds: Path, root: Path) -> ClipIndex:
    """The 200 clips in `root`, shuffled, and their index as if all had been fit for use."""
    root.mkdir(parents=True)
    copies = GOOD | {kind: count for kind, (count, _) in REASONS.items()}
    names = [f"{kind}-{copy}" for kind, count in copies.items() for copy in range(count)]
    files = {path.stem: path for path in kinds.iterdir()}
    clips = []
    for number in np.random.default_rng(0).permutation(len(names)):
        source = files[names[number].partition("-")[0]]
        path = shutil.copy(source, root / f"{names[number]}{source.suffix}")
        clips.append(_describe(Path(path), len(clips)))
    index = ClipIndex("odd", str(root), ("a", "b"), (), (), tuple(clips))
    _break_after_indexing(root)
    return index


def _describe(path: Path, number: int) -> Clip:
    content = path.read_bytes()
    num_frames = {"one_frame": 1, "huge": 3}.get(kind_of(path.stem), NUM_FRAMES)
    clip = Clip(
        id=path.stem,
        path=path.name,
        label=number % 2,
        split="train",
        num_frames=num_frames,
        start_frame=0,
        end_frame=num_frames,
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )
    return replace(clip, split="test") if number % 4 == 0 else clip


def _break_after_indexing(root: Path) -> None:
    for path in root.glob("missing-*"):
        path.unlink()
    for path in root.glob("changed-*"):
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for path in root.glob("hanging-*"):  # reading a pipe that nobody writes to never returns
        path.unlink()
        os.mkfifo(path)


def kind_of(clip_id: str) -> str:
    """What kind of clip bears this id."""
    return clip_id.partition("-")[0]


def has_duration(path: Path) -> bool:
    """Whether the header says how long the video is."""
    with av.open(str(path)) as file:
        return file.duration is not None or file.streams.video[0].duration is not None
