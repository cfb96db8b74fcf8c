"""What a store of the former rule of frames is still worth: suspects named, the rest taken over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import decord
import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.decode import name_decoder
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.probe import probe
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StorePlan, StoreWriter, housekeeping, open_store
from dsts_pipeline.feature_store.housekeeping import find_earlier_maps, find_suspects
from tests.clips.encodings import Encoding, write_encoding
from tests.extract.small_set import PoolingBackbone
from tests.feature_store.small_store import read_tree

SOUND = Encoding("libx264", "mp4", num_frames=30, gop_size=10, num_b_frames=2)
OPEN = replace(SOUND, groups="open", num_frames=50)
CUT = replace(SOUND, cut_at=7, gop_size=30, num_b_frames=0)
FILES = [SOUND] * 8 + [OPEN, SOUND, SOUND, CUT, SOUND, SOUND]
SETTINGS = BackboneSettings(num_decode_workers=0, batch_size=3)
SUSPECT = ("clip08", "clip11")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, encoding in enumerate(FILES):
        write_encoding(folder / f"clip{number:02d}.mp4", replace(encoding, seed=number))
    return folder


def index_of(root: Path) -> ClipIndex:
    clips = []
    for number, path in enumerate(sorted(root.glob("clip*.mp4"))):
        info = probe(path)
        clips.append(
            Clip(
                path.stem,
                path.name,
                number % 2,
                "train" if number < 10 else "test",
                num_frames=info.num_frames,
                start_frame=0,
                end_frame=info.num_frames,
                size_bytes=path.stat().st_size,
                sha256=sha256_file(path),
                codec=info.codec,
                width_px=info.width,
                height_px=info.height,
                container=info.container,
                gop=info.gop,
                num_hidden=info.num_hidden,
            )
        )
    return ClipIndex("small", str(root), ("a", "b"), (), (), tuple(clips))


def decode_as_formerly(job):
    """decord's random access, whatever the file is."""
    reader = decord.VideoReader(job.path, num_threads=1)
    frames = reader.get_batch(list(job.views[0].indices)).asnumpy()
    top = (frames.shape[2] - 64) // 2
    return frames[None, :, ::2, top : top + 64 : 2]


def write_store(folder: Path, index: ClipIndex, views: ViewPlan, **changes) -> Path:
    parts = {"backbone": "pooling"} | views.describe() | changes.pop("parts", {})
    plan = plan_of(index, views, parts)
    with StoreWriter(folder, plan) as writer:
        summary = extract_features(views, PoolingBackbone(), writer, SETTINGS, **changes)
        assert not summary.failures
        return writer.finish({}).parent


def plan_of(index: ClipIndex, views: ViewPlan, parts) -> StorePlan:
    return StorePlan(
        parts,
        clips=views.samples,
        class_names=index.class_names,
        map_shape=PoolingBackbone.map_shape,
        samples_per_shard=4,
        frames=views.frames,
    )


@pytest.fixture(scope="module")
def former(root, tmp_path_factory):
    """A store as it was made before: packets counted, decord asked for every frame."""
    index = index_of(root)
    counted = tuple(housekeeping._count_packets(clip) for clip in index.clips)
    index = replace(index, clips=tuple(replace(clip, gop="") for clip in counted))
    views = ViewPlan(index, PoolingBackbone())
    return write_store(
        tmp_path_factory.mktemp("former"),
        index,
        views,
        parts={"decoder": name_decoder("decord")},
        decode=decode_as_formerly,
    )


def test_the_suspect_clips_of_a_former_store_are_named(root, former):
    assert find_suspects(open_store(former), index_of(root)) == SUSPECT


def test_a_store_made_now_has_no_suspects(root, tmp_path):
    index = index_of(root)
    views = ViewPlan(index, PoolingBackbone())
    store = open_store(write_store(tmp_path, index, views))
    assert store.manifest["made_of"]["decoder"].startswith("auto (decord ")
    assert find_suspects(store, index) == ()


