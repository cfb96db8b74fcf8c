"""Video files of random encodings whose frames carry their number, for tests of exactness.

The number stands in ten blocks, one bit each, on a background that moves, so that a frame decoded
without its references shows another number or another background.

AV1 is not among them: its encoder here, SVT-AV1, gives the whole process real-time priority where
root runs it, and what the process starts inherits that.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

NUM_BITS, BLOCK_PX = 10, 16
WIDTH, HEIGHT = NUM_BITS * BLOCK_PX, 64
_CONTAINERS = {
    "libx264": ["mp4", "mp4", "mov", "mkv", "ts", "flv", "avi", "fragmented.mp4"],
    "libx265": ["mp4", "mkv", "ts", "fragmented.mp4"],
    "libvpx": ["webm", "mkv"],
    "libvpx-vp9": ["webm", "webm", "mp4", "mkv"],
    "mpeg4": ["avi", "avi", "mp4", "mkv"],
    "mpeg2video": ["mpg", "ts", "mkv", "avi"],
    "mjpeg": ["avi", "mov", "mkv"],
    "prores_ks": ["mov"],
    "ffv1": ["mkv", "avi"],
    "flv": ["flv"],
    "wmv2": ["wmv", "avi"],
    "h263": ["mov"],
}
_PIXEL_FORMATS = {
    "libx264": ["yuv420p", "yuv420p", "yuv422p", "yuv444p", "yuv420p10le"],
    "libx265": ["yuv420p", "yuv420p", "yuv420p10le"],
    "libvpx-vp9": ["yuv420p", "yuv420p", "yuv444p"],
    "mjpeg": ["yuvj420p", "yuvj422p"],
    "prores_ks": ["yuv422p10le"],
    "ffv1": ["yuv420p", "yuv444p"],
}
_HAS_B_FRAMES = ("libx264", "libx265", "mpeg4", "mpeg2video")


@dataclass(frozen=True)
class Encoding:
    """How a file is made.

    Attributes:
        groups: "closed", "open", or "refresh" (x264's intra refresh).
        start_ticks: Time of the first frame, in 25ths of a second.
        cut_at: Packets from the key frame before this frame on are copied to the file, with times
            counted from this frame, as `ffmpeg -ss ... -c copy` does.
        forgets_times: Packets are copied with their times of decoding for those of presentation, as
            `ffmpeg -c copy` does with AVI files and raw streams.
    """

    codec: str
    ending: str
    pixel_format: str = "yuv420p"
    num_frames: int = 60
    gop_size: int = 12
    num_b_frames: int = 0
    groups: str = "closed"
    is_constant_rate: bool = True
    start_ticks: int = 0
    cut_at: int | None = None
    rotation_degrees: int = 0
    is_interlaced: bool = False
    forgets_times: bool = False
    seed: int = 0

    @property
    def is_plain(self) -> bool:
        """Whether all frames that were encoded are shown."""
        return self.cut_at is None


def draw_encoding(rng: np.random.Generator) -> Encoding:
    """Some encoding; half of them of the commonest codec."""
    codecs = list(_CONTAINERS)
    codec = "libx264" if rng.random() < 0.4 else str(rng.choice(codecs))
    ending = str(rng.choice(_CONTAINERS[codec]))
    is_mov = ending.endswith(("mp4", "mov"))
    groups = "closed"
    if codec == "libx264":
        groups = str(rng.choice(["closed", "closed", "open", "refresh"]))
    elif codec == "libx265":
        groups = str(rng.choice(["closed", "open"]))
    num_frames = int(rng.integers(1, 90))
    can_vary = ending not in ("avi", "mpg", "fragmented.mp4") and codec in (
        "libx264",
        "libx265",
        "libvpx-vp9",
        "mjpeg",
    )
    can_copy = codec in ("libx264", "libx265", "libvpx-vp9") and ending in ("mp4", "mov", "mkv")
    forgets_times = can_copy and rng.random() < 0.15
    return Encoding(
        codec=codec,
        ending=ending,
        pixel_format=str(rng.choice(_PIXEL_FORMATS.get(codec, ["yuv420p"]))),
        num_frames=num_frames,
        gop_size=int(rng.choice([1, 3, 8, 12, 25, 250])),
        num_b_frames=int(rng.integers(0, 4)) if codec in _HAS_B_FRAMES else 0,
        groups=groups,
        is_constant_rate=not (can_vary and rng.random() < 0.3),
        start_ticks=int(rng.choice([0, 0, 7, 40])) if not ending.startswith("frag") else 0,
        cut_at=None
        if forgets_times or not can_copy or rng.random() > 0.25
        else int(rng.integers(0, num_frames)),
        rotation_degrees=int(rng.choice([0, 0, 0, 90, 180, 270])) if is_mov else 0,
        is_interlaced=codec == "libx264" and groups == "closed" and rng.random() < 0.1,
        forgets_times=forgets_times,
        seed=int(rng.integers(1 << 30)),
    )


def paint(number: int, seed: int = 0) -> np.ndarray:
    """The picture of frame `number`, uint8 [H, W, 3]."""
    texture = np.random.default_rng(seed).integers(60, 190, (HEIGHT // 8, 40), dtype=np.uint8)
    background = np.kron(np.roll(texture, number, axis=1), np.ones((8, 8), np.uint8))[:, :WIDTH]
    image = background.copy()
    for bit in range(NUM_BITS):
        grey = 235 if number >> bit & 1 else 20
        image[HEIGHT // 2 :, bit * BLOCK_PX : (bit + 1) * BLOCK_PX] = grey
    return np.repeat(image[..., None], 3, axis=2)


def read_number(image: np.ndarray, rotation_degrees: int = 0) -> int:
    """The number that a decoded frame carries."""
    lying = np.rot90(image, -(rotation_degrees // 90))
    band = lying[int(lying.shape[0] * 0.62) : int(lying.shape[0] * 0.9)].mean(axis=(0, 2))
    width = lying.shape[1]
    centres = [int((bit + 0.5) * width / NUM_BITS) for bit in range(NUM_BITS)]
    return sum(1 << bit for bit, x in enumerate(centres) if band[x - 1 : x + 2].mean() > 127)


def write_encoding(path: Path, encoding: Encoding) -> Path:
    """Make the file, and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(encoding.seed)
    whole = path
    if encoding.cut_at is not None or encoding.forgets_times:
        whole = path.with_name(f"whole-{path.name}")
    with av.open(str(whole), "w", options=_muxing(encoding)) as file:
        stream = _add_stream(file, encoding)
        shown_at = encoding.start_ticks
        for number in range(encoding.num_frames):
            frame = av.VideoFrame.from_ndarray(paint(number), format="rgb24")
            frame = frame.reformat(format=encoding.pixel_format)
            frame.pts, frame.time_base = shown_at, Fraction(1, 25)
            shown_at += 1 if encoding.is_constant_rate else int(rng.integers(1, 5))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    if whole != path:
        _copy_from(whole, path, encoding)
        whole.unlink()
    return path


def _muxing(encoding: Encoding) -> dict[str, str]:
    if encoding.ending == "fragmented.mp4":
        return {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
    return {}


def _add_stream(file: Any, encoding: Encoding) -> Any:
    stream = file.add_stream(encoding.codec, rate=25)
    stream.width, stream.height = WIDTH, HEIGHT
    if encoding.codec == "h263":
        stream.width, stream.height = 176, 144
    stream.pix_fmt = encoding.pixel_format
    stream.gop_size = encoding.gop_size
    stream.time_base = stream.codec_context.time_base = Fraction(1, 25)
    options = {}
    if encoding.codec in ("mpeg4", "mpeg2video"):
        stream.max_b_frames = encoding.num_b_frames
        options = {"qscale": "3"}
        stream.codec_context.bit_rate = 2_000_000
    elif encoding.codec == "libx264":
        params = f"bframes={encoding.num_b_frames}:keyint={encoding.gop_size}:scenecut=0"
        if encoding.groups == "open":
            params += ":open-gop=1"
        if encoding.groups == "refresh":
            params += ":intra-refresh=1"
        if encoding.is_interlaced:
            params += ":tff=1"
        options = {"preset": "veryfast", "crf": "20", "x264-params": params}
    elif encoding.codec == "libx265":
        is_open = int(encoding.groups == "open")
        params = f"bframes={encoding.num_b_frames}:keyint={encoding.gop_size}:open-gop={is_open}"
        options = {"preset": "ultrafast", "x265-params": params + ":log-level=none:pools=1"}
    elif encoding.codec in ("libvpx", "libvpx-vp9"):
        options = {"deadline": "good", "cpu-used": "4", "auto-alt-ref": "1", "lag-in-frames": "16"}
        stream.codec_context.bit_rate = 400_000
    else:
        stream.codec_context.bit_rate = 2_000_000
    stream.options = options
    if encoding.rotation_degrees:
        stream.set_display_rotation(encoding.rotation_degrees)
    return stream


def _copy_from(whole: Path, path: Path, encoding: Encoding) -> None:
    """Copy all packets, or those from the key frame before `cut_at` on, which gets time 0."""
    with av.open(str(whole)) as source, av.open(str(path), "w") as file:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.size]
        if encoding.forgets_times:
            zero = first = 0
        else:
            zero = sorted(packet.pts for packet in packets)[encoding.cut_at or 0]
            keys = (n for n, p in enumerate(packets) if p.is_keyframe and p.pts <= zero)
            first = max(keys, default=0)
        copy = file.add_stream_from_template(stream)
        for number, packet in enumerate(packets[first:]):
            if encoding.forgets_times:
                packet.pts = packet.dts = number * round(1 / (25 * packet.time_base))
            else:
                packet.pts -= zero
                if packet.dts is not None:
                    packet.dts -= zero
            packet.stream = copy
            file.mux(packet)
