"""Before its first step the joint model says what the head says on the stored maps; models of the
zoo train, too."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.decode_pool import DecodePool
from dsts_pipeline.extract.mmaction_compat import build_model
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.taps import Recognizer
from dsts_pipeline.extract.views import ViewPlan, Views
from dsts_pipeline.extract.weights import CLASSIFIER_WEIGHT
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import DSTSHead
from dsts_pipeline.learn.end_to_end import EndToEnd, save_backbone, stages_of
from dsts_pipeline.learn.finetune import answer_clips
from dsts_pipeline.learn.passes import evaluate_rows
from dsts_pipeline.learn.videos import VideoFeed
from dsts_pipeline.metrics import softmax
from tests.clips.videos import write_video
from tests.extract.small_models import SWIN
from tests.learn.end_to_end.tiny import stepper_of
from tests.pipeline import WEIGHTS

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here")
NUM_CLIPS, CLASSES = 12, 4


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    clips = []
    for number in range(NUM_CLIPS):
        path = write_video(
            root / f"{number}.mp4", num_frames=16 + number, size=(96, 72), seed=number
        )
        clips.append(
            Clip(
                id=path.stem,
                path=path.name,
                label=number % CLASSES,
                split="train" if number < 8 else "test",
                num_frames=16 + number,
                start_frame=0,
                end_frame=16 + number,
                size_bytes=path.stat().st_size,
                sha256=sha256_file(path),
            )
        )
    return ClipIndex("small", str(root), tuple("abcd"), (), (), tuple(clips))


@pytest.fixture
def backbone():
    return build_backbone("stick_r18", weights=WEIGHTS, num_frames=16, size_px=64)


def new_head():
    torch.manual_seed(0)
    options = {"num_neurons": 4, "num_layers": 2, "width": 8, "impulse": "standardized"}
    head = DSTSHead.paper(128, CLASSES, **options, layer_residual=True, routing_gradient="selected")
    with torch.no_grad():
        head.classifier.weight.mul_(20.0)  # answers that differ by more than rounding
    return head.eval()


def extracted(index, backbone, root):
    plan = StorePlan(
        fingerprint_parts={"digest": index.digest},
        clips=[(clip.id, clip.label, clip.split) for clip in index.clips],
        class_names=index.class_names,
        map_shape=backbone.map_shape,
        samples_per_shard=4,
        dtype="float16",
    )
    with StoreWriter(root, plan) as writer:
        settings = BackboneSettings(num_decode_workers=0)
        extract_features(ViewPlan(index, backbone), backbone, writer, settings)
        return open_store(writer.finish({}).parent)


@pytest.mark.slow
def test_step_zero_gives_the_cached_predictions(index, backbone, tmp_path):
    """Up to the float16 rounding of stored maps; and after saving, extraction gives them again."""
    store, head = extracted(index, backbone, tmp_path / "stores"), new_head()
    maps = FeatureFeed(store).batch(np.arange(NUM_CLIPS)).maps
    with torch.no_grad():
        head.classifier.bias -= head(maps).mean(dim=0)  # so that clips get different answers
        cached = softmax(head(maps).numpy())
    model = EndToEnd(backbone, copy.deepcopy(head))
    with DecodePool(0) as pool:
        plan = ViewPlan(index, backbone)
        found = answer_clips(model, plan, range(NUM_CLIPS), pool, batch_size=5)
        feed = VideoFeed(ViewPlan(index, backbone, Views()), "train", pool)
        joint = evaluate_rows(model, feed.plain, feed.rows, batch_size=5)
    assert found.clip_ids == list(store.video_ids)
    assert (found.probabilities.argmax(1) == cached.argmax(1)).all()
    assert len(set(cached.argmax(1).tolist())) > 1
    np.testing.assert_allclose(found.probabilities, cached, atol=5e-3)
    on_store = evaluate_rows(head, FeatureFeed(store), np.arange(8), batch_size=5)
    assert joint.accuracy == on_store.accuracy
    assert joint.loss == pytest.approx(on_store.loss, rel=1e-2)

    with torch.no_grad():
        for parameter in model.backbone_parameters.values():
            parameter.mul_(1.01)
    save_backbone(model, tmp_path / "backbone.safetensors")
    again = build_backbone("stick_r18", weights=tmp_path / "backbone.safetensors")
    frames = torch.randint(0, 256, (2, 16, 64, 64, 3), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(again(frames), model.eval().maps(frames))
    assert again.describe()["weights"] != backbone.describe()["weights"]


@pytest.mark.parametrize("readout", ["average", "attentive"])
def test_a_classifier_of_averages_alone_becomes_the_saved_recognizers(readout, backbone, tmp_path):
    own = backbone.recognizer.state_dict()[CLASSIFIER_WEIGHT]
    head = DSTSHead(*own.shape[::-1], num_layers=1, readout=readout)  # as many channels and classes
    save_backbone(EndToEnd(backbone, head), tmp_path / "backbone.safetensors")
    saved = load_file(tmp_path / "backbone.safetensors")[CLASSIFIER_WEIGHT]
    expected = head.classifier.weight.detach() if readout == "average" else own
    torch.testing.assert_close(saved.to(expected.dtype), expected, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(head.classifier.weight, own, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("inner_step", ["head", "all"])
def test_swin_trains_with_and_without_recomputing(inner_step):
    """Its attention masks are cached; stochastic depth is drawn once per batch."""
    results = []
    for recompute in (False, True):
        torch.manual_seed(1)
        options = {"num_frames": 4, "size_px": 64, "description": {}}
        swin = Recognizer(build_model(SWIN), is_2d=False)
        backbone = Backbone("swin", swin, **options, taps=("backbone",))
        torch.manual_seed(2)
        head = DSTSHead.paper(backbone.map_shape[0], 48, num_neurons=2, num_layers=1, width=8)
        model = EndToEnd(backbone, head, recompute=recompute, dropout=True).double()
        assert "backbone.layers.3" in stages_of(model.root)
        batches = [batch_of(seed) for seed in (1, 2)]
        stepper_of(model, inner_step=inner_step).udl_step(*batches, inner_lr=0.1)
        results.append(model.state_dict())
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-8, atol=1e-10)


def batch_of(seed):
    from dsts_pipeline.feed import FeatureBatch

    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 4, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return FeatureBatch(frames, torch.tensor([seed, 3]), torch.arange(2) + 10 * seed)
