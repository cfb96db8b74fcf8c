"""Many clips in one long video: every frame is decoded once, and a clip fails alone."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import replace
from itertools import groupby

import av
import numpy as np
import pytest

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips import decode
from dsts_pipeline.clips.decode import Tally
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.probe import VideoError, probe
from dsts_pipeline.extract.decode_pool import DecodePool, decode_counted
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan, share_file
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from tests.clips.videos import write_video
from tests.extract.small_set import PoolingBackbone, index_clips, write_clips
from tests.feature_store.small_store import read_tree

NUM_FRAMES = 96
GOP = 8  # of `write_video`
LENGTH = 32
STARTS = range(0, NUM_FRAMES - LENGTH + 1, 4)  # 17 clips, each frame in up to eight of them


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ClipIndex:
    """Overlapping clips of one video, listed out of order, and a clip of a second video."""
    root = tmp_path_factory.mktemp("long")
    write_video(root / "long.mp4", num_frames=NUM_FRAMES)
    write_video(root / "short.mp4", num_frames=20, seed=1)
    clips = [_clip(root, "long.mp4", start, start + LENGTH) for start in (*STARTS[8:], *STARTS[:8])]
    clips.insert(5, _clip(root, "short.mp4", 0, 20))
    return ClipIndex("long", str(root), ("a", "b"), (), (), tuple(clips))


def _clip(root, name: str, start: int, end: int) -> Clip:
    info = probe(root / name)
    return Clip(
        id=f"{name}-{start}",
        path=name,
        label=start // 4 % 2,
        split="train" if start < 40 else "test",
        num_frames=info.num_frames,
        start_frame=start,
        end_frame=end,
        size_bytes=(root / name).stat().st_size,
        sha256=sha256_file(root / name),
        gop=info.gop,
        codec=info.codec,
        container=info.container,
        pixel_format=info.pixel_format,
        width_px=info.width,
        height_px=info.height,
        fps=info.fps,
    )


def extract(root, index, *, samples_per_shard=64, decode=decode_counted, decoder="pyav", **values):
    """The store of `index`, and what the run did."""
    views = ViewPlan(index, PoolingBackbone(), decoder=decoder)
    plan = StorePlan(
        fingerprint_parts={"digest": index.digest},
        clips=views.samples,
        class_names=index.class_names,
        map_shape=PoolingBackbone.map_shape,
        samples_per_shard=samples_per_shard,
    )
    chosen = BackboneSettings(**({"num_decode_workers": 0, "max_failed_fraction": 0.5} | values))
    with StoreWriter(root, plan) as writer:
        summary = extract_features(views, PoolingBackbone(), writer, chosen, decode=decode)
        return writer.finish({}).parent, summary


def _needed(index) -> dict[str, set[int]]:
    """By file, the frames from each key frame to the last wanted one before the next key frame."""
    plan = ViewPlan(index, PoolingBackbone())
    needed: dict[str, set[int]] = {}
    for row in plan.rows:
        path = index.clips[row.clip].path
        with av.open(f"{index.root}/{path}") as file:
            packets = [p for p in file.demux(file.streams.video[0]) if p.size]
        times = sorted(packet.pts for packet in packets)
        keys = [times.index(packet.pts) for packet in packets if packet.is_keyframe]
        for wanted in plan.frame_view(row).indices:
            key = max(key for key in keys if key <= wanted)
            needed.setdefault(path, set()).update(range(key, wanted + 1))
    return needed


def test_each_frame_of_a_long_video_is_decoded_once_for_all_its_clips(index, tmp_path, monkeypatch):
    made = []
    decode_packets = decode._decode_packets

    def watch(video, packets, tally):
        for frame in decode_packets(video, packets, tally):
            made.append((str(video.path), frame.pts))
            yield frame

    monkeypatch.setattr(decode, "_decode_packets", watch)
    store, summary = extract(tmp_path / "once", index)
    assert summary.failures == () and summary.num_clips == len(STARTS) + 1
    assert set(Counter(made).values()) == {1}, "no frame twice"
    assert summary.num_decoded == len(made) == sum(map(len, _needed(index).values()))
    assert summary.num_shown == 8 * (len(STARTS) + 1)

    made.clear()
    alone, told = extract(tmp_path / "alone", index, prefetch_bytes=1)
    assert max(Counter(made).values()) >= 8, "clip by clip they are decoded for each"
    assert told.num_decoded == len(made) > 4 * summary.num_decoded
    assert read_tree(alone) == read_tree(store)


def test_decord_reads_each_frame_once_too(index, tmp_path):
    pytest.importorskip("decord")
    by_pyav, first = extract(tmp_path / "a", index)
    by_decord, second = extract(tmp_path / "b", index, decoder="decord")
    assert second.num_decoded == first.num_decoded
    ids = open_store(by_decord).video_ids
    assert ids == open_store(by_pyav).video_ids and len(ids) == len(STARTS) + 1


def test_the_tally_counts_from_the_key_frame_before():
    tally = Tally()
    tally.note_reads(np.array([9, 3, 10, 25]), np.array([0, 8, 16, 24]))
    assert tally.num_frames == 4 + 3 + 2


@pytest.mark.parametrize("values", [{"num_decode_workers": 2}, {"samples_per_shard": 5}])
def test_processes_and_shards_leave_every_map_alone(index, tmp_path, values):
    first, _ = extract(tmp_path / "a", index)
    second, summary = extract(tmp_path / "b", index, **values)
    a, b = open_store(first), open_store(second)
    assert a.video_ids == b.video_ids
    np.testing.assert_array_equal(a.read(range(len(a))), b.read(range(len(b))))
    # Where a shard begins, frames that the one before had, too, are decoded again.
    assert summary.num_decoded <= 4 * (NUM_FRAMES + 20)


def test_clips_share_a_request_within_their_bound(index):
    plan = ViewPlan(index, PoolingBackbone())
    whole = range(len(plan.rows))
    of_clip = 8 * 32 * 32 * 3
    counts = [len(job.parts) for job in plan.jobs(whole, 5 * of_clip)]
    assert counts == [5, 5, 5, 2, 1]
    assert [len(job.parts) for job in plan.jobs(whole, of_clip - 1)] == [1] * 18
    assert all(job.answer_bytes == len(job.parts) * of_clip for job in plan.jobs(whole, 1 << 30))


def test_clips_of_one_file_follow_each_other_in_time(index):
    plan = ViewPlan(index, PoolingBackbone())
    clips = [index.clips[row.clip] for row in plan.rows]
    assert [clip.start_frame for clip in clips] == [*STARTS, 0]
    assert [path for path, _ in groupby(clip.path for clip in clips)] == ["long.mp4", "short.mp4"]


def test_where_each_file_is_one_clip_the_order_is_the_index(tmp_path):
    write_clips(tmp_path, 6)
    own = index_clips(tmp_path)
    own = replace(own, clips=own.clips[3:] + own.clips[:3])
    assert [row.clip for row in ViewPlan(own, PoolingBackbone()).rows] == list(range(6))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("decoder", ["pyav", "auto"])
def test_a_clip_that_fails_leaves_its_neighbours_whole(index, tmp_path, workers, decoder):
    sound, _ = extract(tmp_path / "sound", index, decoder=decoder)
    bad = replace(index.clips[0], id="beyond", start_frame=90, end_frame=90 + LENGTH)
    broken = replace(index, clips=(*index.clips, bad))
    store, summary = extract(
        tmp_path / "broken", broken, decoder=decoder, num_decode_workers=workers
    )
    (failure,) = summary.failures
    assert failure.clip_id == "beyond"
    assert failure.reason == "frame 120 was asked for, it holds 96"
    a, b = open_store(sound), open_store(store)
    assert a.video_ids == b.video_ids
    np.testing.assert_array_equal(a.read(range(len(a))), b.read(range(len(b))))


def test_clips_of_a_file_that_was_replaced_between_them_are_told_from_their_neighbours(index):
    clips = list(index.clips)
    changed = clips.index(next(clip for clip in clips if clip.start_frame == 8))
    clips[changed] = replace(clips[changed], sha256="0" * 64)
    plan = ViewPlan(replace(index, clips=tuple(clips)), PoolingBackbone(), decoder="pyav")
    with DecodePool(0, decode=decode_counted) as pool:
        answers = list(pool.run(plan.jobs(range(5), 1 << 30)))
    told = "its content changed since it was indexed"
    assert [answer.reason for answer in answers] == ["", "", told, "", ""]


def hang_together(job):
    """Never answer clips together; a clip alone is decoded, but for one."""
    if job.shared_by:
        time.sleep(600)
    if job.views[0].indices[0] == 8 + 2:
        raise VideoError(job.path, "refused")
    return decode_counted(job)


def rest_for_each(job):
    """A little under half a second for each clip."""
    time.sleep(0.4 * len(job.parts))
    return decode_counted(job)


@pytest.mark.slow
def test_a_hang_of_all_together_is_ended_and_each_is_tried_alone(index):
    plan = ViewPlan(index, PoolingBackbone(), decoder="pyav")
    shared = list(plan.jobs(range(3), 1 << 30))
    with DecodePool(1, decode=hang_together, clip_timeout_seconds=1.0) as pool:
        began = time.monotonic()
        answers = list(pool.run(shared))
    assert time.monotonic() - began > 3.0, "each of the three has its second"
    assert [answer.reason for answer in answers] == ["", "", "refused"]


@pytest.mark.slow
def test_the_time_limit_is_each_clips(index):
    plan = ViewPlan(index, PoolingBackbone(), decoder="pyav")
    requests = list(plan.jobs(range(3)))
    with DecodePool(1, decode=rest_for_each, clip_timeout_seconds=0.9) as pool:
        answers = list(pool.run([share_file(requests)]))
    assert [answer.frames is not None for answer in answers] == [True] * 3
    assert answers[0].num_decoded and not answers[1].num_decoded, "they were read at once"
