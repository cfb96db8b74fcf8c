"""Video files -> frames, by decord, PyAV or torchcodec; the one file that knows decoders.

Enters: a path and frame numbers, as `clips/probe.py` defines them. Leaves: uint8 [T, H, W, 3] RGB
of exactly these frames, or a `VideoError` that says what is wrong with the file. A neighbouring
frame never takes the place of one that can't be decoded. Frames are turned upright where the file
says that they lie.

| decoder | reads | how |
|---|---|---|
| auto | all that FFmpeg reads | by decord what decord reads exactly, all else by PyAV |
| decord | what `find_refusal` lets through | random access by decord 0.6 |
| pyav | all that FFmpeg reads | from the entry before each frame, or from the start |
| torchcodec, torchcodec_cuda | what `find_refusal` lets through | its exact seek mode |

decord 0.6 hands over other frames than were asked for, without an error, wherever a group of
pictures is open, frames are hidden, times are negative, or the container has no index of frames; so
it is given only files of which tests/clips/test_exact_frames.py shows that its answer is right.

Memory: the packets of one group of pictures and the frames asked for, however long the file is.

Messages of the decoders carry times, addresses and paths; reasons given here do not, since they are
stored in manifests, which must have the same bytes on every run.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, groupby
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from dsts_pipeline.base.errors import UserError, explain_missing, import_extra, missing_extra
from dsts_pipeline.clips.probe import (
    OpenVideo,
    Packets,
    VideoError,
    VideoInfo,
    describe,
    name_for_ffmpeg,
    open_video,
    probe,
    read_packets,
)

Decoder = Literal["auto", "decord", "pyav", "torchcodec", "torchcodec_cuda"]
Scaling = Callable[[np.ndarray], np.ndarray]
_FRAMES_AT_ONCE = 4
_PACKAGES = {
    "auto": ("decord", "av"),
    "decord": ("decord",),
    "pyav": ("av",),
    "torchcodec": ("torchcodec",),
    "torchcodec_cuda": ("torchcodec",),
}
# What decord 0.6 and torchcodec 0.13 read exactly, see test_exact_frames.py.
_INDEXED_CONTAINERS = ("mov", "matroska")
_DECORD_CODECS = ("h264", "hevc", "vp9")
# decord raises DECORDLimitReachedError as soon as one frame was made up from a neighbour.
_NO_RECOVERED_FRAME = "0.0000001"
_SAME_TIME_SECONDS = 1e-4


class Tally:
    """How many frames a decoder made, those that nobody asked for on the way to others included.

    PyAV's are counted as they come. decord and torchcodec don't tell theirs: they are taken to read
    from the key frame before each group's first wanted frame to its last one, as their sources do.

    Attributes:
        num_frames: So far.
    """

    num_frames = 0

    def note_reads(self, wanted: np.ndarray, keys: np.ndarray) -> None:
        """Add what reading `wanted` in rising order takes, where decoding may begin at `keys`."""
        group_of = np.searchsorted(keys, wanted, side="right") - 1
        for group in np.unique(group_of):
            first = keys[group] if group >= 0 else 0
            self.num_frames += int(wanted[group_of == group].max() - first) + 1


def find_refusal(info: VideoInfo, decoder: Decoder) -> str | None:
    """Why `decoder` is not trusted to hand over exactly the frames of such a file; None: it is."""
    if decoder in ("auto", "pyav"):
        return None
    doubt = _doubt_torchcodec(info) if decoder.startswith("torchcodec") else _doubt_decord(info)
    return doubt and f"{doubt}: use the decoder auto or pyav"


def has_decord() -> bool:
    """Whether decord is installed; it has no wheel for some machines, where "auto" is PyAV."""
    return importlib.util.find_spec("decord") is not None


def name_decoder(decoder: Decoder) -> str:
    """Decoder and version, such as "decord 0.6.0": frames may differ between versions.

    Raises:
        UserError: It is not installed.
    """
    try:
        names = ("av",) if decoder == "auto" and not has_decord() else _PACKAGES[decoder]
        versions = {name: importlib.metadata.version(name) for name in names}
    except importlib.metadata.PackageNotFoundError as error:
        raise missing_extra(error.name, f"backbone.decoder={decoder}") from None
    if len(versions) == 1:
        return f"{decoder} {next(iter(versions.values()))}"
    return f"{decoder} ({', '.join(f'{name} {number}' for name, number in versions.items())})"


def count_frames(path: str | Path) -> int:
    """Number of frames in a video file; see `probe`."""
    return probe(path).num_frames


def decode_frames(
    path: str | Path,
    indices: Sequence[int] | np.ndarray,
    *,
    decoder: Decoder = "auto",
    size_px: int | None = None,
    is_cut: bool = True,
    scale: Scaling | None = None,
    info: VideoInfo | None = None,
    may_switch: bool = True,
    tally: Tally | None = None,
) -> np.ndarray:
    """The frames numbered `indices`, in that order; repeats are allowed.

    Args:
        indices: Frame numbers in order of presentation, from 0.
        decoder: See the module's table.
        size_px: Scale the shorter side to this; None: as stored.
        is_cut: Cut the square in the middle out of scaled frames.
        scale: Makes frames [n, h, w, 3] of frames [n, H, W, 3]; it is given a few at a time, so
            that only scaled ones are held. Excludes `size_px`.
        info: What the file is, where that is known for certain; None: it is looked at first.
        may_switch: Whether "auto" lets PyAV read what decord fails to.
        tally: Is told how many frames were decoded.

    Returns:
        uint8 [T, H, W, 3], RGB.

    Raises:
        VideoError: A frame cannot be had exactly as a player shows it.
        ValueError: The decoder is unknown or no index is given.
    """
    wanted = np.asarray(indices, dtype=np.int64)
    if wanted.ndim != 1 or not len(wanted) or wanted.min() < 0:
        raise ValueError(f"indices are {wanted!r}, expected at least one, none negative")
    if decoder not in get_args(Decoder):
        raise ValueError(f"decoder is {decoder!r}, expected one of {get_args(Decoder)}")
    frames = _decode(path, wanted, decoder, size_px, scale, info, may_switch, tally or Tally())
    if size_px is None or not is_cut:
        return frames
    top, left = (frames.shape[1] - size_px) // 2, (frames.shape[2] - size_px) // 2
    return np.ascontiguousarray(frames[:, top : top + size_px, left : left + size_px])


def _decode(
    path: str | Path,
    wanted: np.ndarray,
    decoder: Decoder,
    size_px: int | None,
    scale: Scaling | None,
    info: VideoInfo | None,
    may_switch: bool,
    tally: Tally,
) -> np.ndarray:
    """Let the quickest decoder read that is exact for this file."""
    wants_decord = decoder == "decord" or (decoder == "auto" and has_decord())
    if info is not None and wants_decord and find_refusal(info, "decord") is None:
        try:
            return _decode_decord(path, info, wanted, size_px, scale, tally)
        except VideoError:
            if decoder == "decord" or not may_switch:
                raise
            wants_decord = False  # its own limits, or damage: PyAV knows how to tell them apart
    with open_video(path) as video:
        packets = read_packets(video)
        info = describe(video, packets)
        if packets.gop != "unknown":
            _check_reach(path, wanted, info.num_frames)
        refusal = find_refusal(info, decoder)
        if refusal is not None:
            raise VideoError(path, refusal)
        if decoder.startswith("torchcodec"):
            return _decode_torchcodec(video, packets, wanted, size_px, scale, decoder, tally)
        if wants_decord and find_refusal(info, "decord") is None:
            try:
                return _decode_decord(path, info, wanted, size_px, scale, tally)
            except VideoError:
                if decoder == "decord" or not may_switch:
                    raise
        return _decode_pyav(video, packets, wanted, size_px, scale, tally)


def iterate_frames(path: str | Path) -> Iterator[np.ndarray]:
    """All frames uint8 [H, W, 3] in order, upright, one at a time; may raise VideoError."""
    scaler = _Scaler(None)
    with open_video(path) as video:
        for frame in _decode_packets(video, video.container.demux(video.stream), Tally()):
            yield scaler.to_rgb(frame)


# ---- decord --------------------------------------------------------------------------------------


def _doubt_decord(info: VideoInfo) -> str | None:
    if info.container not in _INDEXED_CONTAINERS:
        return f"decord finds no exact frames in {info.container}"
    if info.codec not in _DECORD_CODECS:
        return f"decord finds no exact frames of {info.codec}"
    if info.pixel_format[-2:] in ("le", "be"):  # such as yuv420p10le
        return f"decord gives other colours of {info.pixel_format}"
    if info.rotation_degrees:  # 180 is right, 90 and 270 come out squeezed
        return "decord squeezes rotated frames"
    if info.gop == "unknown":
        return "decord finds no exact frames where the packets don't tell how many there are"
    if info.gop not in ("closed", "intra"):
        return "decord hands over other frames where groups of pictures are open"
    if info.num_hidden:
        return "decord counts frames that no player shows"
    if not info.starts_at_zero:
        return "decord loses frames at negative times"
    if info.num_video_streams > 1:
        return "decord may read another of its video streams"
    return None


def _decode_decord(
    path: str | Path,
    info: VideoInfo,
    wanted: np.ndarray,
    size_px: int | None,
    scale: Scaling | None,
    tally: Tally,
) -> np.ndarray:
    decord = import_extra("decord", "decoding by decord")
    _check_reach(path, wanted, info.num_frames)
    width, height = info.width, info.height
    if size_px is not None:
        width, height = _scaled_size(width, height, size_px)
    decord.logging.set_level(decord.logging.QUIET)
    try:
        reader = decord.VideoReader(
            name_for_ffmpeg(path),
            width=width,
            height=height,
            num_threads=1,
            fault_tol=_NO_RECOVERED_FRAME,
        )
        if len(reader) != info.num_frames:
            reason = f"decord counts {len(reader)} frames, the file holds {info.num_frames}"
            raise VideoError(path, reason)
        tally.note_reads(wanted, np.array(reader.get_key_indices()))
        if scale is None:
            return reader.get_batch(wanted).asnumpy()
        return np.concatenate([scale(reader.get_batch(part).asnumpy()) for part in _few(wanted)])
    except VideoError:
        raise
    except Exception as error:
        if "DECORDArrayCopyFromTo" in str(error):  # seen at widths 16, 24, 48 and 72 px
            reason = f"decord 0.6 cannot hand over frames {width} px wide: use the decoder pyav"
            raise VideoError(path, reason) from None
        raise VideoError(path, _decord_reason(error)) from None


def _decord_reason(error: Exception) -> str:
    """decord's exceptions in fixed words: their own text differs from run to run."""
    if isinstance(error, RuntimeError):
        return "decord cannot open it: damaged, or of a kind that it doesn't know"
    if type(error).__name__ == "DECORDLimitReachedError":
        return "decord had to make up frames from their neighbours: damaged"
    if type(error).__name__ == "DECORDError":
        return "decord cannot read it to its end: damaged or cut off"
    return f"decord fails with {type(error).__name__}"


