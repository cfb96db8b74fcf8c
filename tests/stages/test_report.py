"""`report`: of imported features all that needs no videos, and what an attentive head looked at."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dsts_pipeline.base.files import read_json, sign, write_json
from dsts_pipeline.base.settings import BackboneSettings, Settings
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan, Views
from dsts_pipeline.feature_store import StoreWriter, open_store
from dsts_pipeline.head import AttentiveProbe, LinearProbe, attention_map, save_head
from stages import common, report
from tests.clips.videos import write_video
from tests.extract.small_set import PoolingBackbone, index_clips, plan_store, write_clips
from tests.stages.ready_store import make_ready
from tests.stages.test_compare import write_run

NUM_CLASSES = 4  # of the store that make_ready writes


@pytest.fixture
def imported(tmp_path, monkeypatch):
    """An imported store and evaluated heads; a clip index that lies there is of other clips."""
    monkeypatch.chdir(tmp_path)
    make_ready(tmp_path)
    write_run(tmp_path / "outputs", num_classes=NUM_CLASSES)
    described = {"extra": {"provenance": {"command": "tests"}}}
    for history in (tmp_path / "outputs" / "heads").glob("*/history.json"):
        write_json(history.with_name("head.json"), described)
    (tmp_path / "outputs" / "clips.json").write_text("of another data set")
    return tmp_path


def test_imported_features_have_a_report_without_a_gallery(imported, capsys):
    report.run(Settings())
    told = " ".join(capsys.readouterr().err.split())
    assert "left out: gallery and previews, since the table of the imported features has no" in told
    html = (imported / "outputs" / "report" / "report.html").read_text()
    for part in ("summary", "confusion", "reliability", "routing", "run"):
        assert f'<section id="{part}"' in html
    assert '<section id="gallery"' not in html and 'class="film' not in html


def test_videos_that_the_table_named_are_shown(imported, capsys):
    store = read_json(imported / "outputs" / "features.json")["store"]
    named = {
        "store": open_store(store).fingerprint,
        "root": str(imported),
        "paths": {f"stick_{number:05d}": "a.mp4" for number in range(40)},
    }
    write_video(imported / "a.mp4")
    write_json(common.NAMED_VIDEOS, sign(named))
    report.run(Settings())
    assert "left out" not in capsys.readouterr().err
    html = (imported / "outputs" / "report" / "report.html").read_text()
    assert html.count('<div class="film strip-') >= 3 and '<section id="gallery"' in html
    write_json(common.NAMED_VIDEOS, sign(named | {"store": "of an earlier import"}))
    report.run(Settings())
    assert "left out" in capsys.readouterr().err


def test_what_an_attentive_head_saw_are_the_frames_and_the_square_of_its_map(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_clips(tmp_path, 3)
    write_video(tmp_path / "clip2.mp4", num_frames=12, size=(96, 48), seed=8)
    index = index_clips(tmp_path)
    plan = ViewPlan(index, PoolingBackbone(), Views(test_crops=3))
    stored = replace(
        plan_store(index),
        clips=plan.samples,
        frames=plan.frames,
        fingerprint_parts=plan.describe(),
    )
    with StoreWriter(tmp_path / "stores", stored) as writer:
        extract_features(plan, PoolingBackbone(), writer, BackboneSettings(num_decode_workers=0))
        store = open_store(writer.finish({}).parent)
    torch.manual_seed(0)
    head = AttentiveProbe(3, 2, readout_heads=1).eval()
    save_head(common.HEADS / "probe", head, {"store": store.fingerprint})
    seen = report._attention_reader("probe", store, index, "auto")("clip2")
    whole = decode_frames(tmp_path / "clip2.mp4", store.frames[2])
    np.testing.assert_array_equal(seen.frames, whole[:, :, :48])
    expected = attention_map(head, torch.from_numpy(store.read([2])).float())[0].numpy()
    np.testing.assert_allclose(seen.attention, expected)
    assert report._attention_reader("two_streams", store, index, "auto") is None  # has no file
    save_head(common.HEADS / "linear", LinearProbe(3, 2), {"store": store.fingerprint})
    assert report._attention_reader("linear", store, index, "auto") is None