def test_suspects_alone_are_made_again_and_the_bytes_are_those_of_a_new_store(
    root, former, tmp_path
):
    index = index_of(root)
    views = ViewPlan(index, PoolingBackbone())
    fresh = write_store(tmp_path / "fresh", index, views)
    plan = plan_of(index, views, {"backbone": "pooling"} | views.describe())
    known = find_earlier_maps(open_store(former), views, plan)
    assert len(known.rows) == len(FILES) - len(SUSPECT)
    with StoreWriter(tmp_path / "renewed", plan) as writer:
        summary = extract_features(
            views,
            PoolingBackbone(),
            writer,
            SETTINGS,
            earlier=known,
            decode=_decode_suspects_alone,
        )
        renewed = writer.finish({}).parent
    assert not summary.failures
    # The former decode of this test scales by dropping pixels; compare what was made now, and that
    # what was taken over is what the former store holds.
    new, old = open_store(renewed), open_store(former)
    for row, clip_id in enumerate(new.video_ids):
        source = open_store(fresh) if clip_id in SUSPECT else old
        np.testing.assert_array_equal(
            new.read([row])[0], source.read([source.video_ids.index(clip_id)])[0]
        )
    assert renewed.name == fresh.name


def _decode_suspects_alone(job):
    from dsts_pipeline.extract.decode_pool import decode_clip

    assert Path(job.path).stem in SUSPECT
    return decode_clip(job)


def test_taking_over_everything_sound_gives_a_fresh_stores_bytes(root, tmp_path):
    """As above, where the former maps were scaled as now: not a byte differs."""
    index = index_of(root)
    views = ViewPlan(index, PoolingBackbone())
    fresh = write_store(tmp_path / "fresh", index, views)
    former = write_store(
        tmp_path / "former", index, views, parts={"decoder": name_decoder("decord")}
    )
    plan = plan_of(index, views, {"backbone": "pooling"} | views.describe())
    known = find_earlier_maps(open_store(former), views, plan)
    renewed = write_store(tmp_path / "renewed", index, views, earlier=known)
    assert len(known.rows) == len(FILES) - len(SUSPECT)
    assert read_tree(renewed) == read_tree(fresh)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone": "another"}, "made with another backbone"),
        ({"decoder": "pyav 18.1.0"}, "not made by decord under the former rule"),
        (
            {"clips": {"dataset": "small", "digest": "0" * 64}},
            "clips are not those of the clip index.* run `python cli.py extract`",
        ),
    ],
)
def test_a_store_of_something_else_is_refused(root, tmp_path, change, message):
    index = index_of(root)
    views = ViewPlan(index, PoolingBackbone())
    parts = {"decoder": name_decoder("decord")} | change
    store = open_store(write_store(tmp_path, index, views, parts=parts))
    plan = plan_of(index, views, {"backbone": "pooling"} | views.describe())
    with pytest.raises(StoreError, match=message):
        find_earlier_maps(store, views, plan)


def test_stores_whose_frames_can_differ_have_another_fingerprint(root):
    index = index_of(root)
    sound = replace(index, clips=tuple(c for c in index.clips if c.id not in SUSPECT))
    named = {
        (decoder, len(of.clips)): ViewPlan(of, PoolingBackbone(), decoder=decoder).describe()[
            "decoder"
        ]
        for decoder in ("auto", "decord", "pyav")
        for of in (index, sound)
    }
    decord_alone = name_decoder("decord")
    assert named["auto", len(sound.clips)] == named["decord", len(sound.clips)] == decord_alone
    assert named["auto", len(index.clips)] not in (decord_alone, name_decoder("pyav"))
    assert named["decord", len(index.clips)] == f"{decord_alone} (exact frames only)"
    assert named["pyav", len(index.clips)] == named["pyav", len(sound.clips)] == "pyav 18.1.0"
