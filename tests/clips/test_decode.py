from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.clips.decode import count_frames, decode_frames, name_decoder
from dsts_pipeline.clips.probe import VideoError, VideoInfo, probe
from tests.clips.videos import gray_of, write_audio, write_video

DECODERS = ("auto", "decord", "pyav")
pytestmark = pytest.mark.parametrize("decoder", DECODERS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("videos")


@pytest.fixture(scope="module")
def video(folder):
    return write_video(folder / "sound.mp4")


def _grays(frames):
    """The grey level of each frame, from the part below the noisy band."""
    return frames[:, frames.shape[1] // 2 :].mean(axis=(1, 2, 3))


def test_every_frame_is_the_one_asked_for_in_the_order_asked_for(video, decoder):
    wanted = [23, 0, 7, 7, 8, 1, 22]
    frames = decode_frames(video, wanted, decoder=decoder)
    assert frames.shape == (7, 64, 64, 3) and frames.dtype == np.uint8
    np.testing.assert_allclose(_grays(frames), [gray_of(i) for i in wanted], atol=2.5)


def test_webm_without_a_frame_count_in_its_header(folder, decoder):
    path = write_video(folder / "vp9.webm", codec="libvpx-vp9")
    assert count_frames(path) == 24
    frames = decode_frames(path, range(24), decoder=decoder)
    np.testing.assert_allclose(_grays(frames), [gray_of(i) for i in range(24)], atol=2.5)


def test_probe_tells_what_the_file_holds(video, decoder):
    assert probe(video) == VideoInfo(
        24, 24.0, 64, 64, "h264", container="mov", pixel_format="yuv420p", gop="closed"
    )
    assert name_decoder(decoder).split()[0] == decoder


@pytest.mark.parametrize("size", [(64, 64), (80, 46), (46, 80), (32, 32), (20, 20)])
def test_scaled_frames_are_the_square_in_the_middle(folder, decoder, size):
    path = write_video(folder / f"{size[0]}x{size[1]}.mp4", size=size, num_frames=4)
    whole = decode_frames(path, [2], decoder=decoder)
    assert whole.shape == (1, size[1], size[0], 3)
    scaled = decode_frames(path, [2], decoder=decoder, size_px=32)
    assert scaled.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(_grays(scaled), _grays(whole), atol=2.5)


def test_decoders_agree(video, decoder):
    ours = decode_frames(video, range(24), decoder=decoder, size_px=32)
    others = decode_frames(video, range(24), decoder="decord", size_px=32)
    assert np.abs(ours.astype(int) - others).mean() < 2


def test_decoding_again_gives_the_same_bytes(video, decoder):
    first, second = (decode_frames(video, range(24), decoder=decoder, size_px=32) for _ in "ab")
    np.testing.assert_array_equal(first, second)


def test_one_frame_long(folder, decoder):
    path = write_video(folder / "one.mp4", num_frames=1)
    assert decode_frames(path, [0, 0], decoder=decoder).shape == (2, 64, 64, 3)


def test_a_frame_beyond_the_end_is_an_error_and_not_the_last_one(video, decoder):
    with pytest.raises(VideoError, match=r"sound\.mp4: frame 24 was asked for, it holds 24"):
        decode_frames(video, [0, 24], decoder=decoder)


@pytest.mark.parametrize("faststart", [False, True], ids=["index last", "index first"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8, 0.97])
def test_a_truncated_file_is_an_error_even_where_early_frames_are_whole(
    folder, decoder, share, faststart
):
    whole = write_video(folder / "whole.mp4", faststart=faststart).read_bytes()
    path = folder / f"cut{share}{faststart}.mp4"
    path.write_bytes(whole[: int(share * len(whole))])
    for use in (lambda: decode_frames(path, [0], decoder=decoder), lambda: probe(path)):
        with pytest.raises(VideoError, match=path.name) as caught:
            use()
        assert str(folder) not in caught.value.reason


def test_a_packet_overwritten_with_zeros_is_an_error(video, folder, decoder):
    content = bytearray(video.read_bytes())
    middle = content.index(b"mdat") + len(content) // 3
    content[middle : middle + 2000] = bytes(2000)
    path = folder / "holed.mp4"
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"holed\.mp4"):
        decode_frames(path, range(24), decoder=decoder)


def test_what_is_no_video_is_named(folder, decoder):
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("not a video\n" * 500)
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    write_audio(folder / "sound_only.mp4")
    found = {}
    for name in ("missing.mp4", "empty.mp4", "text.mp4", "noise.mp4", "sound_only.mp4"):
        with pytest.raises(VideoError, match=name) as caught:
            decode_frames(folder / name, [0], decoder=decoder, size_px=32)
        found[name] = caught.value.reason
    assert found["missing.mp4"] == "there is no such file"
    assert found["empty.mp4"] == "it is empty"
    assert found["sound_only.mp4"] == "it holds no video stream"


def test_a_width_that_decord_cannot_hand_over_is_not_called_damage(video, decoder):
    if decoder != "decord":
        assert decode_frames(video, [3], decoder=decoder, size_px=48).shape == (1, 48, 48, 3)
        return
    with pytest.raises(VideoError, match="48 px wide: use the decoder pyav"):
        decode_frames(video, [3], decoder=decoder, size_px=48)


@pytest.mark.parametrize("indices", [[], [-1], [[0]]])
def test_indices_that_make_no_sense_are_a_bug_of_the_caller(video, decoder, indices):
    with pytest.raises(ValueError, match="expected at least one"):
        decode_frames(video, indices, decoder=decoder)


def test_an_unknown_decoder_is_refused(video, decoder):
    with pytest.raises(ValueError, match="expected one of"):
        decode_frames(video, [0], decoder=decoder + "x")  # type: ignore[arg-type]


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_rotated_frames_are_turned_upright_or_refused(folder, decoder, quarters):
    still = write_video(folder / "lying.mp4", size=(80, 48), num_frames=3)
    path = write_video(
        folder / f"turned{quarters}.mp4",
        size=(80, 48),
        num_frames=3,
        rotation_degrees=90 * quarters,
    )
    if decoder == "decord":
        with pytest.raises(
            VideoError, match="decord squeezes rotated frames: use the decoder auto"
        ):
            decode_frames(path, [1], decoder=decoder)
        return
    lying = decode_frames(still, [1], decoder=decoder)[0]
    upright = decode_frames(path, [1], decoder=decoder)[0]
    np.testing.assert_array_equal(upright, np.rot90(lying, quarters))
    assert decode_frames(path, [1], decoder=decoder, size_px=32).shape == (1, 32, 32, 3)


@pytest.mark.parametrize("ending", ["ts", "mpg"])
def test_streams_in_which_decord_finds_other_frames_are_refused_to_it(folder, decoder, ending):
    codec = {"ts": "libx264", "mpg": "mpeg2video"}[ending]
    path = write_video(folder / f"stream.{ending}", codec=codec)
    if decoder == "decord":
        with pytest.raises(VideoError, match="decord finds no exact frames in mpeg"):
            decode_frames(path, [0, 12], decoder=decoder)
        return
    grays = _grays(decode_frames(path, [0, 12, 23], decoder=decoder))
    np.testing.assert_allclose(grays, [gray_of(i) for i in (0, 12, 23)], atol=2.5)


@pytest.mark.parametrize("size", [(64, 64), (65, 49), (81, 47)])
def test_odd_sizes_without_chroma_subsampling(folder, decoder, size):
    path = write_video(
        folder / f"odd{size[0]}.mp4", size=size, num_frames=5, pixel_format="yuv444p"
    )
    assert decode_frames(path, [4], decoder=decoder).shape == (1, size[1], size[0], 3)
    assert decode_frames(path, [4], decoder=decoder, size_px=32).shape == (1, 32, 32, 3)


def test_frames_can_stay_uncut(folder, decoder):
    path = write_video(folder / "wide.mp4", size=(80, 46), num_frames=4)
    whole = decode_frames(path, [2], decoder=decoder, size_px=32, is_cut=False)
    assert whole.shape == (1, 32, 56, 3)
    cut = decode_frames(path, [2], decoder=decoder, size_px=32)
    np.testing.assert_array_equal(cut, whole[:, :, 12:44])
