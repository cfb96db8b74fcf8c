"""A video file's packets in; out, its frames, their times and where to begin.

The definition that holds in the whole pipeline: **frame i of a file is the i-th picture that a
player shows, in order of presentation; hidden and discarded ones are not counted.** Hidden are
pictures that an edit list cuts away (files cut by `ffmpeg -ss ... -c copy`), and those that serve
only to predict others (alternate references of VP8 and VP9).

For most files the packets tell all of this without decoding: each packet that is not hidden is one
picture, shown at its presentation time. Where they don't (codecs whose packets may hold no picture
or two, files that begin amid a group of pictures, missing or doubled times), `probe` decodes the
file once and counts, and frames are numbered in the order in which the decoder hands them out.

**Entries** are the packets at which a decoder can begin such that every picture shown at or after
the entry is exact: IDR pictures of H.264, or recovery points that promise an exact match at once
(ITU-T H.264, 7.4.1 and D.2.8); IRAP pictures of HEVC (ITU-T H.265, 7.4.2.2); key frames of VP8, VP9
and AV1; every packet of codecs without prediction. Other "key frames" of a container, such as the
starts of an intra refresh, are none.

Memory: a few numbers per packet, however long the file is.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO, Literal

from dsts_pipeline.base.errors import DataError, import_extra

Gop = Literal["", "intra", "closed", "open", "refresh", "unknown"]

# A frame of a constant rate is shown where its number says, up to the rounding of containers that
# count milliseconds and a hundredth of a frame.
_ROUNDING_SECONDS = 0.0006
_ROUNDING_FRAMES = 0.01
_MENDED = 10  # frames that follow each other within a tenth of the usual time
_NOT_PREDICTED = frozenset(
    "dnxhd dvvideo ffvhuff huffyuv jpeg2000 mjpeg png prores rawvideo utvideo v210".split()
)


# Where a jump of the packets' counter, as at the joint of two files, is flagged as damage.
_MAY_BE_JOINED = ("mpegts",)
_LISTS = ("concat", "dash", "hls", "image2", "imf", "rtsp", "sdp")
_BOXES = frozenset(
    b"emsg free ftyp mdat meta mfra moof moov pdin pnot prft sidx skip ssix styp udta uuid".split()
)


class VideoError(DataError):
    """A video file that cannot be used; `reason` says why without naming the path."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}; replace the file by a sound copy")
        self.reason = reason


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds.

    Attributes:
        num_frames: Frames that a player shows.
        fps: Frames a second, as the file says; 0 where it does not.
        width, height: Of a stored frame, before it is turned upright.
        codec, container, pixel_format: By FFmpeg's names.
        gop: How groups of pictures hang together: "intra" (every packet stands alone), "closed" (no
            picture refers across a key frame), "open" (some do, and key frames are entries),
            "refresh" (some key frames are no entries), "unknown" (frames are numbered by decoding).
        num_hidden: Packets of the file that no player shows a picture of.
        rotation_degrees: Counterclockwise, to be applied to a stored frame.
        num_video_streams: Streams of pictures, covers and other attached ones included.
        starts_at_zero: Whether the first frame's time is 0, or not before it.
        times_seconds: When each frame is shown, counted from the first; empty where frame i is
            shown at i / fps.
    """

    num_frames: int
    fps: float
    width: int
    height: int
    codec: str
    container: str = ""
    pixel_format: str = ""
    gop: Gop = ""
    num_hidden: int = 0
    rotation_degrees: int = 0
    num_video_streams: int = 1
    starts_at_zero: bool = True
    times_seconds: tuple[float, ...] = ()

    @property
    def is_constant_rate(self) -> bool:
        """Whether frame i is shown at i / fps."""
        return not self.times_seconds


# What of it the clip index keeps under the same names.
INDEXED = (
    "codec container pixel_format gop num_hidden rotation_degrees num_video_streams starts_at_zero"
).split()


@dataclass
class OpenVideo:
    """A file that FFmpeg has open, and the stream of it that counts as the video."""

    path: str | Path
    container: Any
    stream: Any

    @property
    def codec(self) -> str:
        """FFmpeg's name of the format, whichever of its decoders reads it."""
        return self.stream.codec_context.codec.canonical_name

    @property
    def container_name(self) -> str:
        """The first of FFmpeg's names of the container, such as "mov" or "matroska"."""
        return self.container.format.name.split(",")[0]


