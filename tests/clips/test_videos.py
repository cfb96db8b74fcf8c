"""Looking at many video files: each once, side by side, whatever becomes of a process."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import videos
from dsts_pipeline.clips.videos import MISSING, OUTSIDE, ProbeCache, look_at_videos
from tests.clips.videos import write_video


@pytest.fixture
def root(tmp_path):
    for number in range(5):
        write_video(tmp_path / f"root/{number}.mp4", num_frames=4 + number, seed=number)
    (tmp_path / "root/text.mp4").write_text("no video")
    (tmp_path / "outside.mp4").write_bytes((tmp_path / "root/0.mp4").read_bytes())
    (tmp_path / "root/link.mp4").symlink_to(tmp_path / "outside.mp4")
    return tmp_path / "root"


NAMES = [*(f"{number}.mp4" for number in range(5)), "text.mp4", "link.mp4", "gone.mp4"]


def look(root, names, path=None, **options):
    return look_at_videos(root, names, cache_path=path, **options)


def test_each_file_is_found_as_it_is(root):
    found = look(root, NAMES)
    assert list(found) == NAMES
    assert [found[f"{n}.mp4"].info.num_frames for n in range(5)] == [4, 5, 6, 7, 8]
    assert found["text.mp4"].reason.startswith("FFmpeg")
    assert (found["link.mp4"].reason, found["gone.mp4"].reason) == (OUTSIDE, MISSING)
    outside = look(root, NAMES, allow_outside=True)["link.mp4"]
    assert outside.sha256 == found["0.mp4"].sha256


def test_processes_find_what_one_finds_and_what_they_find_is_remembered(
    root, tmp_path, monkeypatch, capfd
):
    alone = look(root, NAMES)
    monkeypatch.setattr(videos, "_MIN_FOR_PROCESSES", 1)
    monkeypatch.setattr(videos, "_FILES_A_TASK", 2)
    assert look(root, NAMES, num_workers=2, path=tmp_path / "cache") == alone
    monkeypatch.setattr(videos, "_look", None)  # nothing is read again
    capfd.readouterr()
    assert look(root, NAMES, num_workers=2, path=tmp_path / "cache") == alone
    assert "6 known" in capfd.readouterr().err


def test_a_file_of_several_names_is_read_once(root, monkeypatch):
    names = [f"name{number}.mp4" for number in range(40)]
    for name in names:
        os.link(root / "0.mp4", root / name)
    read = []
    original = videos._look
    monkeypatch.setattr(videos, "_look", lambda path: read.append(path) or original(path))
    found = look(root, ["0.mp4", "1.mp4", *names])
    assert len(read) == 2
    assert {found[name].sha256 for name in names} == {found["0.mp4"].sha256}


def test_a_changed_file_is_read_again(root, tmp_path):
    cache = tmp_path / "cache"
    before = look(root, ["0.mp4"], path=cache)["0.mp4"]
    write_video(root / "0.mp4", num_frames=9)
    after = look(root, ["0.mp4"], path=cache)["0.mp4"]
    assert (before.info.num_frames, after.info.num_frames) == (4, 9)


def die(paths):
    if any(Path(path).name == "3.mp4" for path in paths):
        os._exit(9)
    return [videos._look(path) for path in paths]


def test_a_process_that_dies_is_told_and_nothing_found_is_lost(root, tmp_path, monkeypatch):
    monkeypatch.setattr(videos, "_MIN_FOR_PROCESSES", 1)
    monkeypatch.setattr(videos, "_FILES_A_TASK", 1)
    monkeypatch.setattr(videos, "_look_at_some", die)
    with pytest.raises(DataError, match=r"died, at .*\.mp4 or one of the next 1") as caught:
        look(root, NAMES, num_workers=2, path=tmp_path / "cache")
    assert "num_probe_workers=1" in str(caught.value)
    with ProbeCache(tmp_path / "cache") as cache:
        known = [name for name in NAMES[:5] if cache.find(root / name)]
    assert known == NAMES[: len(known)]
    monkeypatch.undo()
    assert look(root, NAMES, path=tmp_path / "cache")["4.mp4"].info.num_frames == 8


def test_times_of_a_varying_rate_are_remembered(root, tmp_path):
    write_video(root / "vfr.mp4", num_frames=6, duration_ticks=lambda number: 1 + number % 3)
    cache = tmp_path / "cache"
    first = look(root, ["vfr.mp4"], path=cache)["vfr.mp4"]
    assert len(first.info.times_seconds) == 6
    again = look(root, ["vfr.mp4"], path=cache)["vfr.mp4"]
    assert again == first and replace(again.info, times_seconds=()) != first.info
