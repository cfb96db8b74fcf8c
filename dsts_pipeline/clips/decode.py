"""Video files -> frames, by decord or PyAV; the one file that knows decoders.

Enters: a path and frame numbers. Leaves: uint8 [T, H, W, 3] RGB of exactly these frames, or a
`VideoError` that says what is wrong with the file. A neighbouring frame never takes the place of
one that cannot be decoded. Frames are turned upright where the file says that they lie.

Memory: the packets of one frame and the frames asked for, however long the file is.

Messages of the decoders carry times, addresses and paths; reasons given here do not, since they
are stored in manifests, which must have the same bytes on every run.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dsts_pipeline.base.errors import DataError

Decoder = Literal["decord", "pyav"]
Scaling = Callable[[np.ndarray], np.ndarray]
_FRAMES_AT_ONCE = 4  # of full size, where they are scaled afterwards
_PACKAGE = {"decord": "decord", "pyav": "av"}
# decord 0.6 finds frames by number in these alone: in MPEG transport and program streams it hands
# over others, some of them repeated, and says nothing (seen with H.264 and MPEG-2).
_DECORD_CONTAINERS = {"mov", "matroska", "avi", "flv"}
# decord raises DECORDLimitReachedError as soon as one frame was made up from a neighbour.
_NO_RECOVERED_FRAME = "0.0000001"


class VideoError(DataError):
    """A video file that cannot be used; `reason` says why without naming the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace the file by a sound copy")
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. `fps` is 0 where the file does not say."""

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str


def name_decoder(decoder: Decoder) -> str:
    """Decoder and version, such as "decord 0.6.0": frames may differ between versions."""
    return f"{decoder} {importlib.metadata.version(_PACKAGE[decoder])}"


def probe(path: str | Path, decoder: Decoder = "decord") -> VideoInfo:
    """Look at a video file: header, and the number of its frames by counting them to the end.

    Raises:
        VideoError: The file is missing, empty, not a video, cut off, or without a frame.
    """
    info = _read_info(path)
    if decoder == "decord":
        _open_decord(path, info)
    return info


def count_frames(path: str | Path, decoder: Decoder = "decord") -> int:
    """Number of frames in a video file; see `probe`."""
    return probe(path, decoder).num_frames


def decode_frames(
    path: str | Path,
    indices: Sequence[int] | np.ndarray,
    *,
    decoder: Decoder = "decord",
    size_px: int | None = None,
    is_cut: bool = True,
    scale: Scaling | None = None,
) -> np.ndarray:
    """The frames numbered `indices`, in that order; repeats are allowed.

    Args:
        indices: Frame numbers in order of presentation, from 0.
        decoder: "decord" or "pyav".
        size_px: Scale the shorter side to this; None: as stored.
        is_cut: Cut the square in the middle out of scaled frames.
        scale: Makes frames [n, h, w, 3] of frames [n, H, W, 3]; it is given a few at a time, so
            that only scaled ones are held. Excludes `size_px`.

    Returns:
        uint8 [T, H, W, 3], RGB.

    Raises:
        VideoError: A frame cannot be had exactly as the file's maker meant it.
        ValueError: The decoder is unknown or no index is given.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0:
        raise ValueError(f"indices are {wanted!r}, expected at least one, none negative")
    if decoder not in _PACKAGE:
        raise ValueError(f"decoder is {decoder!r}, expected one of {sorted(_PACKAGE)}")
    decode = _decode_decord if decoder == "decord" else _decode_pyav
    frames = decode(path, wanted, size_px, scale)
    return frames if size_px is None or not is_cut else _cut_square(frames, size_px)


def iterate_frames(path: str | Path) -> Iterator[np.ndarray]:
    """All frames uint8 [H, W, 3] in order, upright, one at a time; may raise VideoError."""
    with _open_av(path) as container:
        for number, frame in enumerate(container.decode(video=0)):
            if frame.is_corrupt:
                raise VideoError(path, f"frame {number} is damaged")
            yield _to_rgb(frame, None)


def _read_info(path: str | Path) -> VideoInfo:
    """Header and number of frames, every packet looked at but none decoded."""
    with _open_av(path) as container:
        stream = container.streams.video[0]
        num_frames = sum(_is_whole(path, packet) for packet in container.demux(stream))
        _check_count(path, num_frames, stream.frames)
        context = stream.codec_context
        return VideoInfo(
            num_frames=num_frames,
            fps=float(stream.average_rate or 0),
            width=context.width,
            height=context.height,
            codec=context.name,
        )


def _decode_decord(
    path: str | Path, wanted: np.ndarray, size_px: int | None, scale: Scaling | None
) -> np.ndarray:
    info = _read_info(path)
    _check_reach(path, wanted, info.num_frames)
    _check_decord_can(path)
    width, height = info.width, info.height
    if size_px is not None:
        width, height = _scaled_size(width, height, size_px)
    reader = _open_decord(path, info, width, height)
    try:
        if scale is None:
            return reader.get_batch(wanted).asnumpy()
        parts = np.split(wanted, range(_FRAMES_AT_ONCE, len(wanted), _FRAMES_AT_ONCE))
        return np.concatenate([scale(reader.get_batch(part).asnumpy()) for part in parts])
    except Exception as error:
        if "DECORDArrayCopyFromTo" in str(error):  # seen at widths 16, 24, 48 and 72 px
            reason = f"decord 0.6 cannot hand over frames {width} px wide: use the decoder pyav"
            raise VideoError(path, reason) from None
        raise VideoError(path, _decord_reason(error)) from None