@dataclass
class Packets:
    """A file's packets, looked at to the last.

    Attributes:
        gop: See `VideoInfo`.
        num_packets: Those with something in them.
        times: Presentation times of the shown frames, sorted, in the stream's time base.
            Empty where the packets don't tell.
        entries: Presentation and decoding time of every entry, sorted.
        first_frame: Decoded, as FFmpeg hands it out.
    """

    gop: Gop
    num_packets: int
    times: list[int]
    entries: list[tuple[int, int]]
    first_frame: Any = None

    def entry_of(self, frame: int) -> int:
        """The entry from which frame number `frame` has to be decoded."""
        return bisect_right(self.entries, (self.times[frame], 1 << 62)) - 1


def probe(path: str | Path) -> VideoInfo:
    """Look at a video file: every packet, and as many frames as it takes to know what it is.

    Raises:
        VideoError: The file is missing, empty, not a video, cut off, without a frame, or of a codec
            that nothing here decodes.
    """
    with open_video(path) as video:
        packets = read_packets(video)
        if packets.gop != "unknown":
            return describe(video, packets)
    with open_video(path) as video:
        return describe(video, packets, _count_by_decoding(video))


@contextmanager
def open_video(path: str | Path) -> Iterator[OpenVideo]:
    """An open file with its video stream, damage being an error.

    Of several video streams the longest is taken; covers and other attached pictures don't count.

    Raises:
        VideoError: See `probe`; also for what goes wrong inside the `with` block.
        MissingExtraError: PyAV is not installed.
    """
    av = import_extra("av", "reading a video")

    _check_file(path)
    try:
        with av.open(name_for_ffmpeg(path), options={"err_detect": "explode"}) as container:
            if container.format.name.split(",")[0] in _LISTS:
                raise VideoError(path, "it is a list of other files, no video")
            streams = [s for s in container.streams.video if not _is_attached(s)]
            if not streams:
                raise VideoError(path, "it holds no video stream")
            stream = streams[0] if len(streams) == 1 else _find_longest(path, streams)
            if stream.codec_context is None:
                raise VideoError(path, "FFmpeg has no decoder for its video stream")
            context = stream.codec_context
            context.thread_count = 1
            context.options = {"err_detect": "explode"}
            if min(context.width, context.height) < 1:
                raise VideoError(path, "its header gives no frame size")
            for other in container.streams:
                if other.index != stream.index:
                    other.discard = av.stream.Discard.all  # sound is not even read, where possible
            yield OpenVideo(path, container, stream)
    except av.FFmpegError as error:
        raise VideoError(path, f"FFmpeg: {error.strerror}") from None


def read_packets(video: OpenVideo) -> Packets:
    """Look at every packet of `video`, and decode its first frame; it is then read to its end.

    Raises:
        VideoError: A packet is damaged, or fewer are there than the file's index promises.
    """
    path = video.path
    stream = video.stream
    num_indexed = len(stream.index_entries)
    look = _choose_look(video)
    is_told = look is not None
    shown: list[int] = []
    entries: list[tuple[int, int]] = []
    num_read = num_packets = num_keys = 0
    is_open = False
    last_key = last_dts = first = None
    latest = before_entry = None  # the latest time of all packets so far, and before the last entry
    offsets: set[int] = set()
    for packet in video.container.demux(stream):
        if packet.is_corrupt:
            if video.container_name not in _MAY_BE_JOINED:
                raise VideoError(path, "cut off, or damaged between two frames")
            is_told = False  # where two were joined; or a loss, which decoding tells
        if first is None:
            first = next(iter(packet.decode()), None)
        pts, dts = packet.pts, packet.dts
        num_read += bool(packet.size) or dts is not None  # the one that ends the stream is neither
        if not packet.size:
            continue
        num_packets += 1
        if look is None:
            continue
        kind, is_shown = look(packet)
        if pts is None or (dts is not None and last_dts is not None and dts <= last_dts):
            is_told = False
            continue
        if dts is not None:  # Matroska stores none: the first may lack it
            last_dts = dts
            offsets.add(pts - dts)
        if packet.is_keyframe:
            num_keys += 1
            last_key = pts
            if kind != _NO_ENTRY:
                entries.append((pts, pts if dts is None else dts))
                before_entry = latest
            is_open = is_open or kind == _OPEN
        elif last_key is not None and pts < last_key:
            is_open = True
        if before_entry is not None and pts <= before_entry:
            is_told = False  # groups overlap, as where files were joined: times are no order
        latest = pts if latest is None else max(latest, pts)
        if is_shown and not packet.is_discard:
            is_told = is_told and bool(entries)  # before the first entry nothing can be decoded
            shown.append(pts)
    _check_count(video, num_read, num_indexed)
    if first is None:
        raise VideoError(path, "it holds no frame that can be decoded")
    shown.sort()
    entries.sort()
    if first.interlaced_frame and video.codec == "h264":
        is_told = False  # a packet may be one of a frame's two fields
    # Matroska stores no times of decoding: FFmpeg makes them, with a constant delay.
    is_alike = len(offsets) == 1 if video.container_name == "matroska" else offsets == {0}
    if is_alike and num_packets > 1 and stream.codec_context.reorder_depth:
        is_told = False  # times of decoding, not of presentation: frames are reordered
    if _were_mended(shown):
        is_told = False
    if not is_told or not shown or shown[0] < entries[0][0] or len(set(shown)) < len(shown):
        return Packets("unknown", num_packets, [], [], first)
    gop: Gop = "closed"
    if len(entries) < num_keys or _indexes_other_keys(video, num_keys):
        gop = "refresh"
    elif is_open:
        gop = "open"
    elif num_keys == num_packets:
        gop = "intra"
    return Packets(gop, num_packets, shown, entries, first)


