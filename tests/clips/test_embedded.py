"""The embedded data sets are found by name."""

from __future__ import annotations

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.stick import render_embedded

SIZES = {"num_train": 1, "num_test": 1, "size_px": 32, "num_frames": 4, "difficulty": 1.0}


@pytest.mark.parametrize(
    ("renderer", "count", "suffix"), [("stick_diving", 2, "mp4"), ("stick_something", 26, "webm")]
)
def test_each_renderer_writes_its_own_layout(tmp_path, renderer, count, suffix):
    assert render_embedded(renderer, tmp_path, seed=0, **SIZES) == count
    assert len(list(tmp_path.rglob(f"*.{suffix}"))) == count
    assert (tmp_path / f"{renderer}.json").is_file()


def test_unknown_renderer(tmp_path):
    with pytest.raises(SettingsError, match="'oil' is unknown; expected one of"):
        render_embedded("oil", tmp_path, seed=0, **SIZES)
