"""Several maps of a clip: which frames, which squares, which changes, and that they repeat."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import (
    AugmentationSettings,
    BackboneSettings,
    DatasetSettings,
    ViewSettings,
)
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.augmentation import Augmentation, augment, rand_augment
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.forward import Computing, choose_computing
from dsts_pipeline.extract.pipelines import Pipeline, cut_square
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import (
    ViewPlan,
    Views,
    choose_views,
    cut_of_first_view,
    cut_segment,
)
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.clips.videos import write_video
from tests.extract.small_set import PoolingBackbone, index_clips, plan_store, write_clips
from tests.feature_store.small_store import read_tree

STRONG = Augmentation(crop="multi_scale", flip=0.5, color_jitter=0.4, rand_augment=7.0, erasing=0.5)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, 9)
    write_video(root / "clip8.mp4", num_frames=13, size=(96, 48), seed=8)  # a wide test clip
    return index_clips(root)


def _plan(index, **views) -> ViewPlan:
    return ViewPlan(index, PoolingBackbone(), Views(**views))


def _frames(plan: ViewPlan, position: int) -> np.ndarray:
    """What a decode process makes of one row, uint8 [T, H, W, 3]."""
    (job,) = plan.jobs([position])
    return decode_clip(job)[0]


def test_a_row_for_every_view_and_the_views_of_a_clip_together(index):
    plan = _plan(index, train=2, test_clips=2, test_crops=3)
    assert [sample[3] for sample in plan.samples] == [*[0, 1] * 2, *range(6)] * 3
    assert [sample[0] for sample in plan.samples[:10]] == ["clip0"] * 2 + ["clip1"] * 2 + [
        "clip2"
    ] * 6
    assert plan.frames.shape == (len(plan.rows), 8)


def test_one_plain_view_is_what_a_store_without_views_holds(index):
    plan = _plan(index)
    assert plan.samples == [(clip.id, clip.label, clip.split, 0) for clip in index.clips]
    assert "views" not in plan.describe()
    clip = index.clips[3]
    numbers = clip.start_frame + uniform_frames(clip.end_frame - clip.start_frame, 8)
    np.testing.assert_array_equal(plan.frames[3], numbers)
    expected = decode_frames(Path(index.root) / clip.path, numbers, size_px=32)
    np.testing.assert_array_equal(_frames(plan, 3), expected)


def test_samples_of_a_test_clip_interleave_to_finer_segments(index):
    plan = _plan(index, test_clips=3)
    rows = [number for number, row in enumerate(plan.rows) if row.clip == 2]
    clip = index.clips[2]
    together = np.sort(plan.frames[rows].ravel())
    expected = clip.start_frame + uniform_frames(clip.end_frame - clip.start_frame, 24)
    np.testing.assert_array_equal(together, expected)


def test_crops_lie_left_in_the_middle_and_right(index):
    plan = _plan(index, test_crops=3)
    rows = [number for number, row in enumerate(plan.rows) if row.clip == 8]
    whole = decode_frames(
        Path(index.root) / "clip8.mp4", plan.frames[rows[0]], size_px=32, is_cut=False
    )
    assert whole.shape[2] == 64
    for row, left in zip(rows, (0, 16, 32), strict=True):
        np.testing.assert_array_equal(_frames(plan, row), whole[:, :, left : left + 32])


def test_the_manifest_tells_the_square_of_the_first_view(index):
    assert cut_of_first_view(_plan(index).describe()) == (1.0, 1, False)
    plan = _plan(index, test_crops=3)
    share, crop, squeezes = cut_of_first_view(plan.describe())
    assert not squeezes
    row = next(number for number, row in enumerate(plan.rows) if row.clip == 8)
    whole = decode_frames(Path(index.root) / "clip8.mp4", plan.frames[row])
    cut = cut_square(whole, round(share * min(whole.shape[1:3])), crop)
    np.testing.assert_array_equal(cut, whole[:, :, :48])  # whose scaled form is the view's
    pipeline = {"crop_px": 224, "resize_px": 256}
    assert cut_of_first_view({"input_pipeline": pipeline}) == (0.875, 1, False)
    squeezed = Pipeline("dense", {}, 4, resize_px=256, size_px=224, squeezes=True).describe()
    assert cut_of_first_view({"input_pipeline": squeezed}) == (0.875, 1, True)


def test_views_of_one_clip_are_decoded_in_one_job_cut_where_a_shard_ends(index):
    plan = _plan(index, train=1, test_clips=2, test_crops=3)
    jobs = list(plan.jobs(range(0, 5)))
    assert [Path(job.path).stem for job in jobs] == ["clip0", "clip1", "clip2"]
    assert [len(job.views) for job in jobs] == [1, 1, 3]
    rest = list(plan.jobs(range(5, 9)))
    assert [len(job.views) for job in rest] == [3, 1]
    whole = decode_clip(next(plan.jobs(range(2, 8))))
    np.testing.assert_array_equal(
        whole, np.concatenate([decode_clip(jobs[2]), decode_clip(rest[0])])
    )


@pytest.mark.slow
def test_augmented_views_differ_from_each_other_and_repeat_exactly(index):
    plan = _plan(index, train=3, augmentation=STRONG)
    views = [_frames(plan, row) for row in range(3)]
    assert all(view.shape == (8, 32, 32, 3) and view.dtype == np.uint8 for view in views)
    assert len({view.tobytes() for view in views}) == 3
    np.random.seed(1)
    expected_next = np.random.RandomState(1).rand()
    again = decode_clip(next(_plan(index, train=3, augmentation=STRONG).jobs([0, 1, 2])))
    np.testing.assert_array_equal(again, np.stack(views))
    assert np.random.rand() == expected_next, "the global stream is left as it was"
    other = _frames(_plan(index, train=3, augmentation=STRONG, seed=1), 0)
    assert not np.array_equal(other, views[0])


@pytest.mark.slow
def test_test_clips_are_never_augmented(index):
    plain, changed = _plan(index), _plan(index, augmentation=STRONG)
    np.testing.assert_array_equal(_frames(plain, 2), _frames(changed, 2))
    assert not np.array_equal(_frames(plain, 0), _frames(changed, 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"crop": "multi_scale"},
        {"crop": "resized"},
        {"color_jitter": 0.4},
        {"rand_augment": 9.0},
        {"erasing": 1.0},
    ],
)
def test_every_change_does_something_and_treats_all_frames_alike(changes):
    rng = np.random.default_rng(0)
    still = np.repeat(rng.integers(0, 256, (1, 40, 56, 3), dtype=np.uint8), 4, axis=0)
    plain = augment(still, Augmentation(), 32, seed=0, is_flipped=False)
    np.testing.assert_array_equal(plain, still[:, 4:36, 12:44])
    results = []
    for seed in range(4):
        view = augment(still, Augmentation(**changes), 32, seed=seed, is_flipped=False)
        assert all(np.array_equal(frame, view[0]) for frame in view)
        results.append(view)
    assert sum(not np.array_equal(view, plain) for view in results) >= 3
    mirrored = augment(still, Augmentation(), 32, seed=0, is_flipped=True)
    np.testing.assert_array_equal(mirrored, plain[:, :, ::-1])


@pytest.mark.slow
def test_crops_and_colours_are_mmaction2s_own():
    import random

    from dsts_pipeline.extract.mmaction_compat import import_mmaction

    import_mmaction()
    from mmaction.datasets.transforms.processing import ColorJitter, MultiScaleCrop, Resize

    frames = np.random.default_rng(0).integers(0, 256, (3, 40, 56, 3), dtype=np.uint8)
    random.seed(5)
    np.random.seed(5)
    results = {"imgs": list(frames), "img_shape": (40, 56), "modality": "RGB"}
    results = MultiScaleCrop(
        32, scales=(1, 0.875, 0.75, 0.66), max_wh_scale_gap=1, num_fixed_crops=13
    )(results)
    results = Resize((32, 32), keep_ratio=False)(results)
    results = ColorJitter(0.4, 0.4, 0.4, 0.0)(results)
    chosen = Augmentation(crop="multi_scale", color_jitter=0.4)
    found = augment(frames, chosen, 32, seed=5, is_flipped=False)
    np.testing.assert_array_equal(found, np.stack(results["imgs"]))


def test_random_operations_at_no_strength_are_mostly_none_and_bad_strengths_refused():
    images = [np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)] * 2
    results = [rand_augment(images, 0.0, np.random.default_rng(seed))[0] for seed in range(30)]
    assert sum(np.array_equal(result, images[0]) for result in results) > 10
    with pytest.raises(ValueError, match="expected 0 to 10"):
        rand_augment(images, 11.0, np.random.default_rng(0))


def test_mirrored_views_have_the_label_of_what_they_show(index):
    mapped = FlipRule("label_mapped", ((0, 1),))
    flips = Augmentation(flip=0.5)
    plan = _plan(index, train=8, augmentation=flips, flips=mapped)
    swapped = 0
    for row in plan.rows:
        clip = index.clips[row.clip]
        flipped = plan.frame_view(row).is_flipped
        assert row.label == (1 - clip.label if flipped else clip.label)
        assert not (flipped and clip.split == "test")
        swapped += flipped
    assert 10 < swapped < 38  # of 48 training views
    kept = _plan(index, train=8, augmentation=flips)
    assert all(row.label == index.clips[row.clip].label for row in kept.rows)


def test_mirroring_is_refused_where_a_mirrored_clip_has_no_class(index):
    with pytest.raises(SettingsError, match=r"dataset\.flip is forbidden"):
        _plan(index, augmentation=Augmentation(flip=0.5), flips=FlipRule("forbidden"))


@pytest.mark.parametrize(
    "wrong", [{"train": 0}, {"test_clips": 0}, {"test_crops": 2}, {"segments": 0}]
)
def test_counts_that_make_no_sense_are_refused(index, wrong):
    with pytest.raises(ValueError, match="expected at least 1, 1, and 1 or 3"):
        _plan(index, **wrong)


def test_frames_too_small_for_the_square_are_a_reason(index):
    (job,) = _plan(index).jobs([0])
    with pytest.raises(Exception, match="frames of 24 x 24 px are too small"):
        decode_clip(replace(job, resize_px=24, decoder="pyav"))


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "batch_size"), [(0, 64), (2, 5)])
def test_a_store_of_views_is_the_same_whoever_makes_it(index, tmp_path, workers, batch_size):
    views = Views(train=2, test_clips=2, test_crops=3, augmentation=STRONG)
    plan = ViewPlan(index, PoolingBackbone(), views)
    stored = replace(
        plan_store(index),
        clips=plan.samples,
        frames=plan.frames,
        fingerprint_parts=plan.describe(),
    )
    with StoreWriter(tmp_path, stored) as writer:
        summary = extract_features(
            plan,
            PoolingBackbone(),
            writer,
            BackboneSettings(num_decode_workers=workers, batch_size=batch_size),
        )
        store = open_store(writer.finish({}).parent)
    assert summary.num_clips == len(plan.rows) == 30
    assert list(store.video_ids) == [sample[0] for sample in plan.samples]
    maps = store.read(range(30))
    for position in range(30):
        frames = torch.from_numpy(_frames(plan, position))[None]
        expected = PoolingBackbone()(frames)[0].numpy().astype(np.float16)
        np.testing.assert_array_equal(maps[position], expected)
    assert len(read_tree(store.path)) > 10


def test_all_views_of_a_broken_clip_fail_and_the_clip_counts_once(index, tmp_path):
    views = Views(test_clips=2)
    clips = list(index.clips)
    clips[2] = replace(clips[2], sha256="0" * 64)
    broken = replace(index, clips=tuple(clips))
    plan = ViewPlan(broken, PoolingBackbone(), views)
    stored = replace(plan_store(broken), clips=plan.samples, fingerprint_parts=plan.describe())
    with StoreWriter(tmp_path, stored) as writer:
        extract_features(
            plan,
            PoolingBackbone(),
            writer,
            BackboneSettings(num_decode_workers=0, max_failed_fraction=1 / 9),
        )
        store = open_store(writer.finish({}).parent)
    assert [failure["id"] for failure in store.manifest["failures"]] == ["clip2"] * 2
    assert len(store) == len(plan.rows) - 2


@pytest.mark.slow
@pytest.mark.parametrize("num_crops", [1, 3])
@pytest.mark.parametrize("decoder", ["decord", "pyav"])
def test_views_by_a_zoo_models_pipeline_are_those_of_its_own_transforms(
    tmp_path, decoder, num_crops
):
    """mmaction2's SampleFrames, Resize and crops on the frames of the file, pixel by pixel."""
    from dsts_pipeline.extract.mmaction_compat import import_mmaction
    from dsts_pipeline.extract.pipelines import Pipeline

    import_mmaction()
    from mmaction.datasets.transforms.loading import SampleFrames
    from mmaction.datasets.transforms.processing import CenterCrop, Resize, ThreeCrop

    path = write_video(tmp_path / "clip0.mp4", num_frames=10, size=(120, 80))
    index = index_clips(tmp_path)
    index = replace(index, clips=(replace(index.clips[0], split="test", start_frame=0),))
    options = {"clip_len": 4, "frame_interval": 2, "num_clips": 1, "out_of_bound": "loop"}

    class Input:
        pipeline = Pipeline("dense", options, num_frames=4, resize_px=32, size_px=32)
        num_frames, size_px, resize_px = 4, 32, 32

    plan = ViewPlan(index, Input(), Views(test_clips=2, test_crops=num_crops), decoder=decoder)
    ((job,), whole) = (
        list(plan.jobs(range(len(plan.rows)))),
        decode_frames(path, range(10), decoder=decoder),
    )
    views = decode_clip(job)
    np.random.seed(0)
    results = {"total_frames": 10, "start_index": 0}
    results = SampleFrames(clip_len=4, frame_interval=2, num_clips=2, test_mode=True)(results)
    results |= {
        "imgs": list(whole[results["frame_inds"]]),
        "img_shape": (80, 120),
        "modality": "RGB",
    }
    results = Resize((-1, 32))(results)
    results = (CenterCrop if num_crops == 1 else ThreeCrop)(32)(results)
    theirs = np.stack(results["imgs"]).reshape(-1, 4, 32, 32, 3)
    assert {view.tobytes() for view in views} == {view.tobytes() for view in theirs}
    assert len(views) == len(theirs) == 2 * num_crops