def _were_mended(times: list[int]) -> bool:
    """Whether a tool pushed times apart: some are much closer to each other than most.

    Where times would not rise, as behind a joint, writers of files set them a tick after the one
    before, in the order of decoding.
    """
    steps = sorted(b - a for a, b in pairwise(times))
    return bool(steps) and steps[0] * _MENDED < steps[len(steps) // 2]


def _indexes_other_keys(video: OpenVideo, num_keys: int) -> bool:
    """Whether the index of mov calls other packets key frames than the stream does.

    Without a list of key frames all packets are, and who seeks by the index begins anywhere.
    """
    if video.container_name != "mov":
        return False
    return sum(entry.is_keyframe for entry in video.stream.index_entries) != num_keys


def _check_count(video: OpenVideo, num_read: int, num_indexed: int) -> None:
    """Compare the packets that were read, and the file's size, with what the file promises.

    FFmpeg reads a file that was cut off as if it ended there. The index of mov and AVI lists every
    packet, less those that an edit list skips, and that of a fragmented file grows while it is
    read; without such an index the header's number counts. Streams without a structure that says
    how long they are, such as MPEG transport streams, may end anywhere.

    Raises:
        VideoError: Something is missing.
    """
    name = video.container_name
    promised = video.stream.frames
    if num_indexed and name in ("mov", "avi"):
        promised = len(video.stream.index_entries)
    if num_read < promised:
        raise VideoError(video.path, f"cut off: {num_read} of {promised} frames are there")
    if name == "avi" and num_read == video.stream.frames:
        return  # all that the header counts is there, whatever length it states
    find_end = {"matroska": _end_of_segment, "avi": _end_of_riff, "mov": _end_of_boxes}.get(name)
    if find_end is None:
        return
    num_bytes = os.path.getsize(video.path)
    with open(video.path, "rb") as file:
        end = find_end(file, num_bytes)
    if end > num_bytes:
        raise VideoError(video.path, f"cut off: {num_bytes:,} of {end:,} bytes are there")


def describe(video: OpenVideo, packets: Packets, times: Sequence[int] = ()) -> VideoInfo:
    """What is known of `video`.

    Args:
        times: Of the frames, where the packets don't tell; without them `num_frames` is 0 then.
    """
    first = packets.first_frame
    times = packets.times or times
    stream = video.stream
    context = video.stream.codec_context
    fps = float(stream.average_rate or 0)
    base = stream.time_base
    seconds = [(time - times[0]) * base.numerator / base.denominator for time in times]
    return VideoInfo(
        num_frames=len(times),
        fps=fps,
        width=context.width,
        height=context.height,
        codec=video.codec,
        container=video.container_name,
        pixel_format=first.format.name,
        gop=packets.gop,
        num_hidden=max(packets.num_packets - len(times), 0) if times else 0,
        rotation_degrees=first.rotation,
        num_video_streams=len(video.container.streams.video),
        starts_at_zero=not times or times[0] >= 0,
        times_seconds=() if _is_constant(seconds, fps) else tuple(seconds),
    )


def _is_constant(seconds: list[float], fps: float) -> bool:
    if fps <= 0:
        return False
    tolerance = _ROUNDING_SECONDS + _ROUNDING_FRAMES / fps
    return all(abs(time - number / fps) <= tolerance for number, time in enumerate(seconds))


def _count_by_decoding(video: OpenVideo) -> list[int]:
    """Times of all frames, in the order in which the decoder hands them out.

    Times that don't rise, as in AVI files with packed frames, are replaced by a constant rate.

    Raises:
        VideoError: A frame is damaged.
    """
    times: list[int | None] = []
    for frame in video.container.decode(video.stream):
        if frame.is_corrupt:
            raise VideoError(video.path, f"frame {len(times)} is damaged")
        times.append(frame.pts)
    rising = [time for time in times if time is not None]
    if len(rising) == len(times) and all(a < b for a, b in pairwise(rising)):
        return rising
    stream = video.stream
    step = 1 / (stream.average_rate * stream.time_base) if stream.average_rate else 1
    return [round(number * step) for number in range(len(times))]


# ---- what a packet is ----------------------------------------------------------------------------

_NO_ENTRY, _OPEN, _CLOSED = range(3)
Look = Callable[[Any], tuple[int, bool]]
"""A packet in; out, whether it is an entry, the group before it open or closed, and whether its
picture is shown."""


def _choose_look(video: OpenVideo) -> Look | None:
    """How to look at this file's packets; None where packets don't tell.

    Times are trusted in containers that store them. AVI stores none, and those that FFmpeg makes up
    for files with bidirectional prediction are wrong.
    """
    if video.codec in _NOT_PREDICTED:
        return _look_at_key
    if video.container_name not in ("mov", "matroska", "mpegts"):
        return None
    extradata = bytes(video.stream.codec_context.extradata or b"")
    if video.codec == "h264":
        length_bytes = (extradata[4] & 3) + 1 if extradata[:1] == b"\x01" else 0
        return partial(_look_at_h264, length_bytes=length_bytes)
    if video.codec == "hevc":
        has_lengths = len(extradata) > 22 and extradata[:3] not in (b"\0\0\0", b"\0\0\x01")
        length_bytes = (extradata[21] & 3) + 1 if has_lengths else 0
        return partial(_look_at_hevc, length_bytes=length_bytes)
    by_codec: dict[str, Look] = {
        "vp8": _look_at_vp8,
        "vp9": _look_at_vp9,
        "av1": _look_at_key,
        "ffv1": _look_at_key,
    }
    return by_codec.get(video.codec)


def _look_at_key(packet: Any) -> tuple[int, bool]:
    return _CLOSED if packet.is_keyframe else _NO_ENTRY, True


def _look_at_h264(packet: Any, length_bytes: int) -> tuple[int, bool]:
    if not packet.is_keyframe:
        return _NO_ENTRY, True
    is_exact = False
    for unit in _split_units(bytes(packet), length_bytes):
        kind = unit[0] & 31
        if kind == 5:  # a slice of an IDR picture
            return _CLOSED, True
        if kind == 6 and _has_exact_recovery_point(unit):
            is_exact = True
        if kind == 1:  # a slice of another picture
            break
    return _OPEN if is_exact else _NO_ENTRY, True


def _has_exact_recovery_point(unit: bytes) -> bool:
    """Whether an SEI message says that from here on all is exact, in order of output.

    The recovery point's payload begins with recovery_frame_cnt (0 is the single bit 1),
    exact_match_flag and broken_link_flag.
    """
    at = 1
    while at + 2 < len(unit):
        kind = size = 0
        while at < len(unit) - 1 and unit[at] == 255:
            kind, at = kind + 255, at + 1
        kind, at = kind + unit[at], at + 1
        while at < len(unit) - 1 and unit[at] == 255:
            size, at = size + 255, at + 1
        size, at = size + unit[at], at + 1
        if kind == 6 and size and at < len(unit):
            return unit[at] >> 5 == 0b110
        at += size
    return False


def _look_at_hevc(packet: Any, length_bytes: int) -> tuple[int, bool]:
    if packet.is_keyframe:
        for unit in _split_units(bytes(packet), length_bytes):
            kind = unit[0] >> 1 & 63
            if kind in (19, 20):  # a slice of an IDR picture
                return _CLOSED, True
            if kind < 32:  # another slice; 16 to 21 are the IRAP pictures
                return _OPEN if 16 <= kind <= 21 else _NO_ENTRY, True
    return _NO_ENTRY, True


def _split_units(data: bytes, length_bytes: int) -> Iterator[bytes]:
    """The NAL units of a packet; `length_bytes` 0: they are parted by start codes."""
    if not length_bytes:
        yield from (unit for unit in data.split(b"\0\0\x01")[1:] if unit)
        return
    at = 0
    while at + length_bytes < len(data):
        size = int.from_bytes(data[at : at + length_bytes], "big")
        at += length_bytes
        if unit := data[at : at + size]:
            yield unit
        at += size


def _look_at_vp8(packet: Any) -> tuple[int, bool]:
    """RFC 6386, 9.1: bit 0 is 0 in a key frame, bit 4 says that the frame is shown."""
    first = memoryview(packet)[0]
    return _CLOSED if packet.is_keyframe and not first & 1 else _NO_ENTRY, bool(first & 16)


def _look_at_vp9(packet: Any) -> tuple[int, bool]:
    """VP9's header (6.2): marker, profile, show_existing_frame, frame_type, show_frame.

    Of a superframe, whose last byte is a marker, exactly one frame is shown.
    """
    data = memoryview(packet)
    first, last = data[0], data[len(data) - 1]
    bits = 4 + (first >> 4 & 3 == 3)  # profile 3 has a reserved bit more
    is_existing = first >> 7 - bits & 1
    is_key = not first >> 6 - bits & 1 and not is_existing
    is_shown = bool(is_existing or first >> 5 - bits & 1 or last & 0xE0 == 0xC0)
    return _CLOSED if packet.is_keyframe and is_key else _NO_ENTRY, is_shown


# ---- which file, which stream --------------------------------------------------------------------


def name_for_ffmpeg(path: str | Path) -> str:
    """A name that FFmpeg takes for a file's; a relative one with a colon would be an address."""
    return os.path.abspath(path)


def _check_file(path: str | Path) -> None:
    if not os.path.isfile(path):  # also where the name is longer than the system allows
        raise VideoError(path, "there is no such file")
    if os.path.getsize(path) == 0:
        raise VideoError(path, "it is empty")


def _end_of_segment(file: BinaryIO, num_bytes: int) -> int:
    """Where the segment of a Matroska file ends (RFC 9559); 0 where it does not say."""
    at = 0
    for element in (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"):  # EBML, Segment
        file.seek(at)
        head = file.read(12)
        if head[:4] != element or len(head) < 5:
            return 0
        length_bytes = 9 - head[4].bit_length()
        coded = int.from_bytes(head[4 : 4 + length_bytes], "big")
        size = coded & (1 << 7 * length_bytes) - 1
        if size == (1 << 7 * length_bytes) - 1:  # unknown
            return 0
        at += 4 + length_bytes + size
    return at


def _end_of_riff(file: BinaryIO, num_bytes: int) -> int:
    """Where the first RIFF chunk of an AVI file ends; 0 where it does not say, as behind a pipe."""
    head = file.read(8)
    size = int.from_bytes(head[4:8], "little")
    return size if head[:4] == b"RIFF" and size < 0xFFFFFFFF else 0  # some count these 8 bytes, too


def _end_of_boxes(file: BinaryIO, num_bytes: int) -> int:
    """Where the last box of an mp4 or mov file ends (ISO 14496-12, 4.2)."""
    at = 0
    while at < num_bytes:
        file.seek(at)
        head = file.read(16)
        size = int.from_bytes(head[:4], "big")
        if size == 1:
            size = int.from_bytes(head[8:16], "big")
        if len(head) < 8 and any(box.startswith(head[4:]) for box in _BOXES if head[4:]):
            return at + 8
        if size < 8 or head[4:8] not in _BOXES:  # the last box, or what was put behind it
            return num_bytes
        at += size
    return at


def _is_attached(stream: Any) -> bool:
    import av

    kinds = av.stream.Disposition
    return bool(stream.disposition & (kinds.attached_pic | kinds.timed_thumbnails))


def _find_longest(path: str | Path, streams: list[Any]) -> Any:
    """The stream with the most packets; the first of equals."""
    import av

    counts = dict.fromkeys((stream.index for stream in streams), 0)
    with av.open(name_for_ffmpeg(path), options={"err_detect": "explode"}) as container:
        for packet in container.demux([container.streams[index] for index in counts]):
            counts[packet.stream_index] += bool(packet.size)
    return max(streams, key=lambda stream: counts[stream.index])
