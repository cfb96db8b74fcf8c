"""Pretraining, on a handful of clips: the pool, augmentation, and that it learns and saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.settings import PretrainSettings
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.weights import find_classifier, save_weights
from dsts_pipeline.stick import RENDERERS, something
from dsts_pipeline.stick.diving import TARGET_NAMES
from dsts_pipeline.stick.pretrain import (
    Pool,
    PoolRecipe,
    augment_clips,
    pretrain_recognizer,
    render_pool,
    write_card,
)
from dsts_pipeline.stick.something_motion import flip_label
from stages.pretrain import run
from tests.pipeline import params_of

RECIPE = PoolRecipe(
    renderer="stick_diving",
    stream="pretrain",
    num_clips=20,
    video_frames=16,
    num_frames=16,
    render_px=64,
    input_px=64,
    difficulty=0.0,
    seed=1,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def pool(home):
    return render_pool(home, RECIPE, chunk_clips=8)


def test_pool_holds_clips_targets_and_balanced_labels(pool):
    assert pool.frames.shape == (20, 16, 64, 64, 3) and pool.frames.dtype == np.uint8
    assert pool.targets.shape == (20, 16, len(TARGET_NAMES))
    assert pool.labels.tolist() == list(range(20))


def test_a_rerun_renders_only_missing_chunks_with_the_same_content(pool, home):
    (chunks,) = home.iterdir()
    files = sorted(chunks.iterdir())
    assert len(files) == 3
    kept, content = files[0].stat().st_mtime_ns, files[1].read_bytes()
    files[1].unlink()
    again = render_pool(home, RECIPE, chunk_clips=8)
    assert np.array_equal(again.frames, pool.frames)
    assert files[0].stat().st_mtime_ns == kept and files[1].read_bytes() == content


@pytest.mark.parametrize("stream", ["train", "test", "validation"])
def test_a_split_of_the_data_set_is_never_pretrained_on(home, stream):
    with pytest.raises(ValueError, match="is a split of the data set"):
        render_pool(home, PoolRecipe(**{**vars(RECIPE), "stream": stream}))


@pytest.mark.parametrize("name", ["stick_diving", "stick_something"])
def test_augmentation_mirrors_pixels_targets_and_labels_alike(name):
    renderer = RENDERERS[name]
    frames = torch.zeros(64, 2, 16, 16, 3, dtype=torch.uint8)
    frames[:, :, :, 12:] = 200  # bright on the right
    targets = torch.ones(64, 2, len(renderer.target_names))
    labels = torch.arange(64) % len(renderer.class_names)
    generator = torch.Generator().manual_seed(0)
    out, turned, shown = augment_clips(frames, targets, labels, renderer, generator)
    bright_left = out[:, 0, 8, 0, 0] > 100
    assert 16 < bright_left.sum() < 48
    signs = torch.from_numpy(renderer.mirror_signs)
    assert torch.equal(turned[bright_left], signs.expand_as(turned[bright_left]))
    assert (turned[~bright_left] == 1).all()
    assert torch.equal(shown[~bright_left], labels[~bright_left])
    mirrored = labels[bright_left].tolist()
    if name == "stick_something":
        mirrored = [flip_label(label) for label in mirrored]
    assert shown[bright_left].tolist() == mirrored


def saved_and_built(recognizer, path):
    """The backbone that its weights file gives."""
    save_weights(recognizer, path, half=True)
    return build_backbone("stick_r18", weights=path)


@pytest.mark.slow
def test_the_other_set_has_its_own_frames_labels_targets_and_classes(home):
    recipe = PoolRecipe(
        **{**vars(RECIPE), "renderer": "stick_something", "video_frames": 24, "num_clips": 4}
    )
    pool = render_pool(home, recipe)
    assert pool.frames.shape == (4, 16, 64, 64, 3)
    assert pool.targets.shape == (4, 16, len(something.TARGET_NAMES))
    assert pool.labels.tolist() == [0, 1, 2, 3]
    recipe = PretrainSettings(
        pose_epochs=0, class_epochs=1, batch_size=4, learning_rate=2e-3, pose_weight=0.5, seed=3
    )
    recognizer, _ = pretrain_recognizer("stick_r18", pool, pool, recipe)
    backbone = saved_and_built(recognizer, home / "something.safetensors")
    with torch.inference_mode():
        assert backbone.classify(backbone(torch.from_numpy(pool.frames))).shape == (4, 24)
    lid = pool.targets[0, :, something.TARGET_NAMES.index("lid")]
    assert lid[0] > 0.9 and lid[-1] < 0.1  # class 0 closes something


@pytest.mark.slow
def test_training_lowers_the_loss_and_its_weights_build_a_backbone(pool, tmp_path):
    recipe = PretrainSettings(
        pose_epochs=1, class_epochs=2, batch_size=4, learning_rate=2e-3, pose_weight=0.5, seed=3
    )
    small = Pool(pool.frames[:12], pool.targets[:12], pool.labels[:12], pool.renderer)
    recognizer, history = pretrain_recognizer("stick_r18", small, pool, recipe)
    assert [row.phase for row in history] == ["targets", "classes", "classes"]
    assert history[2].train_loss < history[1].train_loss
    backbone = saved_and_built(recognizer, tmp_path / "weights.safetensors")
    frames = torch.from_numpy(pool.frames[:2])
    with torch.inference_mode():
        assert backbone.classify(backbone(frames)).shape == (2, 48)
    write_card(tmp_path / "card.md", "stick_r18", recognizer, RECIPE, RECIPE, recipe, history)
    card = (tmp_path / "card.md").read_text()
    assert "1,492,896" in card and f"{history[-1].heldout_top1:.1%}" in card


@pytest.mark.slow
def test_a_backbone_without_classes_has_no_classifier(pool, tmp_path):
    recipe = PretrainSettings(
        pose_epochs=1, class_epochs=0, batch_size=4, learning_rate=2e-3, pose_weight=0.5, seed=3
    )
    recognizer, history = pretrain_recognizer("stick_r18", pool, pool, recipe)
    path = tmp_path / "weights.safetensors"
    backbone = saved_and_built(recognizer, path)
    with torch.inference_mode():
        maps = backbone(torch.from_numpy(pool.frames[:2]))
    assert maps.shape == (2, 128, 8, 4, 4)
    assert find_classifier(path, 128, 48) is None
    write_card(tmp_path / "card.md", "stick_r18", recognizer, RECIPE, RECIPE, recipe, history)
    card = (tmp_path / "card.md").read_text()
    assert "never been told a class" in card and "with its classifier" not in card


def test_weights_that_are_there_are_not_replaced(tmp_path):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"kept")
    pool = tmp_path / "pool"
    settings = load_settings(params_of(), [f"backbone.weights={weights}", f"pretrain.pool={pool}"])
    with pytest.raises(SettingsError, match="is there already, and pretrain replaces nothing"):
        run(settings)
    assert weights.read_bytes() == b"kept" and not pool.exists()
