"""Pretraining, on a handful of clips: the pool, augmentation, and that it learns and saves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dsts_pipeline.clips.stick_diving.targets import MIRROR_SIGNS, TARGET_NAMES
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.checkpoints.weights import save_weights
from dsts_pipeline.learn.pretrain import (
    Pool,
    PoolRecipe,
    TrainingRecipe,
    pretrain_recognizer,
    render_pool,
)
from dsts_pipeline.learn.pretrain.card import write_card
from dsts_pipeline.learn.pretrain.training import augment_clips

RECIPE = PoolRecipe(
    stream="pretrain",
    num_clips=20,
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


@pytest.mark.parametrize("stream", ["train", "test"])
def test_a_split_of_the_data_set_is_never_pretrained_on(home, stream):
    with pytest.raises(ValueError, match="is a split of the data set"):
        render_pool(home, PoolRecipe(**{**vars(RECIPE), "stream": stream}))


def test_augmentation_mirrors_pixels_and_targets_alike():
    frames = torch.zeros(64, 2, 16, 16, 3, dtype=torch.uint8)
    frames[:, :, :, 12:] = 200  # bright on the right
    targets = torch.ones(64, 2, len(TARGET_NAMES))
    out, turned = augment_clips(frames, targets, torch.Generator().manual_seed(0))
    bright_left = out[:, 0, 8, 0, 0] > 100
    assert 16 < bright_left.sum() < 48
    signs = torch.from_numpy(MIRROR_SIGNS)
    assert torch.equal(turned[bright_left], signs.expand_as(turned[bright_left]))
    assert (turned[~bright_left] == 1).all()


@pytest.mark.slow
def test_training_lowers_the_loss_and_its_weights_build_a_backbone(pool, tmp_path):
    recipe = TrainingRecipe(
        pose_epochs=1, class_epochs=2, batch_size=4, learning_rate=2e-3, pose_weight=0.5, seed=3
    )
    small = Pool(pool.frames[:12], pool.targets[:12], pool.labels[:12])
    recognizer, history = pretrain_recognizer("stick_r18", small, pool, recipe)
    assert [row.phase for row in history] == ["pose", "classes", "classes"]
    assert history[2].train_loss < history[1].train_loss
    path = tmp_path / "weights.safetensors"
    save_weights(recognizer, path, half=True)
    backbone = build_backbone("stick_r18", weights=path)
    frames = torch.from_numpy(pool.frames[:2])
    with torch.inference_mode():
        assert backbone.classify(backbone(frames)).shape == (2, 48)
    write_card(tmp_path / "card.md", "stick_r18", recognizer, RECIPE, RECIPE, recipe, history)
    card = (tmp_path / "card.md").read_text()
    assert "1,492,896" in card and f"{history[-1].heldout_top1:.1%}" in card