# ---- PyAV ----------------------------------------------------------------------------------------


def _decode_pyav(
    video: OpenVideo,
    packets: Packets,
    wanted: np.ndarray,
    size_px: int | None,
    scale: Scaling | None,
    tally: Tally,
) -> np.ndarray:
    if packets.gop == "unknown":
        found = _find_by_count(video.path, set(wanted.tolist()), tally)
    else:
        found = _find_by_time(video, packets, sorted(set(wanted.tolist())), tally)
    images: dict[int, np.ndarray] = {}
    shape = None
    scaler = _Scaler(size_px)
    for number, frame in found:
        image = scaler.to_rgb(frame)
        if image.shape != (shape := shape or image.shape):
            raise VideoError(video.path, "its frames change their size on the way")
        images[number] = image if scale is None else scale(image[None])[0]
    return np.stack([images[number] for number in wanted.tolist()])


def _find_by_time(
    video: OpenVideo, packets: Packets, wanted: list[int], tally: Tally
) -> Iterator[tuple[int, Any]]:
    """The frames `wanted` (rising), each decoded from the entry before it.

    Where an entry does not keep its promise, the frames behind it are decoded from the start.
    """
    for entry, group in groupby(wanted, packets.entry_of):
        missing = {packets.times[number]: number for number in group}
        for start in (entry, 0):
            try:
                for frame in _decode_from(video, packets, packets.entries[start], tally):
                    if frame.pts in missing:
                        yield missing.pop(frame.pts), frame
                        if not missing:
                            break
            except VideoError:
                if start == 0:
                    raise
            if not missing:
                break
        else:
            number = min(missing.values())
            raise VideoError(video.path, f"frame {number} of it cannot be decoded")