def _check_decord_can(path: str | Path) -> None:
    """Refuse what decord 0.6 would hand over wrongly, without an error of its own."""
    with _open_av(path) as container:
        if not _DECORD_CONTAINERS & set(container.format.name.split(",")):
            found = container.format.name.split(",")[0]
            raise VideoError(path, f"decord finds no exact frames in {found}: use the decoder pyav")
        frame = next(container.decode(container.streams.video[0]), None)
        if frame is not None and frame.rotation:  # 180 is right, 90 and 270 come out squeezed
            raise VideoError(path, "decord squeezes rotated frames: use the decoder pyav")


def _open_decord(path: str | Path, info: VideoInfo, width: int = -1, height: int = -1) -> Any:
    import decord

    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(
            str(path), width=width, height=height, num_threads=1, fault_tol=_NO_RECOVERED_FRAME
        )
    except Exception as error:
        raise VideoError(path, _decord_reason(error)) from None
    if len(reader) != info.num_frames:
        raise VideoError(
            path, f"decord counts {len(reader)} frames, the file holds {info.num_frames}"
        )
    return reader


def _decord_reason(error: Exception) -> str:
    """decord's exceptions in fixed words: their own text differs from run to run."""
    if isinstance(error, RuntimeError):
        return "decord cannot open it: not a video, or cut off"
    if type(error).__name__ == "DECORDLimitReachedError":
        return "decord had to make up frames from their neighbours: damaged"
    if type(error).__name__ == "DECORDError":
        return "decord cannot read it to its end: damaged or cut off"
    return f"decord fails with {type(error).__name__}"


def _decode_pyav(
    path: str | Path, wanted: np.ndarray, size_px: int | None, scale: Scaling | None
) -> np.ndarray:
    """Decode from the start, since seeking is inexact in many files; then count to the end."""
    frames: dict[int, np.ndarray] = {}
    needed, last = set(wanted.tolist()), int(wanted.max())
    num_packets = num_frames = 0
    with _open_av(path) as container:
        stream = container.streams.video[0]
        for packet in container.demux(stream):
            num_packets += _is_whole(path, packet)
            for frame in packet.decode() if num_frames <= last else ():
                if frame.is_corrupt:
                    raise VideoError(path, f"frame {num_frames} is damaged")
                if num_frames in needed:
                    image = _to_rgb(frame, size_px)
                    frames[num_frames] = image if scale is None else scale(image[None])[0]
                num_frames += 1
        _check_count(path, num_packets, stream.frames)
    _check_reach(path, wanted, num_frames)
    return np.stack([frames[i] for i in wanted.tolist()])


def _to_rgb(frame: Any, size_px: int | None) -> np.ndarray:
    width, height = frame.width, frame.height
    if size_px is not None:
        width, height = _scaled_size(width, height, size_px)
    image = frame.reformat(width=width, height=height, format="rgb24", interpolation="BICUBIC")
    return _turn_upright(image.to_ndarray(), frame.rotation)


def _turn_upright(image: np.ndarray, rotation_degrees: int) -> np.ndarray:
    """Apply the rotation (counterclockwise) of a file's display matrix, as players do.

    Choice: angles between the quarter turns, which cameras don't write, go to the nearest one.
    """
    quarters = round(rotation_degrees / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


@contextmanager
def _open_av(path: str | Path) -> Iterator[Any]:
    """An open PyAV container with a video stream that treats damage as an error."""
    import av

    _check_file(path)
    try:
        with av.open(str(path), options={"err_detect": "explode"}) as container:
            if not container.streams.video:
                raise VideoError(path, "it holds no video stream")
            context = container.streams.video[0].codec_context
            context.thread_count = 1
            context.options = {"err_detect": "explode"}
            if min(context.width, context.height) < 1:
                raise VideoError(path, "its header gives no frame size")
            yield container
    except av.FFmpegError as error:
        raise VideoError(path, f"FFmpeg: {error.strerror}") from None


def _check_file(path: str | Path) -> None:
    path = Path(path)
    if not path.is_file():
        raise VideoError(path, "there is no such file")
    if path.stat().st_size == 0:
        raise VideoError(path, "it is empty")


def _is_whole(path: str | Path, packet: Any) -> bool:
    """Whether `packet` holds data, all of it; the one that ends a stream is empty."""
    if packet.is_corrupt:
        raise VideoError(path, "cut off, or damaged between two frames")
    return packet.size > 0


def _check_count(path: str | Path, found: int, promised: int) -> None:
    """`promised` is 0 where the header does not say."""
    if found < 1:
        raise VideoError(path, "it holds no frame")
    if found < promised:
        raise VideoError(path, f"cut off: {found} of {promised} frames are there")


def _check_reach(path: str | Path, wanted: np.ndarray, num_frames: int) -> None:
    if wanted.max() >= num_frames:
        raise VideoError(path, f"frame {wanted.max()} was asked for, it holds {num_frames}")


def _scaled_size(width: int, height: int, size_px: int) -> tuple[int, int]:
    """Width and height after scaling the shorter side to `size_px`."""
    shorter = min(width, height)
    return round(width * size_px / shorter), round(height * size_px / shorter)


def _cut_square(frames: np.ndarray, size_px: int) -> np.ndarray:
    top, left = (frames.shape[1] - size_px) // 2, (frames.shape[2] - size_px) // 2
    return np.ascontiguousarray(frames[:, top : top + size_px, left : left + size_px])
