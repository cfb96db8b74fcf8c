"""Every decoder hands over exactly the frames that a player shows, or refuses; none is wrong.

Random encodings of clips whose frames carry their number are held to the definition in
`dsts_pipeline/clips/probe.py`. What a player shows is what FFmpeg decodes from the start of the
file; where all encoded frames are shown, their numbers are 0, 1, 2, ... whatever a decoder says.
"""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise

import av
import numpy as np
import pytest

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.clips.decode import decode_frames, find_refusal, iterate_frames
from dsts_pipeline.clips.probe import VideoError, probe
from tests.clips.encodings import Encoding, draw_encoding, read_number, write_encoding

NUM_ENCODINGS, NUM_IN_SHORT_RUN = 320, 40


@cache
def _usable_decoders() -> list[str]:
    decoders = ["auto", "decord", "pyav"]
    if importlib.util.find_spec("torchcodec") is not None:
        decoders.append("torchcodec")
    return decoders


def _show(path):
    """The frames that a player shows, as FFmpeg alone decodes them from the start of the file."""
    with av.open(str(path)) as container:
        streams = [s for s in container.streams.video if not s.disposition & 0x400]
        return [
            np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
            for frame in container.decode(streams[0])
        ]


def _check(path, encoding, rng):
    """Compare what every decoder says of the file at `path` with what a player shows."""
    turn = encoding.rotation_degrees
    shown = _show(path)
    numbers = [read_number(image, turn) for image in shown]
    assert all(a < b for a, b in pairwise(numbers)), "the test's own encoding is unreadable"
    if encoding.is_plain:
        assert numbers == list(range(encoding.num_frames))
    try:
        info = probe(path)
    except VideoError:
        assert not shown or (encoding.cut_at is not None and encoding.groups == "refresh")
        return
    assert info.num_frames == len(shown)
    wanted = rng.integers(0, len(shown), min(len(shown), 8))
    right = [numbers[number] for number in wanted]
    for decoder in _usable_decoders():
        refusal = find_refusal(info, decoder)
        try:
            frames = decode_frames(path, wanted, decoder=decoder)
        except VideoError as error:
            assert refusal is not None and error.reason == refusal, f"{decoder}: {error.reason}"
            continue
        assert refusal is None
        assert [read_number(image, turn) for image in frames] == right, decoder
        if decoder == "pyav":
            np.testing.assert_array_equal(frames, [shown[number] for number in wanted])
        else:  # colours are rounded in other ways, never by a neighbour's picture
            expected = np.stack([shown[number] for number in wanted]).astype(int)
            assert np.abs(frames - expected).mean() < 6, decoder
    known = decode_frames(path, wanted, info=replace(info, times_seconds=()))  # as of an index
    assert [read_number(image, turn) for image in known] == right
    with pytest.raises(VideoError, match=f"frame {len(shown)} was asked for"):
        decode_frames(path, [0, len(shown)])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(number, marks=[pytest.mark.long] if number >= NUM_IN_SHORT_RUN else [])
        for number in range(NUM_ENCODINGS)
    ],
)
def test_frames_are_those_that_a_player_shows_or_refused(number, tmp_path):
    rng = np.random.default_rng([20221023, number])
    encoding = draw_encoding(rng)
    try:
        path = write_encoding(tmp_path / f"clip.{encoding.ending}", encoding)
    except av.FFmpegError as error:
        pytest.fail(f"the test can't encode {encoding}: {error}")
    _check(path, encoding, rng)


PLAIN = Encoding("libx264", "mp4", num_frames=50, gop_size=10, num_b_frames=2)


@pytest.mark.parametrize(
    ("change", "gop", "by_decord"),
    [
        ({}, "closed", True),
        ({"gop_size": 1, "num_b_frames": 0}, "intra", True),
        ({"groups": "open"}, "open", False),
        ({"groups": "refresh", "num_b_frames": 0}, "refresh", False),
        ({"codec": "libx265", "groups": "open"}, "open", False),
        ({"codec": "libx265"}, "closed", True),
        ({"codec": "libvpx-vp9", "ending": "webm", "num_b_frames": 0}, "closed", True),
        ({"codec": "libvpx", "ending": "webm", "num_b_frames": 0}, "closed", False),
        ({"codec": "mpeg4", "ending": "avi"}, "unknown", False),
        ({"codec": "mpeg2video", "ending": "ts"}, "unknown", False),
        ({"codec": "mjpeg", "ending": "avi", "pixel_format": "yuvj420p"}, "intra", False),
        ({"ending": "ts"}, "closed", False),
        ({"ending": "avi"}, "unknown", False),
        ({"rotation_degrees": 90}, "closed", False),
        ({"cut_at": 17}, "closed", False),
        ({"is_interlaced": True, "num_b_frames": 0}, "unknown", False),
    ],
)
def test_a_file_is_told_for_what_it_is(change, gop, by_decord, tmp_path):
    encoding = replace(PLAIN, **change)
    path = write_encoding(tmp_path / f"clip.{encoding.ending}", encoding)
    info = probe(path)
    assert info.gop == gop
    assert (find_refusal(info, "decord") is None) == by_decord
    assert info.rotation_degrees % 360 == encoding.rotation_degrees
    assert info.is_constant_rate
    assert info.num_hidden == (7 if encoding.cut_at else 0)
    assert info.num_frames == 50 - (encoding.cut_at or 0)
    _check(path, encoding, np.random.default_rng(0))