def _decode_from(
    video: OpenVideo, packets: Packets, entry: tuple[int, int], tally: Tally
) -> Iterator[Any]:
    """Frames decoded from the packet of `entry` on, to the end of the file."""
    import av

    # A container without an index may land behind the entry: then the file is read from its start.
    for start in (entry, packets.entries[0]):
        try:
            video.container.seek(min(start), stream=video.stream, backward=True)
        except av.FFmpegError:
            continue
        rest = video.container.demux(video.stream)
        key = next((p for p in rest if p.is_keyframe and (p.pts or 0) >= entry[0]), None)
        if key is not None and key.pts == entry[0]:
            # Pictures before the entry refer to what was not read, and nothing refers to them.
            needed = (p for p in rest if p.pts is None or p.pts > entry[0])
            yield from _decode_packets(video, chain([key], needed), tally)
            return
    raise VideoError(video.path, "a key frame of it is not found again: damaged")


def _find_by_count(path: str | Path, wanted: set[int], tally: Tally) -> Iterator[tuple[int, Any]]:
    """The frames `wanted`, decoded from the file's start and counted."""
    number = -1
    last = max(wanted)
    with open_video(path) as video:
        packets = video.container.demux(video.stream)
        for number, frame in enumerate(_decode_packets(video, packets, tally)):
            if number in wanted:
                yield number, frame
            if number == last:
                return
    _check_reach(path, np.array([last]), number + 1)


