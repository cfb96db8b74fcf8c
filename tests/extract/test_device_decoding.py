"""Frames that stay on the backbone's device, with the CPU as that device.

All but NVDEC itself runs here: torchcodec where it is installed, else a stand-in of its
`VideoDecoder` that PyAV feeds.
"""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.probe import probe
from dsts_pipeline.extract import runner
from dsts_pipeline.extract.augmentation import Augmentation
from dsts_pipeline.extract.decode_pool import Stopwatch, decode_views
from dsts_pipeline.extract.device_decoding import (
    DevicePool,
    decode_on_device,
    scale_on_device,
    stays_on_device,
)
from dsts_pipeline.extract.pipelines import Pipeline, scale_frames
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan, Views
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from tests.clips.videos import write_video
from tests.extract.small_set import PoolingBackbone, index_clips, write_clips
from tests.feature_store.small_store import read_tree

CPU = torch.device("cpu")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
RULE = Pipeline(
    sampler="segment_centres",
    options={"clip_len": 8},
    num_frames=8,
    resize_px=40,
    size_px=32,
    scaling="bilinear",
)


class RuledBackbone(PoolingBackbone):
    """A backbone with a rule of its own, which notes where its frames came from."""

    resize_px = 40
    pipeline = RULE

    def __init__(self) -> None:
        self.addresses: list[int] = []

    def __call__(self, frames):
        self.addresses.append(frames.data_ptr())
        return super().__call__(frames)


class FakeDecoder:
    """torchcodec's `VideoDecoder`, as far as it is used here."""

    def __init__(self, path, *, dimension_order, num_ffmpeg_threads, device, seek_mode):
        assert (dimension_order, seek_mode) == ("NHWC", "exact")
        self._path = path.removeprefix("file:")
        self._device = device
        self._info = probe(self._path)

    def __len__(self):
        return self._info.num_frames

    def get_frames_at(self, numbers):
        frames = decode_frames(self._path, numbers, decoder="pyav")
        return SimpleNamespace(
            data=torch.from_numpy(frames).to(self._device),
            pts_seconds=torch.tensor(numbers, dtype=torch.float64) / self._info.fps,
        )


@pytest.fixture(params=["torchcodec", "stand-in"])
def torchcodec(request, monkeypatch):
    if request.param == "torchcodec":
        pytest.importorskip("torchcodec")
        return
    module = ModuleType("torchcodec.decoders")
    module.VideoDecoder = FakeDecoder  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", module)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    write_clips(root, 6)
    return index_clips(root)


@pytest.mark.parametrize("scaling", ["opencv", "bilinear", "bicubic", "pillow_bicubic"])
@pytest.mark.parametrize("squeezes", [False, True])
@pytest.mark.parametrize(("height", "width", "wanted"), [(90, 122, 64), (48, 40, 56), (33, 33, 33)])
def test_scaling_on_a_device_gives_the_hosts_bytes(scaling, squeezes, height, width, wanted):
    frames = np.random.default_rng(0).integers(0, 256, (3, height, width, 3), dtype=np.uint8)
    expected = scale_frames(frames, scaling, wanted, squeezes=squeezes)
    found = scale_on_device(torch.from_numpy(frames), scaling, wanted, squeezes=squeezes)
    assert np.array_equal(found.numpy(), expected)


def _extract(root, index, backbone, decoder, **values):
    views = ViewPlan(index, backbone, Views(test_crops=3), decoder=decoder)
    plan = StorePlan(
        fingerprint_parts={"digest": index.digest},
        clips=views.samples,
        class_names=index.class_names,
        map_shape=backbone.map_shape,
        samples_per_shard=4,
    )
    chosen = BackboneSettings(**({"batch_size": 3, "max_failed_fraction": 0.5} | values))
    with StoreWriter(root, plan) as writer:
        summary = extract_features(views, backbone, writer, chosen)
        return writer.finish({}).parent, summary


@pytest.mark.parametrize("workers", [0, 2, "auto"])
def test_a_store_has_the_bytes_of_the_way_by_the_host(
    torchcodec, index, tmp_path, monkeypatch, workers
):
    host, _ = _extract(tmp_path / "a", index, RuledBackbone(), "pyav", num_decode_workers=0)
    monkeypatch.setattr(runner, "stays_on_device", lambda plan, device: True)
    filled = []
    submit = runner.ForwardPass.submit

    def watch(self, frames, *outs):
        filled.append((type(frames), frames.data_ptr()))
        submit(self, frames, *outs)

    monkeypatch.setattr(runner.ForwardPass, "submit", watch)
    backbone = RuledBackbone()
    device, summary = _extract(
        tmp_path / "b", index, backbone, "torchcodec", num_decode_workers=workers
    )
    assert read_tree(device) == read_tree(host)
    assert summary.failures == () and summary.num_decoded > 0
    assert {kind for kind, _ in filled} == {torch.Tensor}
    assert backbone.addresses == [address for _, address in filled], "no copy on the way"