def test_frames_that_an_edit_list_hides_are_not_counted(tmp_path):
    path = write_encoding(tmp_path / "cut.mp4", replace(PLAIN, cut_at=17, num_b_frames=0))
    frames = decode_frames(path, range(33))
    assert [read_number(image) for image in frames] == list(range(17, 50))
    assert [read_number(image) for image in iterate_frames(path)] == list(range(17, 50))


def test_long_groups_are_entered_where_they_begin(tmp_path, monkeypatch):
    """PyAV decodes from the key frame before, not from the start: counted in frames."""
    path = write_encoding(tmp_path / "long.mp4", replace(PLAIN, num_frames=400, gop_size=20))
    from dsts_pipeline.clips import decode

    decoded = []
    original = decode._decode_packets

    def count(video, packets, tally):
        for frame in original(video, packets, tally):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(decode, "_decode_packets", count)
    frames = decode_frames(path, [5, 301, 305, 399], decoder="pyav")
    assert [read_number(image) for image in frames] == [5, 301, 305, 399]
    assert len(decoded) <= 6 + 6 + 20


def test_the_rate_is_told_to_vary_with_the_times_of_all_frames(tmp_path):
    path = write_encoding(tmp_path / "vfr.mp4", replace(PLAIN, is_constant_rate=False, seed=3))
    info = probe(path)
    assert not info.is_constant_rate and len(info.times_seconds) == 50
    rng = np.random.default_rng(3)
    steps = [int(rng.integers(1, 5)) for _ in range(50)]
    np.testing.assert_allclose(info.times_seconds, np.cumsum([0, *steps[:-1]]) / 25, atol=1e-4)


@pytest.mark.parametrize("is_first", [True, False])
def test_of_several_video_streams_the_longest_is_read_never_the_cover(tmp_path, is_first):
    film = write_encoding(tmp_path / "film.mp4", PLAIN)
    path = tmp_path / "two.mkv"
    with av.open(str(film)) as source, av.open(str(path), "w") as file:
        streams = {}
        for kind in ("cover", "film") if is_first else ("film", "cover"):
            if kind == "film":
                streams[kind] = file.add_stream_from_template(source.streams.video[0])
            else:
                streams[kind] = file.add_stream("mjpeg", rate=25)
                streams[kind].width = streams[kind].height = 64
                streams[kind].pix_fmt = "yuvj420p"
        cover = av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8), "rgb24")
        cover.pts = 0
        file.mux(streams["cover"].encode(cover.reformat(format="yuvj420p")))
        file.mux(streams["cover"].encode())
        for packet in source.demux(source.streams.video[0]):
            if packet.size:
                packet.stream = streams["film"]
                file.mux(packet)
    info = probe(path)
    assert (info.num_frames, info.codec, info.num_video_streams) == (50, "h264", 2)
    assert find_refusal(info, "decord") is not None
    frames = decode_frames(path, [0, 31, 49])
    assert [read_number(image) for image in frames] == [0, 31, 49]


def test_without_decord_auto_is_pyav(tmp_path, monkeypatch):
    path = write_encoding(tmp_path / "clip.mp4", PLAIN)
    monkeypatch.setitem(sys.modules, "decord", None)
    assert [read_number(image) for image in decode_frames(path, [3, 41])] == [3, 41]
    with pytest.raises(UserError, match=r"needs decord, which is not installed: .*\[decord\]"):
        decode_frames(path, [3], decoder="decord")


def test_a_stream_that_ffmpeg_cannot_decode_is_named(tmp_path):
    path = tmp_path / "drawing.mp4"
    path.write_text('<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>')
    with pytest.raises(VideoError) as caught:
        probe(path)
    assert caught.value.reason == "FFmpeg has no decoder for its video stream"
    with pytest.raises(VideoError, match="no decoder"):
        decode_frames(path, [0])


@pytest.mark.parametrize(
    ("codec", "ending"),
    [
        ("libx264", "mp4"),
        ("libx264", "fragmented.mp4"),
        ("libx264", "mkv"),
        ("libvpx-vp9", "webm"),
        ("mpeg4", "avi"),
    ],
)
def test_a_file_that_was_cut_off_is_an_error_wherever_it_was_cut(codec, ending, tmp_path):
    path = write_encoding(tmp_path / f"whole.{ending}", replace(PLAIN, codec=codec, ending=ending))
    whole = path.read_bytes()
    assert probe(path).num_frames == 50
    cut = tmp_path / f"cut.{ending}"
    for share in np.linspace(0.02, 0.85 if ending == "avi" else 0.98, 33):
        cut.write_bytes(whole[: int(share * len(whole))])
        for use in (lambda: probe(cut), lambda: decode_frames(cut, [0])):
            with pytest.raises(VideoError):
                use()
    cut.write_bytes(whole[:-1])
    if ending == "avi":  # the end of its index alone: no frame is missing
        assert probe(cut).num_frames == 50
        return
    with pytest.raises(VideoError):
        probe(cut)