def _decode_packets(video: OpenVideo, packets: Iterable[Any], tally: Tally) -> Iterator[Any]:
    """Frames of `packets`; a damaged one is an error, since others are predicted from it."""
    import av

    try:
        for packet in packets:
            for frame in packet.decode():
                if frame.is_corrupt:
                    raise VideoError(video.path, "a frame of it is damaged")
                tally.num_frames += 1
                yield frame
    except av.FFmpegError as error:
        raise VideoError(video.path, f"FFmpeg: {error.strerror}") from None


class _Scaler:
    """Frames as upright RGB, the shorter side scaled to `size_px`, or as stored.

    One for all frames of a file: FFmpeg's tables for a scaling cost more than a small frame.
    """

    def __init__(self, size_px: int | None) -> None:
        from av.video.reformatter import VideoReformatter

        self._size_px = size_px
        self._reformatter = VideoReformatter()

    def to_rgb(self, frame: Any) -> np.ndarray:
        width, height = frame.width, frame.height
        if self._size_px is not None:
            width, height = _scaled_size(width, height, self._size_px)
        image = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb24", interpolation="BICUBIC"
        )
        return _turn_upright(image.to_ndarray(), frame.rotation)


def _turn_upright(image: np.ndarray, rotation_degrees: int) -> np.ndarray:
    """Apply the rotation (counterclockwise) of a file's display matrix, as players do.

    Choice: angles between the quarter turns, which cameras don't write, go to the nearest one.
    """
    quarters = round(rotation_degrees / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarters)) if quarters else image


# ---- torchcodec ----------------------------------------------------------------------------------


def _doubt_torchcodec(info: VideoInfo) -> str | None:
    if info.container not in _INDEXED_CONTAINERS:
        return f"torchcodec finds no exact frames in {info.container}"
    if info.gop not in ("closed", "intra", "open"):
        return "torchcodec has to seek in it, and not every key frame can be sought"
    if info.num_hidden:
        return "torchcodec counts frames that an edit list hides"
    if info.num_video_streams > 1:
        return "torchcodec may read another of its video streams"
    return None


