"""Exported files on real clips: from a run's videos or maps to what onnxruntime says of them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError, ExportError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.metrics import softmax
from dsts_pipeline.serve import exported_model as export_check
from dsts_pipeline.serve import exported_model as model_files
from dsts_pipeline.serve.exported_model import (
    decode_some,
    head_subject,
    read_some,
    whole_subject,
    write_model,
)
from tests.extract.small_set import index_clips, write_clips
from tests.pipeline import TINY, run_cli, tell_plainly
from tests.serve.small_bundle import backbone, make_bundle, make_head
from tests.stages.ready_store import QUICK, make_ready


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_clips(root, 9)
    return index_clips(root)


# ---- the functions ----------------------------------------------------------------------------


def test_clips_are_spread_over_the_split(videos):
    frames = decode_some(make_bundle(), videos, "test", 2)
    assert frames.shape == (2, 16, 64, 64, 3) and frames.dtype == torch.uint8
    every = decode_some(make_bundle(), videos, "test", 99)
    assert len(every) == 3 and torch.equal(every[[0, 2]], frames)


def test_clips_that_cannot_be_decoded_are_told(videos):
    damaged = tuple(replace(clip, sha256="0" * 64) for clip in videos.clips)
    with pytest.raises(DataError, match=r"0 clips of test .*its content changed"):
        decode_some(make_bundle(), replace(videos, clips=damaged), "test", 4)


def test_whole_model_is_backbone_and_head(videos):
    frames, bundle = decode_some(make_bundle(), videos, "test", 3), make_bundle()
    subject = whole_subject(bundle.backbone, bundle.head, frames)
    with torch.inference_mode():
        found, expected = subject.model(frames), subject.reference(frames)
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert torch.equal(found[1], expected[1])
    assert set(subject.beside) > {"backbone and head, PyTorch"}


@pytest.fixture
def quick_save(monkeypatch):
    """Nothing is traced: the 'file' is a note, and it runs as the exportable form does."""

    def save(path, subject, file_format, record):
        path.write_text("a model")
        return subject.model, {"kind": file_format}

    monkeypatch.setattr(model_files, "_save", save)


def subject_of_maps(videos):
    with torch.inference_mode():
        maps = backbone()(decode_some(make_bundle(), videos, "test", 3))
    return head_subject(make_head(), maps.clone())


def test_record_names_file_check_and_times(videos, quick_save, tmp_path):
    out = tmp_path / "new" / "head.pt2"
    found = write_model(out, subject_of_maps(videos), "program", {"title": "t"}, seconds=0.01)
    record = json.loads((tmp_path / "new" / "head.pt2.json").read_text())
    assert record["files"] == {"head.pt2": {"bytes": 7, "sha256": sha256_file(out)}}
    assert record["check"]["num_clips"] == 3 and record["check"]["num_routed_differently"] == 0
    assert record["milliseconds_per_clip"]["by_batch_size"] == found.times
    assert list(found.times) == [
        "head, PyTorch",
        "compiled head, PyTorch",
        "this program, torch",
    ]
    assert sorted(path.name for path in out.parent.iterdir()) == ["head.pt2", "head.pt2.json"]


@pytest.mark.parametrize("taken", ["head.onnx", "head.onnx.json", "head.onnx.data"])
def test_nothing_is_overwritten(videos, quick_save, tmp_path, taken):
    (tmp_path / taken).write_text("precious")
    with pytest.raises(ExportError, match=f"{taken} exists already"):
        write_model(tmp_path / "head.onnx", subject_of_maps(videos), "onnx", {})
    assert [path.name for path in tmp_path.iterdir()] == [taken]


def test_a_model_that_differs_leaves_no_file(videos, quick_save, tmp_path, monkeypatch):
    monkeypatch.setattr(export_check, "TOLERANCE", 0.0)
    subject = subject_of_maps(videos)
    wrong = replace(
        subject, model=lambda maps: (subject.model(maps)[0] + 1, subject.model(maps)[1])
    )
    with pytest.raises(ExportError, match="differs from PyTorch on 3 clips"):
        write_model(tmp_path / "head.pt2", wrong, "program", {})
    assert list(tmp_path.iterdir()) == []


# ---- the command ------------------------------------------------------------------------------


@pytest.mark.slow
def test_command_exports_the_head_of_a_run(tmp_path):
    make_ready(tmp_path)
    train = run_cli(tmp_path, "train-head", **QUICK)
    assert train.returncode == 0, train.stderr
    done = run_cli(tmp_path, "export", "out/head.onnx", **QUICK)
    assert done.returncode == 0, done.stderr
    assert "equals PyTorch on 32 clips of test" in done.stderr and "onnxruntime" in done.stderr
    record = json.loads((tmp_path / "out" / "head.onnx.json").read_text())
    assert record["model"] == "head" and record["outputs"] == ["logits", "routing"]
    assert "exists already" in tell_plainly(run_cli(tmp_path, "export", "out/head.onnx", **QUICK))
    whole = run_cli(tmp_path, "export", "whole.onnx", "--whole", **QUICK)
    assert "features were imported" in tell_plainly(whole)
    tuning = tell_plainly(run_cli(tmp_path, "finetune"))
    assert "features were imported, and finetune needs videos" in tuning
    pair = "export", "head.bin", "--format", "program"
    assert "ends in .pt2" in tell_plainly(run_cli(tmp_path, *pair))


def run_onnx(path, inputs):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return session.run(None, {session.get_inputs()[0].name: inputs})


@pytest.mark.long
def test_files_say_of_rendered_clips_what_evaluate_said(tmp_path):
    settings = {key.replace(".", "__"): value for key, value in TINY.items()}
    for stage in ("prepare", "extract", "train-head", "evaluate"):
        assert run_cli(tmp_path, stage, **settings).returncode == 0
    for arguments in (["head.onnx"], ["head.pt2"], ["whole.onnx", "--whole"]):
        done = run_cli(tmp_path, "export", *arguments, **settings)
        assert done.returncode == 0, done.stderr
    written = np.load(tmp_path / "outputs" / "evaluation" / "predictions" / "dsts.npz")
    expected = written["probabilities"]
    features = json.loads((tmp_path / "outputs" / "features.json").read_text())
    maps = read_some(open_store(tmp_path / features["store"]), "test", 24).numpy()
    logits, routing = run_onnx(tmp_path / "head.onnx", maps)
    np.testing.assert_allclose(softmax(logits), expected, atol=1e-4)
    assert len(np.unique(routing, axis=0)) > 1  # one batch, several ways through the neurons
    record = json.loads((tmp_path / "whole.onnx.json").read_text())
    assert record["check"]["num_clips"] == 16 and record["check"]["num_routings"] > 1
    index = ClipIndex.load(tmp_path / "outputs" / "clips.json")
    index = replace(index, root=str(tmp_path / index.root))
    frames = decode_some(make_bundle(), index, "test", 24).numpy()
    # The store rounded the maps to float16, the whole model does not.
    logits, _ = run_onnx(tmp_path / "whole.onnx", frames)
    np.testing.assert_allclose(softmax(logits), expected, atol=0.02)