@pytest.mark.parametrize(
    ("squeezes", "scaled", "box"),
    [(False, (46, 35), (7, 2, 39, 34)), (True, (35, 35), (2, 2, 34, 34))],
)
def test_squares_of_timms_models_lie_where_torchvision_cuts_them(
    torchcodec, index, tmp_path, squeezes, scaled, box
):
    """3 px are cut off, 2 of them above: on a device as on the host, with augmented views, too."""
    (request,) = ViewPlan(index, RuledBackbone(), decoder="torchcodec").jobs([0])
    rule = {"scaling": "pillow_bicubic", "resize_px": 35, "squeezes": squeezes}
    video = write_video(tmp_path / "v.mp4", num_frames=24, size=(64, 48))
    request = replace(request, path=str(video), content=None, info=None, **rule)
    (view,) = request.views
    whole = decode_frames(request.path, np.array(view.indices), decoder="pyav")
    bicubic = Image.Resampling.BICUBIC
    expected = [[Image.fromarray(frame).resize(scaled, bicubic).crop(box) for frame in whole]]
    assert np.array_equal(decode_on_device(request, device=CPU).frames, np.array(expected))
    host = replace(request, decoder="pyav")
    assert np.array_equal(decode_views(host, Stopwatch()), np.array(expected))
    augmented = replace(host, views=(replace(view, seed=0),))
    assert np.array_equal(decode_views(augmented, Stopwatch()), np.array(expected))


def test_a_clip_that_fails_is_listed_and_the_fallback_reads_what_torchcodec_refuses(
    torchcodec, index, tmp_path
):
    plan = ViewPlan(index, RuledBackbone(), decoder="torchcodec")
    sound, bad = list(plan.jobs(range(2)))
    bad = replace(bad, content=None, path=str(write_video(tmp_path / "v.avi", num_frames=24)))
    with DevicePool(CPU, 1, clip_timeout_seconds=60.0, prefetch_bytes=1 << 20) as pool:
        good, failed, read = pool.run([sound, bad, replace(bad, fallback="pyav")])
    assert failed.frames is None and "torchcodec finds no exact frames in avi" in failed.reason
    assert isinstance(good.frames, torch.Tensor) and isinstance(read.frames, torch.Tensor)
    assert good.frames.shape == read.frames.shape == (1, 8, 32, 32, 3)
    assert read.num_decoded > 0


def test_a_file_that_changed_is_refused(index):
    (request,) = ViewPlan(index, RuledBackbone(), decoder="torchcodec").jobs([0])
    request = replace(request, content=request.content._replace(size_bytes=1))
    with pytest.raises(Exception, match="1 when it was indexed"):
        decode_on_device(request, device=CPU)


def test_a_decoder_that_hangs_is_given_up_and_others_go_on(index, monkeypatch):
    def hang(request, *, device):
        if request.path.endswith("clip1.mp4"):
            time.sleep(5)
        return decode_on_device(replace(request, decoder="pyav"), device=device)

    monkeypatch.setattr("dsts_pipeline.extract.device_decoding.decode_on_device", hang)
    plan = ViewPlan(index, RuledBackbone(), decoder="torchcodec")
    with DevicePool(CPU, 2, clip_timeout_seconds=0.7, prefetch_bytes=1 << 20) as pool:
        answers = list(pool.run(plan.jobs(range(3))))
    assert [answer.frames is None for answer in answers] == [False, True, False]
    assert answers[1].reason == "decoding took longer than 0.7 s, 2 times"


def test_what_can_stay_on_a_gpu(index):
    cuda = torch.device("cuda", 0)
    plan = ViewPlan(index, RuledBackbone(), decoder="torchcodec_cuda")
    assert stays_on_device(plan, cuda)
    assert not stays_on_device(plan, CPU)
    assert not stays_on_device(replace(plan, decoder="torchcodec"), cuda)
    assert not stays_on_device(replace(plan, input=PoolingBackbone()), cuda)
    augmented = Views(augmentation=Augmentation(crop="resized"))
    assert not stays_on_device(replace(plan, views=augmented), cuda)


@needs_gpu
@pytest.mark.gpu
def test_nvdec_shows_what_the_cpu_shows(tmp_path):
    pytest.importorskip("torchcodec")
    write_video(tmp_path / "clip0.mp4", num_frames=24, size=(320, 256))
    (request,) = ViewPlan(
        replace(index_clips(tmp_path)), RuledBackbone(), decoder="torchcodec_cuda"
    ).jobs([0])
    found = decode_on_device(request, device=torch.device("cuda", 0)).frames
    expected = decode_on_device(request, device=CPU).frames
    assert found.device.type == "cuda" and found.shape == expected.shape
    # Two converters from YUV to RGB, which round apart.
    assert (found.cpu().int() - expected.int()).abs().float().mean() < 2.0


@needs_gpu
@pytest.mark.gpu
def test_a_store_is_made_without_the_host(index, tmp_path):
    pytest.importorskip("torchcodec")

    class OnGpu(RuledBackbone):
        device = torch.device("cuda", 0)

    path, summary = _extract(tmp_path, index, OnGpu(), "torchcodec_cuda")
    assert summary.failures == () and len(open_store(path)) == summary.num_clips
