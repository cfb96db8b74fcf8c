"""Two hundred clips of every kind through the command line: none lost, replaced or made up."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from dsts_pipeline.base.files import read_json
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.probe import VideoError
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.feature_store import open_store
from tests.extract.bad_clips import GOOD, REASONS, has_duration, kind_of, write_folder, write_kinds
from tests.pipeline import WEIGHTS, run_cli

pytestmark = pytest.mark.long
SETTINGS = {
    "dataset__name": "odd",
    "backbone__weights": WEIGHTS,
    "backbone__size_px": 32,
    "backbone__num_decode_workers": 2,
    "backbone__clip_timeout_seconds": 5.0,
    "backbone__decoder_fallback": "pyav",
}


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kinds") / "kinds"
    write_kinds(folder)
    return folder


@pytest.fixture(scope="module")
def extracted(kinds, tmp_path_factory):
    """The folder, its index, the finished store and the run that made it."""
    folder = tmp_path_factory.mktemp("run")
    index = write_folder(kinds, folder / "clips")
    index.save(folder / "outputs" / "clips.json")
    run = run_cli(folder, "extract", backbone__max_failed_fraction=0.2, **SETTINGS)
    assert run.returncode == 0, run.stderr
    return folder, index, open_store(folder / read_json(folder / "outputs/features.json")["store"])


def test_the_folder_is_what_it_says(kinds, extracted):
    _, index, _ = extracted
    assert len(index.clips) == 200
    assert not has_duration(kinds / "no_duration.mkv") and has_duration(kinds / "plain0.mp4")


def test_every_good_clip_is_stored_and_every_bad_one_listed_with_its_reason(extracted):
    _, index, store = extracted
    good = tuple(clip.id for clip in index.clips if kind_of(clip.id) in GOOD)
    assert store.video_ids == good and len(good) == sum(GOOD.values())
    reasons = {failure["id"]: failure["reason"] for failure in store.manifest["failures"]}
    assert reasons.keys() == {clip.id for clip in index.clips} - set(good)
    for clip_id, reason in reasons.items():
        expected = REASONS[kind_of(clip_id)][1]
        assert re.match(expected, reason), f"{clip_id}: {reason!r}, expected {expected!r}"
        assert str(index.root) not in reason


def test_every_stored_map_is_that_of_the_clips_own_frames(kinds, extracted):
    _, index, store = extracted
    backbone = build_backbone("stick_r18", weights=WEIGHTS, num_frames=16, size_px=32)
    expected = {}
    for path in kinds.iterdir():
        if path.stem in GOOD:
            num_frames = {"one_frame": 1, "huge": 3}.get(path.stem, 12)
            frames = _decode(path, uniform_frames(num_frames, 16))
            expected[path.stem] = backbone(torch.from_numpy(frames)[None])[0].numpy()
    assert len({maps.tobytes() for maps in expected.values()}) == len(expected)
    maps = store.read(range(len(store)))
    for row, clip_id in enumerate(store.video_ids):
        wanted = expected[kind_of(clip_id)]
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(maps[row], wanted, rtol=2e-3, atol=1e-3 * scale, err_msg=clip_id)


def _decode(path, numbers):
    try:
        return decode_frames(path, numbers, size_px=32)
    except VideoError:
        return decode_frames(path, numbers, size_px=32, decoder="pyav")


def test_the_exit_status_follows_the_threshold(extracted):
    folder, index, store = extracted
    before = (folder / "outputs" / "features.json").read_bytes()
    num_failed = len(index.clips) - len(store)
    run = run_cli(folder, "extract", backbone__max_failed_fraction=0.1, **SETTINGS)
    assert run.returncode == 2
    assert f"{num_failed} of 200 clips have no map, 20 are allowed" in run.stderr
    assert (folder / "outputs" / "features.json").read_bytes() == before
    again = run_cli(folder, "extract", backbone__max_failed_fraction=num_failed / 200, **SETTINGS)
    assert again.returncode == 0, again.stderr


def test_without_the_second_decoder_its_clips_are_failed_and_named(kinds, tmp_path):
    index = write_folder(kinds, tmp_path / "clips")
    only = tuple(c for c in index.clips if kind_of(c.id) in ("rotated", "transport_stream", "tiny"))
    type(index)(**(vars(index) | {"clips": only})).save(tmp_path / "outputs" / "clips.json")
    settings = SETTINGS | {"backbone__decoder": "decord", "backbone__decoder_fallback": "none"}
    run = run_cli(tmp_path, "extract", backbone__max_failed_fraction=1.0, **settings)
    assert run.returncode == 0, run.stderr
    record = read_json(tmp_path / "outputs" / "features.json")
    assert {kind_of(failure["id"]) for failure in record["failures"]} == {
        "rotated",
        "transport_stream",
    }
    reasons = [failure["reason"] for failure in record["failures"]]
    assert all("use the decoder auto or pyav" in reason for reason in reasons)