@pytest.mark.parametrize("ending", ["mp4", "mkv", "webm", "avi"])
def test_what_was_put_behind_a_file_does_not_harm_it(ending, tmp_path):
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(ending, "libx264")
    path = write_encoding(tmp_path / f"film.{ending}", replace(PLAIN, codec=codec, ending=ending))
    for junk in (bytes(1000), b"\xff" * 1000, b"plain text, and more of it", b"\n", b"abcdefg"):
        behind = tmp_path / f"behind.{ending}"
        behind.write_bytes(path.read_bytes() + junk)
        assert probe(behind).num_frames == 50


@pytest.mark.parametrize("ending", ["mp4", "mkv", "ts"])
@pytest.mark.parametrize("groups", ["closed", "open"])
def test_times_of_decoding_are_not_taken_for_times_of_presentation(groups, ending, tmp_path):
    """As `ffmpeg -c copy` leaves them of AVI files and raw streams."""
    encoding = replace(PLAIN, groups=groups, num_b_frames=3, ending=ending, forgets_times=True)
    path = write_encoding(tmp_path / f"copy.{ending}", encoding)
    assert probe(path).gop == "unknown"
    for wanted in ([10, 38, 41, 2], range(50)):
        frames = decode_frames(path, wanted)
        assert [read_number(image) for image in frames] == list(wanted)
    with pytest.raises(VideoError, match="use the decoder auto"):
        decode_frames(path, [3], decoder="decord")


def test_files_joined_with_overlapping_times_are_read_in_the_order_that_players_show(tmp_path):
    source = write_encoding(tmp_path / "source.mp4", replace(PLAIN, num_b_frames=3))
    path = tmp_path / "joined.mp4"
    with av.open(str(source)) as first, av.open(str(path), "w") as new:
        stream = new.add_stream_from_template(first.streams.video[0])
        packets = [p for p in first.demux(first.streams.video[0]) if p.size]
        end = packets[-1].dts + packets[1].dts - packets[0].dts
        for packet in packets:
            packet.stream = stream
            new.mux(packet)
        with av.open(str(source)) as second:
            for packet in second.demux(second.streams.video[0]):
                if packet.size:  # by the times of decoding alone, as a careless tool joins
                    shift = end - packets[0].dts
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    new.mux(packet)
    shown = [read_number(image) for image in _show(path)]
    assert len(shown) == 100
    assert probe(path).num_frames == 100
    wanted = [3, 47, 49, 50, 51, 77, 99]
    assert [read_number(i) for i in decode_frames(path, wanted)] == [shown[n] for n in wanted]


def test_an_mp4_without_its_list_of_key_frames_is_entered_at_those_of_the_stream(tmp_path):
    path = write_encoding(tmp_path / "clip.mp4", PLAIN)
    content = path.read_bytes()
    assert content.count(b"stss") == 1
    path.write_bytes(content.replace(b"stss", b"free"))
    info = probe(path)
    assert info.gop == "refresh" and find_refusal(info, "decord") is not None
    frames = decode_frames(path, [17, 44, 3])
    assert [read_number(image) for image in frames] == [17, 44, 3]


def test_transport_streams_that_were_joined_are_sound(tmp_path):
    source = write_encoding(tmp_path / "part.ts", replace(PLAIN, ending="ts"))
    path = tmp_path / "joined.ts"
    path.write_bytes(source.read_bytes() * 2)
    shown = [read_number(image) for image in _show(path)]
    assert probe(path).num_frames == len(shown) >= 99
    frames = decode_frames(path, [0, 49, len(shown) - 1])
    assert [read_number(i) for i in frames] == [shown[n] for n in (0, 49, len(shown) - 1)]


def test_deep_colours_are_not_left_to_decord(tmp_path):
    path = write_encoding(tmp_path / "deep.mp4", replace(PLAIN, pixel_format="yuv420p10le"))
    refusal = find_refusal(probe(path), "decord")
    assert refusal is not None and refusal.startswith("decord gives other colours of yuv420p10le")


def test_names_that_could_be_addresses_are_names(tmp_path, monkeypatch):
    write_encoding(tmp_path / "at 12:30.mp4", PLAIN)
    monkeypatch.chdir(tmp_path)
    for decoder in ("auto", "decord", "pyav"):
        assert read_number(decode_frames("at 12:30.mp4", [9], decoder=decoder)[0]) == 9


def test_a_list_of_other_files_is_no_video(tmp_path):
    write_encoding(tmp_path / "other.mp4", PLAIN)
    path = tmp_path / "list.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(VideoError, match="a list of other files"):
        probe(path)


def test_a_name_longer_than_the_system_allows_is_a_missing_file(tmp_path):
    with pytest.raises(VideoError, match="there is no such file"):
        probe(tmp_path / f"{'x' * 300}.mp4")
