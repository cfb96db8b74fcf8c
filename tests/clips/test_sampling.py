"""Sampling rules equal their sources, by their own code where it can be imported."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsts_pipeline.clips import sampling
from dsts_pipeline.clips.sampling import (
    SAMPLERS,
    jitter_generator,
    sample_centres,
    sample_dense,
)

NUM_RANDOM = 3000


def build_sampler(name, **options):
    """The rule `name` with these options, as a function of the number of frames."""
    return lambda num_frames, generator=None: SAMPLERS[name](
        num_frames, generator=generator, **options
    )


@pytest.fixture(scope="module")
def loading():
    """mmaction2's module of sampling transforms."""
    from dsts_pipeline.extract.mmaction_compat import import_mmaction

    import_mmaction()
    from mmaction.datasets.transforms import loading

    return loading


def theirs(transform, num_frames, fps=None):
    results = {"total_frames": num_frames, "start_index": 0, "avg_fps": fps}
    return transform.transform(results)["frame_inds"]


def feed(monkeypatch, seed):
    """Let np.random draw what `default_rng(seed)` draws."""
    generator = np.random.default_rng(seed)

    def randint(low, high=None, size=None):
        return generator.integers(int(low), None if high is None else int(high), size=size)

    monkeypatch.setattr(np.random, "randint", randint)
    monkeypatch.setattr(np.random, "uniform", generator.uniform)


def draw_options(rng, *, training):
    """Options of SampleFrames in mmaction2's names, as far as it can do with them."""
    clip_len = int(rng.choice([1, 1, 4, 8, 16, 32]))
    num_clips = int(rng.integers(1, 11))
    options = {
        "clip_len": clip_len,
        "num_clips": num_clips,
        "frame_interval": int(rng.integers(1, 9)),
        "out_of_bound_opt": str(rng.choice(["loop", "repeat_last"])),
        "twice_sample": bool(rng.integers(2)) and (clip_len == 1 or num_clips > 1),
    }
    if training:
        options |= {"temporal_jitter": bool(rng.integers(2))}
        options |= {"keep_tail_frames": bool(rng.integers(2))}
    elif rng.random() < 0.3:
        options["target_fps"] = int(rng.integers(5, 40))
    return options


def ours(options):
    """The same options in our names."""
    named = dict(options)
    named["out_of_bound"] = named.pop("out_of_bound_opt")
    return named


@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
def test_dense_equals_mmactions_sample_frames(loading, monkeypatch, training):
    rng = np.random.default_rng(20261122)
    for n in range(NUM_RANDOM):
        options = draw_options(rng, training=training)
        num_frames = int(rng.integers(1, 400 if n % 2 else 40))
        fps = None if rng.random() < 0.3 else float(rng.uniform(5, 60))
        if training:
            feed(monkeypatch, n)
        expected = theirs(loading.SampleFrames(**options, test_mode=not training), num_frames, fps)
        generator = np.random.default_rng(n) if training else None
        found = sample_dense(num_frames, **ours(options), fps=fps, generator=generator)
        rows = options["num_clips"] * (2 if options["twice_sample"] and not training else 1)
        assert found.shape == (rows, options["clip_len"]) and found.dtype == np.int64
        assert found.ravel().tolist() == expected.tolist(), (num_frames, fps, options)


@pytest.mark.parametrize("training", [False, True], ids=["test", "training"])
def test_uniform_equals_mmactions_uniform_sample(loading, monkeypatch, training):
    rng = np.random.default_rng(7)
    for n in range(NUM_RANDOM):
        options = {"clip_len": int(rng.integers(1, 65)), "num_clips": int(rng.integers(1, 6))}
        num_frames = int(rng.integers(1, 400 if n % 2 else 40))
        if training:
            feed(monkeypatch, n)
        expected = theirs(loading.UniformSample(**options, test_mode=not training), num_frames)
        generator = np.random.default_rng(n) if training else None
        found = build_sampler("mmaction_uniform", **options)(num_frames, generator)
        assert found.shape == (1 if training else options["num_clips"], options["clip_len"])
        assert found.ravel().tolist() == expected.tolist(), (num_frames, options)


# ---- the rules by hand, where their source cannot be imported ----------------------------------


def swin_by_hand(num_frames, clip_len):
    """The rule's words, one segment at a time, in exact halves: round half to even."""
    bounds = []
    for i in range(clip_len + 1):
        whole, rest = divmod((num_frames - 1) * i, clip_len)
        up = 2 * rest > clip_len or (2 * rest == clip_len and whole % 2 == 1)
        bounds.append(whole + up)
    return bounds


