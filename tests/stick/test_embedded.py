"""The embedded data sets are found by name, and their contact sheets are drawn."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest
from PIL import Image

from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import RENDERERS, render_embedded

SIZES = {"num_train": 1, "num_test": 1, "size_px": 32, "num_frames": 4, "num_workers": 1}


@pytest.mark.parametrize(
    ("renderer", "count", "suffix"), [("stick_diving", 2, "mp4"), ("stick_something", 26, "webm")]
)
def test_each_renderer_writes_its_own_layout(tmp_path, renderer, count, suffix):
    assert render_embedded(tmp_path, RenderSettings(renderer=renderer, **SIZES)) == count
    assert len(list(tmp_path.rglob(f"*.{suffix}"))) == count
    assert (tmp_path / f"{renderer}.json").is_file()


def test_every_renderer_of_the_settings_is_there():
    assert set(get_args(RenderSettings.model_fields["renderer"].annotation)) == set(RENDERERS)


@pytest.mark.slow
@pytest.mark.parametrize(("renderer", "size"), [("stick_diving", 16), ("stick_something", 8)])
def test_a_contact_sheet_is_drawn(tmp_path, repository, renderer, size):
    path = tmp_path / "sheet.jpg"
    command = [sys.executable, "-m", "dsts_pipeline.stick.sheet", renderer, str(path)]
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == ""
    num_rows = {"stick_diving": 15, "stick_something": 24}[renderer]
    assert Image.open(path).size == (size * 96, num_rows * (96 + 14))
