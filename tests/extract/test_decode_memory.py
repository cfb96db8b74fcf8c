"""What decoding takes does not grow with the length or the size of a video."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from dsts_pipeline.clips.decode import count_frames
from tests.clips.videos import write_video

pytestmark = pytest.mark.long
HOUR_SECONDS = 3600
RATE = 24

DECODE = """
import sys
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.views import Content, FrameRequest, FrameView
from pathlib import Path
path, decoder, indices = sys.argv[1], sys.argv[2], tuple(map(int, sys.argv[3].split(",")))
content = Content(Path(path).stat().st_size, sha256_file(path))
job = FrameRequest(path, decoder, views=(FrameView(indices),), size_px=64, content=content)
assert decode_clip(job).shape == (1, len(indices), 64, 64, 3)
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""


def _peak_mib(path: Path, decoder: str, indices: list[int], repository: Path) -> float:
    """Peak memory of a process that decodes one clip, imports included."""
    numbers = ",".join(map(str, indices))
    run = subprocess.run(
        [sys.executable, "-c", DECODE, str(path), decoder, numbers],
        cwd=repository,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    return int(run.stdout) / 1024


def write_repeated(path: Path, second: Path, num_seconds: int) -> Path:
    """A video of one second's packets over and over, written without encoding them again."""
    with av.open(str(second)) as source, av.open(str(path), "w") as file:
        stream = source.streams.video[0]
        packets = [(bytes(p), p.is_keyframe, p.pts, p.dts) for p in source.demux(stream) if p.size]
        copy = file.add_stream_from_template(stream)
        length = round(1 / (stream.time_base * RATE)) * len(packets)
        for number in range(num_seconds):
            for content, is_keyframe, pts, dts in packets:
                packet = av.Packet(content)
                packet.stream, packet.time_base = copy, stream.time_base
                packet.pts, packet.dts = pts + number * length, dts + number * length
                packet.is_keyframe = is_keyframe
                file.mux(packet)
    return path


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Ten seconds and an hour of the same noisy second."""
    folder = tmp_path_factory.mktemp("long")
    second = write_video(folder / "second.mp4", num_frames=RATE, size=(96, 96))
    return {
        length: write_repeated(folder / f"{length}.mp4", second, length)
        for length in (10, HOUR_SECONDS)
    }


@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_an_hour_takes_no_more_memory_than_ten_seconds(videos, repository, decoder):
    assert videos[HOUR_SECONDS].stat().st_size > 60 * 2**20
    assert count_frames(videos[HOUR_SECONDS]) == HOUR_SECONDS * RATE
    peaks = {}
    for length, path in videos.items():
        last = length * RATE - 1
        indices = np.linspace(0, last, 16).astype(int).tolist()
        peaks[length] = _peak_mib(path, decoder, indices, repository)
    print(decoder, peaks)
    assert peaks[HOUR_SECONDS] - peaks[10] < 24, peaks


@pytest.mark.parametrize(
    ("decoder", "codec", "limit_mib"), [("decord", "libx264", 200), ("pyav", "mpeg4", 130)]
)
def test_large_frames_are_scaled_one_by_one(tmp_path, repository, decoder, codec, limit_mib):
    """Sixteen frames of 4K are 398 MB as RGB. H.264 itself keeps several pictures of 12 MB."""
    small = write_video(tmp_path / "small.mp4", num_frames=16, codec=codec)
    large = write_video(tmp_path / "large.mp4", num_frames=16, size=(3840, 2160), codec=codec)
    peaks = [_peak_mib(path, decoder, list(range(16)), repository) for path in (small, large)]
    print(decoder, peaks)
    assert peaks[1] - peaks[0] < limit_mib, peaks