def _decode_torchcodec(
    video: OpenVideo,
    packets: Packets,
    wanted: np.ndarray,
    size_px: int | None,
    scale: Scaling | None,
    decoder: str,
    tally: Tally,
) -> np.ndarray:
    """Frames by torchcodec's exact seek mode, copied to the host.

    Choice: it scales nothing itself, so that `size_px` means the same by every decoder.
    """
    device = "cuda" if decoder == "torchcodec_cuda" else "cpu"
    images = []
    for part in _read_by_torchcodec(video, packets, wanted, device, tally):
        shown = part.cpu().numpy()
        images.append(_scale_like_pyav(shown, size_px) if scale is None else scale(shown))
    return np.concatenate(images)


def decode_to_device(
    path: str | Path,
    indices: np.ndarray,
    device: str,
    *,
    scale: Callable[[Any], Any],
    tally: Tally,
) -> list[Any]:
    """The frames numbered `indices`, by torchcodec, as tensors uint8 [n, h, w, 3] on `device`.

    Args:
        device: As torch names it; torchcodec decodes there.
        scale: Is given a few frames at a time, so that only scaled ones are held.
        tally: Is told how many frames were decoded.

    Raises:
        VideoError: A frame cannot be had exactly as a player shows it.
    """
    with open_video(path) as video:
        packets = read_packets(video)
        info = describe(video, packets)
        if packets.gop != "unknown":
            _check_reach(path, indices, info.num_frames)
        refusal = find_refusal(info, "torchcodec")
        if refusal is not None:
            raise VideoError(path, refusal)
        return [scale(part) for part in _read_by_torchcodec(video, packets, indices, device, tally)]


def _read_by_torchcodec(
    video: OpenVideo, packets: Packets, wanted: np.ndarray, device: str, tally: Tally
) -> Iterator[Any]:
    """A few frames at a time, on `device`, each compared with the time that it must have."""
    try:
        from torchcodec.decoders import VideoDecoder
    except ModuleNotFoundError as error:
        name = "torchcodec" if device == "cpu" else "torchcodec_cuda"
        raise explain_missing(error, f"backbone.decoder={name}") from None
    except (ImportError, OSError, RuntimeError):
        raise UserError(
            "torchcodec cannot be loaded; it needs FFmpeg's shared libraries, and a build for this "
            "PyTorch: see docs/datasets.md, or set backbone.decoder to auto"
        ) from None

    times = np.array(packets.times) * float(video.stream.time_base)
    try:
        reader = VideoDecoder(
            name_for_ffmpeg(video.path),
            dimension_order="NHWC",
            num_ffmpeg_threads=1,
            device=device,
            seek_mode="exact",
        )
        found = len(reader)
        if found != len(times):
            reason = f"torchcodec counts {found} frames, the file holds {len(times)}"
            raise VideoError(video.path, reason)
        keys = np.searchsorted(packets.times, [shown for shown, _ in packets.entries])
        tally.note_reads(wanted, keys)
        for part in _few(wanted):
            batch = reader.get_frames_at(part.tolist())
            if np.abs(batch.pts_seconds.cpu().numpy() - times[part]).max() > _SAME_TIME_SECONDS:
                raise VideoError(video.path, "torchcodec hands over frames of other times")
            yield batch.data
    except VideoError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        raise VideoError(video.path, f"torchcodec fails with {type(error).__name__}") from None


def _scale_like_pyav(images: np.ndarray, size_px: int | None) -> np.ndarray:
    import av

    if size_px is None:
        return images
    frames = [av.VideoFrame.from_ndarray(np.ascontiguousarray(i), "rgb24") for i in images]
    scaler = _Scaler(size_px)
    return np.stack([scaler.to_rgb(frame) for frame in frames])


# ---- what all have in common ---------------------------------------------------------------------


def _few(wanted: np.ndarray) -> list[np.ndarray]:
    """A few frames at a time, so that not all are held at full size."""
    return np.split(wanted, range(_FRAMES_AT_ONCE, len(wanted), _FRAMES_AT_ONCE))


def _check_reach(path: str | Path, wanted: np.ndarray, num_frames: int) -> None:
    if wanted.max() >= num_frames:
        raise VideoError(path, f"frame {wanted.max()} was asked for, it holds {num_frames}")


def _scaled_size(width: int, height: int, size_px: int) -> tuple[int, int]:
    """Width and height after scaling the shorter side to `size_px`."""
    shorter = min(width, height)
    return round(width * size_px / shorter), round(height * size_px / shorter)