def test_plain_records_have_the_defaults_of_their_sections():
    """Decode processes are sent these, and need no pydantic for it."""
    section = ViewSettings()
    assert asdict(Augmentation()) == AugmentationSettings().model_dump()
    assert Augmentation(**section.augmentation.model_dump()) == Augmentation()
    names = ("train", "test_clips", "test_crops", "segments", "seed")
    plain = {name: getattr(Views(), name) for name in names}
    assert plain == section.model_dump(exclude={"augmentation"})
    assert Computing() == choose_computing(BackboneSettings())


# ---- segments: stretches of a clip that follow one another --------------------------------------


def test_every_segment_is_sampled_as_though_it_were_a_clip(index):
    plan = _plan(index, train=2, test_clips=2, test_crops=3, segments=3)
    assert [len([row for row in plan.rows if row.clip == n]) for n in range(3)] == [6, 6, 18]
    for position, row in enumerate(plan.rows):
        clip = index.clips[row.clip]
        length = clip.end_frame - clip.start_frame
        number, segment = divmod(row.view, 3)
        first, end = segment * length // 3, (segment + 1) * length // 3
        sample = number // 3 if clip.split == "test" else number
        of_segment = uniform_frames(end - first, 16)[sample::2]
        np.testing.assert_array_equal(plan.frames[position], clip.start_frame + first + of_segment)
        if clip.split == "test":
            assert plan.frame_view(row).crop == (0, 1, 2)[number % 3]
    together = [plan.frames[n] for n, row in enumerate(plan.rows) if row.clip == 2][0:3]
    assert (np.diff(np.concatenate(together)) >= 0).all(), "one after another in time"


