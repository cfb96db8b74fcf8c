"""Files of every kind give the maps of intra-only copies of the same frames.

The copies are decoded packet by packet, so that nothing can go wrong with them; encoders round in
their own ways, which moves a map by a few hundredths of its norm. Other frames move it more.
"""

from __future__ import annotations

from dataclasses import replace

import av
import numpy as np
import pytest
import torch

from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.clips.probe import probe
from dsts_pipeline.extract import build_backbone
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from tests.clips.encodings import Encoding, write_encoding
from tests.pipeline import WEIGHTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]
MAX_DIFFERENCE = 0.12
PLAIN = Encoding("libx264", "mp4", num_frames=80, gop_size=25, num_b_frames=2)
KINDS = {
    "closed": PLAIN,
    "open": replace(PLAIN, groups="open"),
    "refresh": replace(PLAIN, groups="refresh", num_b_frames=0),
    "hevc_open": replace(PLAIN, codec="libx265", groups="open", num_frames=120),
    "avi_b_frames": replace(PLAIN, codec="mpeg4", ending="avi"),
    "mpeg2": replace(PLAIN, codec="mpeg2video", ending="mpg"),
    "vp9": replace(PLAIN, codec="libvpx-vp9", ending="webm", num_b_frames=0),
    "edit_list": replace(PLAIN, cut_at=18),
    "varying": replace(PLAIN, is_constant_rate=False, seed=5),
    "transport_stream": replace(PLAIN, ending="ts"),
}


def write_intra_only(path, number):
    """FFV1, every packet a key frame, of the frames that FFmpeg decodes from the file's start."""
    copy = path.with_name(f"intra{number}.mkv")
    with av.open(str(path)) as source, av.open(str(copy), "w") as file:
        stream = file.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 64, "bgr0"
        stream.gop_size = 1
        for place, frame in enumerate(source.decode(video=0)):
            still = av.VideoFrame.from_ndarray(frame.to_ndarray(format="rgb24"), "rgb24")
            still.pts = place
            file.mux(stream.encode(still.reformat(format="bgr0")))
        file.mux(stream.encode())
    return copy


def describe(path, split):
    info = probe(path)
    return Clip(
        path.stem,
        path.name,
        0,
        split,
        info.num_frames,
        0,
        info.num_frames,
        path.stat().st_size,
        sha256_file(path),
        gop=info.gop,
        container=info.container,
        codec=info.codec,
        width_px=info.width,
        height_px=info.height,
        num_hidden=info.num_hidden,
    )


def test_maps_are_those_of_intra_only_copies(tmp_path):
    clips = []
    for number, (name, encoding) in enumerate(KINDS.items()):
        path = write_encoding(tmp_path / f"{name}.{encoding.ending}", encoding)
        copy = write_intra_only(path, number)
        clips += [describe(path, "train"), describe(copy, "test")]
        assert clips[-1].gop == "intra" and clips[-1].num_frames == clips[-2].num_frames
    index = ClipIndex("kinds", str(tmp_path), ("a",), (), (), tuple(clips))
    backbone = build_backbone("stick_r18", weights=str(WEIGHTS), num_frames=16, size_px=64)
    backbone.to(torch.device("cpu"))
    views = ViewPlan(index, backbone)
    plan = StorePlan(
        views.describe(),
        clips=views.samples,
        class_names=("a",),
        map_shape=backbone.map_shape,
        dtype="float32",
    )
    with StoreWriter(tmp_path / "stores", plan) as writer:
        summary = extract_features(views, backbone, writer, BackboneSettings(num_decode_workers=0))
        store = open_store(writer.finish({}).parent)
    assert not summary.failures
    maps = store.read(range(len(store)))
    for place, name in enumerate(KINDS):
        found, right = maps[2 * place], maps[2 * place + 1]
        difference = np.linalg.norm(found - right) / np.linalg.norm(right)
        assert difference < MAX_DIFFERENCE, f"{name}: {difference:.3f}"