def test_swin_uniform_by_its_rule():
    for num_frames in range(1, 200):
        for clip_len in (1, 8, 16, 32):
            bounds = swin_by_hand(num_frames, clip_len)
            found = build_sampler("swin_uniform", clip_len=clip_len)(num_frames)
            middles = [(a + b) // 2 for a, b in zip(bounds, bounds[1:], strict=False)]
            assert found.tolist() == [middles]


@pytest.mark.parametrize("name", ["swin_uniform", "mmaction_uniform"])
def test_training_takes_every_frame_of_a_segment_equally_often(name):
    sample = build_sampler(name, clip_len=4)
    generator = np.random.default_rng(0)
    drawn = np.concatenate([sample(33, generator) for _ in range(9000)])
    for segment, column in enumerate(drawn.T):
        frames, counts = np.unique(column, return_counts=True)
        assert frames.tolist() == list(range(8 * segment, 8 * segment + 9))  # both ends included
        assert counts.min() > 850 and counts.max() < 1150  # 1000 expected, 5 deviations of 30


@pytest.mark.parametrize(
    ("name", "options", "num_frames", "expected"),
    [
        # 9 frames, 8 segments of length 1: start and end are next to each other.
        ("swin_uniform", {"clip_len": 8}, 9, [0, 1, 2, 3, 4, 5, 6, 7]),
        ("swin_uniform", {"clip_len": 4}, 1, [0, 0, 0, 0]),
        ("swin_uniform", {"clip_len": 2}, 11, [2, 7]),
        ("mmaction_uniform", {"clip_len": 2}, 11, [2, 7]),
        ("mmaction_uniform", {"clip_len": 2, "num_clips": 4}, 11, [1, 6, 2, 7, 3, 8, 4, 9]),
        # SlowOnly 8 x 8 reaches over 57 frames; the middle start of 100 is 21.
        ("dense", {"clip_len": 8, "frame_interval": 8}, 100, [21, 29, 37, 45, 53, 61, 69, 77]),
        ("dense", {"clip_len": 2, "num_clips": 3}, 11, [0, 1, 4, 5, 9, 10]),  # 4.5 rounds to 4
        ("dense", {"clip_len": 4}, 3, [0, 1, 2, 0]),
        ("dense", {"clip_len": 4, "out_of_bound": "repeat_last"}, 3, [0, 1, 2, 2]),
        ("segment_centres", {"clip_len": 4}, 24, [3, 9, 15, 21]),
    ],
)
def test_cases_computed_by_hand(name, options, num_frames, expected):
    assert build_sampler(name, **options)(num_frames).ravel().tolist() == expected


# ---- what holds for every rule -----------------------------------------------------------------

lengths = st.one_of(st.just(1), st.integers(1, 12), st.integers(1, 5000))


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(SAMPLERS)),
    lengths,
    st.integers(1, 33),
    st.integers(1, 9),
    st.one_of(st.none(), st.integers(0, 2**32)),
)
def test_frames_are_in_range_in_order_and_as_many_as_asked_for(name, num_frames, k, clips, seed):
    own = {"dense": {"frame_interval": 2, "out_of_bound": "repeat_last"}}.get(name, {})
    one_clip = name == "swin_uniform"
    sample = build_sampler(name, clip_len=k, num_clips=1 if one_clip else clips, **own)
    found = sample(num_frames, None if seed is None else np.random.default_rng(seed))
    of_segments = name in ("mmaction_uniform", "segment_centres")
    rows = 1 if one_clip or (of_segments and seed is not None) else clips
    assert found.shape == (rows, k) and found.dtype == np.int64
    assert found.min() >= 0 and found.max() < num_frames
    assert (np.diff(found, axis=1) >= 0).all()
    if name == "dense":
        assert (np.diff(found[:, 0]) >= 0).all()


@settings(max_examples=200, deadline=None)
@given(lengths, st.integers(1, 33), st.integers(1, 9), st.integers(1, 9), st.booleans())
def test_a_loop_goes_on_at_the_first_frame(num_frames, k, clips, interval, training):
    generator = np.random.default_rng(k) if training else None
    options = {"clip_len": k, "num_clips": clips, "frame_interval": interval}
    found = build_sampler("dense", **options)(num_frames, generator)
    assert found.shape == (clips, k) and found.min() >= 0 and found.max() < num_frames
    assert (np.diff(found, axis=1) % num_frames == interval % num_frames).all()


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_generator_alone_decides_the_jitter(name):
    sample = build_sampler(name, clip_len=4)
    first, again, other = (sample(300, jitter_generator(0, "a", view)) for view in (0, 0, 1))
    assert (first == again).all() and (first != other).any()
    assert (sample(300) == sample(300)).all()
    state = np.random.get_state()[1].copy()
    sample(300, jitter_generator(0, "b", 0))
    assert (np.random.get_state()[1] == state).all(), "the global generator is left alone"


def test_centres_in_training_stay_in_their_segments():
    generator = np.random.default_rng(0)
    drawn = np.concatenate(
        [sample_centres(10, clip_len=4, generator=generator) for _ in range(500)]
    )
    assert [np.unique(column).tolist() for column in drawn.T] == [
        [0, 1],
        [2, 3, 4],
        [5, 6],
        [7, 8, 9],
    ]
    assert sample_centres(2, clip_len=4, generator=generator).tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dense", {"clip_len": 0}, "clip_len is 0, expected at least 1"),
        ("dense", {"clip_len": 4, "out_of_bound": "stop"}, "out_of_bound is 'stop'"),
        ("dense", {"clip_len": 4, "twice_sample": True}, "use num_clips=2"),
        ("dense", {"clip_len": 4, "target_fps": 5, "temporal_jitter": True}, "exclude each other"),
        ("dense", {"clip_len": 4, "target_fps": 0}, "target_fps is 0"),
        ("swin_uniform", {"clip_len": 4, "num_clips": 2}, "num_clips is 2, expected 1"),
    ],
)
def test_what_makes_no_sense_is_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        SAMPLERS[name](1, **options)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_a_clip_without_frames_is_refused(name):
    with pytest.raises(ValueError, match="num_frames is 0, expected at least 1"):
        build_sampler(name, clip_len=1)(0)


def test_examples_in_the_docstrings_hold():
    result = doctest.testmod(sampling)
    assert result.attempted and not result.failed
