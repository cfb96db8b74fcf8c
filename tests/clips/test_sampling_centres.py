"""Centres of equal segments are exact, in range and in order."""

from __future__ import annotations

from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dsts_pipeline.clips.sampling import uniform_frames


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_frames_are_the_exact_centres_of_equal_segments(num_frames, num_samples):
    frames = uniform_frames(num_frames, num_samples)
    expected = [floor((i + Fraction(1, 2)) * num_frames / num_samples) for i in range(num_samples)]
    assert frames.dtype == np.int64
    assert frames.tolist() == expected
    assert frames[0] >= 0 and frames[-1] < num_frames and (np.diff(frames) >= 0).all()


def test_as_many_samples_as_frames_takes_each_once_and_short_clips_repeat():
    assert uniform_frames(16, 16).tolist() == list(range(16))
    assert uniform_frames(1, 4).tolist() == [0, 0, 0, 0]
    assert uniform_frames(2, 4).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("counts", [(0, 4), (4, 0), (-1, 4)])
def test_counts_below_one_are_refused(counts):
    with pytest.raises(ValueError, match="expected at least 1"):
        uniform_frames(*counts)
