"""Pictures for README: small, and a clear word where no browser can take them."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.report.page import render_report, write_report
from dsts_pipeline.report.screenshots import MAX_BYTES, Shot, small_png, take_screenshots
from tests.report.browser import need_browser
from tests.report.report_example import make_frames, make_inputs


def test_a_picture_is_scaled_until_it_is_small():
    noise = np.random.default_rng(0).integers(256, size=(900, 1240, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    small = small_png(buffer.getvalue())
    assert len(small) <= MAX_BYTES
    width, height = Image.open(io.BytesIO(small)).size
    assert width / height == pytest.approx(1240 / 900, rel=0.02)


def test_without_a_browser_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="no Chromium found .*make browser"):
        take_screenshots(tmp_path / "report.html", tmp_path, [Shot("a.png", "#summary")])


@pytest.mark.slow
@pytest.mark.browser
def test_a_picture_shows_the_tab_that_it_names(tmp_path):
    need_browser()
    small = {"num_clips": 60, "num_classes": 6, "num_neurons": 2, "num_layers": 1}
    page = render_report(make_inputs(**small), frames_of=make_frames)
    write_report(page, tmp_path / "report.html", write_plots=False)
    shots = [
        Shot("dark.png", "?theme=dark&tab=gallery"),
        Shot("light.png", "?theme=light&tab=gallery"),
    ]
    dark, light = take_screenshots(tmp_path / "report.html", tmp_path / "out", shots)
    assert Image.open(dark).convert("RGB").getpixel((2, 2)) == (22, 24, 27)
    picture = Image.open(light).convert("RGB")
    assert picture.size == (1240, 900) and picture.getpixel((2, 2)) == (253, 252, 249)
    assert len(picture.getcolors(1 << 20)) > 60  # previews, not text alone