def test_a_clip_of_fewer_frames_than_segments_has_them_all_the_same():
    spans = [cut_segment(3, 5, number) for number in range(5)]
    assert spans == [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1)]
    for num_frames in (1, 7, 64):
        ends = [sum(cut_segment(num_frames, 4, number)) for number in range(4)]
        assert ends[-1] == num_frames and min(ends) >= 1


def test_segments_of_a_training_view_are_augmented_alike_and_their_frames_drawn_apart(index):
    plan = _plan(index, train=4, segments=2, augmentation=STRONG)
    alone = _plan(index, train=4, augmentation=STRONG)
    of_clip = [plan.frame_view(row) for row in plan.rows if row.clip == 0]
    ours = [(view.seed, view.is_flipped) for view in of_clip]
    assert ours[0::2] == ours[1::2]
    own = [alone.frame_view(row) for row in alone.rows if row.clip == 0]
    assert ours[0::2] == [(view.seed, view.is_flipped) for view in own]
    assert len({seed for seed, _ in ours}) == 4
    clip = index.clips[0]
    middle = clip.start_frame + (clip.end_frame - clip.start_frame) // 2
    assert max(max(view.indices) for view in of_clip[0::2]) < middle
    assert min(min(view.indices) for view in of_clip[1::2]) >= middle
    assert len({view.indices for view in of_clip[0::2]}) > 1
    flips = FlipRule("label_mapped", ((0, 1),))
    mapped = _plan(index, train=4, segments=2, augmentation=STRONG, flips=flips)
    labels = [row.label for row in mapped.rows if row.clip == 0]
    assert labels[0::2] == labels[1::2] and len(set(labels)) == 2


def test_segments_are_named_where_there_are_several(index):
    assert "views" not in _plan(index, segments=1).describe()
    assert "segments" not in _plan(index, test_crops=3).describe()["views"]
    assert _plan(index, segments=2).describe()["views"]["segments"] == 2
    settings = BackboneSettings(views=ViewSettings(segments=4))
    assert choose_views(settings, DatasetSettings()).segments == 4
