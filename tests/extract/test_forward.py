"""Batches that do not fit, autocast, compilation; on a CUDA device the same maps as on the CPU."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.forward import Computing, ForwardPass
from tests.extract.small_set import PoolingBackbone, extract_store, index_clips, write_clips
from tests.feature_store.small_store import read_tree

FRAMES = np.random.default_rng(0).integers(0, 256, (22, 8, 32, 32, 3), dtype=np.uint8)


class SmallDevice(PoolingBackbone):
    """Runs out of memory above a number of clips, as a device does."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error, self.sizes = room, error, []

    def __call__(self, frames):
        self.sizes.append(len(frames))
        if len(frames) > self.room:
            raise self.error
        return super().__call__(frames)


OUT_OF_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
NOT_ENOUGH = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried")


def _maps(backbone, frames=FRAMES, **computing) -> np.ndarray:
    forward = ForwardPass(backbone, Computing(**computing))
    out = np.full((len(frames), *backbone.map_shape), np.nan, np.float32)
    with torch.inference_mode():
        forward.submit(frames, out)
        forward.finish()
    assert forward.seconds > 0
    return out


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, NOT_ENOUGH])
def test_a_batch_that_does_not_fit_is_halved_and_so_are_those_after_it(error, capsys):
    backbone = SmallDevice(5, error)
    maps = _maps(backbone, batch_size=16)
    assert backbone.sizes == [16, 8, 4, 4, 4, 4, 4, 2]
    np.testing.assert_array_equal(maps, _maps(PoolingBackbone(), batch_size=64))
    told = " ".join(capsys.readouterr().err.split())
    assert "8 clips do not fit the memory of cpu: going on with batches of 4" in told


def test_one_clip_that_does_not_fit_is_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match="one clip alone does not fit the memory of cpu"):
        _maps(SmallDevice(0, OUT_OF_MEMORY), batch_size=4)


def test_another_error_of_the_backbone_is_not_taken_for_too_little_memory():
    with pytest.raises(RuntimeError, match="shapes differ"):
        _maps(SmallDevice(0, RuntimeError("shapes differ")), batch_size=4)


def test_halved_batches_leave_the_bytes_of_a_store_alone(tmp_path):
    write_clips(tmp_path / "clips", 10)
    index = index_clips(tmp_path / "clips")
    whole, _ = extract_store(tmp_path / "a", index, num_decode_workers=0)
    halved, _ = extract_store(
        tmp_path / "b", index, num_decode_workers=0, backbone=SmallDevice(1, OUT_OF_MEMORY)
    )
    assert read_tree(halved) == read_tree(whole)


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("stick_r18", weights="random", num_frames=8, size_px=32)


def _distance(maps: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(maps - expected).max() / np.abs(expected).max())


def test_batch_size_changes_no_more_than_rounding(backbone):
    expected = _maps(backbone, batch_size=1)
    for batch_size in (2, 7, 22):
        maps = _maps(backbone, batch_size=batch_size)
        assert _distance(maps, expected) < 1e-5
        np.testing.assert_array_equal(maps, _maps(backbone, batch_size=batch_size))


def test_bfloat16_autocast_is_near_and_not_the_same(backbone):
    expected = _maps(backbone)
    maps = _maps(backbone, precision="bfloat16")
    assert maps.dtype == np.float32 and 1e-4 < _distance(maps, expected) < 0.05
    assert Computing(precision="bfloat16").describe() == {"precision": "bfloat16"}
    assert Computing(batch_size=7).describe() == {}


@pytest.mark.slow
def test_channels_last_gives_the_same_maps(backbone):
    plain = _maps(backbone, frames=FRAMES[:4], batch_size=2)
    turned = copy.deepcopy(backbone)
    assert (
        _distance(_maps(turned, frames=FRAMES[:4], batch_size=2, channels_last=True), plain) < 1e-5
    )
    kernels = [p for p in turned.parameters() if p.dim() == 5 and p.shape[1] > 1]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last_3d) for p in kernels)
    assert Computing(channels_last=True).describe() == {"channels_last": True}


@pytest.mark.slow
def test_a_compiled_backbone_gives_the_same_maps(backbone):
    maps = _maps(backbone, frames=FRAMES[:4], batch_size=2, compile=True)
    assert _distance(maps, _maps(backbone, frames=FRAMES[:4])) < 1e-5
    assert Computing(compile=True).describe() == {"compiled": True}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same_maps_batch_after_batch(backbone):
    expected = _maps(backbone)
    on_device = build_backbone("stick_r18", weights="random", num_frames=8, size_px=32).to("cuda")
    for batch_size in (1, 4, 22):
        assert _distance(_maps(on_device, batch_size=batch_size), expected) < 5e-3  # TF32
    for precision in ("bfloat16", "float16"):
        assert _distance(_maps(on_device, precision=precision), expected) < 0.05
