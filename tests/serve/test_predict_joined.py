"""A head on joined maps answers for a video file, and in a file of its own, as on cached maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan, Views
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.joining import join_views
from dsts_pipeline.head import AttentiveProbe
from dsts_pipeline.metrics import softmax
from dsts_pipeline.serve import Predictor, load_bundle, save_bundle
from dsts_pipeline.serve.bundle import model_card
from dsts_pipeline.serve.exported_model import decode_some, whole_subject, write_model
from tests.clips.videos import write_video
from tests.serve.small_bundle import CLASSES, FINGERPRINT, backbone, make_bundle, make_head, make_of
from tests.serve.test_predict import index_of

VIEWS = Views(test_crops=3, segments=2)
RECORD = {"store": FINGERPRINT, "title": "a joined head", "joined_views": 2}
NUM_FRAMES = 37


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> ClipIndex:
    root = tmp_path_factory.mktemp("videos")
    size = (96, 64)
    paths = [write_video(root / f"{n}.mp4", num_frames=NUM_FRAMES, size=size, seed=n)
             for n in range(3)]  # fmt: skip
    return index_of(paths, NUM_FRAMES)


@pytest.fixture(scope="module")
def joined(index, tmp_path_factory):
    """The store of these clips, as `extract` makes it, its segments joined."""
    rows = ViewPlan(index, backbone(), VIEWS)
    made_of = rows.describe()
    plan = StorePlan(made_of, rows.samples, CLASSES, backbone().map_shape, dtype="float32")
    with StoreWriter(tmp_path_factory.mktemp("store"), plan) as writer:
        extract_features(rows, backbone(), writer, BackboneSettings(num_decode_workers=0))
        return join_views(open_store(writer.finish({}).parent))


def attentive():
    torch.manual_seed(0)
    return AttentiveProbe(128, len(CLASSES), readout_heads=4).eval()


def bundle_of(head, **changes):
    made_of = make_of(backbone()) | VIEWS.describe()
    return make_bundle(head=head, head_record=RECORD, made_of=made_of, **changes)


@pytest.mark.parametrize("build", [make_head, attentive])
def test_answers_are_those_of_joined_maps(index, joined, build, tmp_path):
    videos = [Path(index.root) / clip.path for clip in index.clips]
    bundle = load_bundle(save_bundle(tmp_path / "b", bundle_of(build())))
    assert (bundle.num_joined, bundle.views.segments) == (2, 2)
    maps = torch.from_numpy(joined.read(np.arange(9)))
    with torch.inference_mode():
        cached = bundle.head(maps).numpy()
    with Predictor(bundle, batch_size=4, with_attention=True) as predictor:
        predictor.warm_up()
        answers = list(predictor.predict(videos))
    for number, answer in enumerate(answers):
        rows = slice(3 * number, 3 * number + 3)
        np.testing.assert_allclose(answer.logits, cached[rows], rtol=1e-4, atol=1e-4)
        expected = softmax(cached[rows]).mean(axis=0)
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5)
        pooled = maps[rows].mean(dim=(0, 2, 3, 4))
        np.testing.assert_allclose(answer.pooled, pooled, rtol=1e-4, atol=1e-5)
        assert answer.frames.shape == (3, 2 * 16, 64, 64, 3)
        if build is attentive:
            assert answer.attention.shape == joined.map_shape[1:]
            assert answer.attention.sum() == pytest.approx(1, abs=1e-4)
    assert len({answer.logits.tobytes() for answer in answers}) == 3


def test_backbone_and_head_together_take_the_segments_frames_one_after_another(index, joined):
    bundle = bundle_of(make_head())
    frames = decode_some(bundle, index, "test", 3)
    assert frames.shape == (3, 2 * 16, 64, 64, 3)
    subject = whole_subject(bundle.backbone, bundle.head, frames, num_joined=2)
    first_views = torch.from_numpy(joined.read([0, 3, 6]))
    with torch.inference_mode():
        expected = bundle.head(first_views)
        torch.testing.assert_close(subject.reference(frames)[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_an_exported_file_of_both_equals_pytorch(index, tmp_path):
    bundle = bundle_of(make_head())
    frames = decode_some(bundle, index, "test", 3)
    subject = whole_subject(bundle.backbone, bundle.head, frames, num_joined=2)
    exported = write_model(tmp_path / "whole.pt2", subject, "program", {}, seconds=0.01)
    assert exported.comparison.num_clips == 3


def test_the_model_card_tells_how_views_are_read():
    line = "- Views of a video: 1 clips x 3 crops, averaged, each in 2 segments, "
    assert f"\n{line}joined to one map\n" in model_card(bundle_of(make_head()), weights_file=None)
    separate = make_bundle(made_of=make_of(backbone()) | VIEWS.describe())
    assert f"\n{line}averaged, too\n" in model_card(separate, weights_file=None)


def test_a_head_and_features_of_other_segments_make_no_bundle():
    made_of = make_of(backbone()) | Views(segments=4).describe()
    with pytest.raises(BundleError, match="joined maps of 2 views, the bundle's clips have 4 seg"):
        make_bundle(head_record=RECORD, made_of=made_of)
    with pytest.raises(BundleError, match="have 1 segments"):
        make_bundle(head_record=RECORD)
