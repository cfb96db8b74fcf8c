"""Answers for video files: those that the cached maps give, and reasons where there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import sha256_file
from dsts_pipeline.base.settings import BackboneSettings, RenderSettings, Settings
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.pipelines import Pipeline
from dsts_pipeline.extract.runner import extract_features
from dsts_pipeline.extract.views import InputRule, ViewPlan, Views, preview_request
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.head import LinearProbe
from dsts_pipeline.metrics import softmax
from dsts_pipeline.serve import Predictor, Refusal, save_bundle
from dsts_pipeline.serve.annotate import compose, draw_panel
from dsts_pipeline.serve.answers import name_outputs
from dsts_pipeline.serve.video_jobs import (
    VideoJob,
    list_videos,
    look_and_decode,
)
from dsts_pipeline.stick import render_embedded
from stages import predict as stage
from tests.clips.videos import write_video
from tests.extract.bad_clips import GOOD, NUM_FRAMES, write_kinds
from tests.pipeline import ROOT, run_cli
from tests.serve.hanging import break_on_request, sleep_for_ever
from tests.serve.small_bundle import CLASSES, FINGERPRINT, backbone, make_bundle, make_of

VIEWS = Views(test_clips=2, test_crops=1)


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    """Four clips of the embedded data set."""
    root = tmp_path_factory.mktemp("data") / "stick"
    recipe = RenderSettings(
        num_train=2, num_test=4, size_px=64, num_frames=16, difficulty=1.0, seed=3, num_workers=1
    )
    render_embedded(root, recipe)
    return sorted((root / "rgb").glob("stick_test_*.mp4"))


@pytest.fixture(scope="module")
def odd(tmp_path_factory) -> Path:
    """A folder with a file of every sound and every broken kind, and one that is no video."""
    folder = tmp_path_factory.mktemp("odd") / "kinds"
    write_kinds(folder)
    (folder / "hanging.mp4").unlink()
    os.mkfifo(folder / "hanging.mp4")
    (folder / "notes.txt").write_text("no video, and not called one")
    return folder


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return save_bundle(tmp_path_factory.mktemp("bundles") / "b", make_bundle())


def index_of(paths: list[Path], num_frames: int = 16) -> ClipIndex:
    clips = [
        Clip(
            id=path.stem,
            path=path.name,
            label=0,
            split="test",
            num_frames=num_frames,
            start_frame=0,
            end_frame=num_frames,
            size_bytes=path.stat().st_size,
            sha256=sha256_file(path),
            fps=24.0,
        )
        for path in paths
    ]
    return ClipIndex("clips", str(paths[0].parent), CLASSES, (), (), tuple(clips))


def cache(root: Path, paths: list[Path]):
    """The store of these clips, as `extract` makes it."""
    index = index_of(paths)
    rows = ViewPlan(index, backbone(), VIEWS)
    plan = StorePlan({"test": 1}, rows.samples, CLASSES, backbone().map_shape, samples_per_shard=4)
    with StoreWriter(root, plan) as writer:
        extract_features(rows, backbone(), writer, BackboneSettings(num_decode_workers=0))
        return open_store(writer.finish({}).parent)


# ---- what is said -----------------------------------------------------------------------------


def test_answers_are_those_of_the_cached_maps(clips, tmp_path):
    maps = cache(tmp_path, clips).read(range(8)).astype(np.float32)
    made_of = make_of(backbone()) | {"views": VIEWS.describe()["views"]}
    bundle = make_bundle(made_of=made_of)
    with torch.inference_mode():
        cached = bundle.head(torch.from_numpy(maps)).numpy()
        routes = bundle.head.routing(torch.from_numpy(maps)).numpy()
    with Predictor(bundle, batch_size=3) as predictor:
        answers = list(predictor.predict(clips))
    assert [answer.path for answer in answers] == clips
    for number, answer in enumerate(answers):
        rows = slice(2 * number, 2 * number + 2)
        # float16 keeps 11 bits of each value of the map.
        scale = np.abs(cached).max()
        np.testing.assert_allclose(answer.logits, cached[rows], atol=scale * 2**-10)
        np.testing.assert_array_equal(answer.neurons, routes[rows])
        expected = softmax(cached[rows]).mean(axis=0)
        np.testing.assert_allclose(answer.probabilities, expected, atol=2e-3)
        np.testing.assert_allclose(answer.pooled, maps[rows].mean(axis=(0, 2, 3, 4)), atol=1e-3)
        assert answer.top(1)[0][0] == answer.probabilities.argmax()
        assert set(answer.seconds) == {"decode", "transform", "backbone", "head"}
        assert min(answer.seconds.values()) > 0
    assert len({answer.logits.tobytes() for answer in answers}) == 4


PIPELINE = Pipeline("swin_uniform", {"clip_len": 8, "num_clips": 1}, 8, 32, 32)


@pytest.mark.parametrize("pipeline", [None, PIPELINE])
def test_frames_are_those_of_extraction(tmp_path, pipeline):
    path = write_video(tmp_path / "wide.mp4", num_frames=21, size=(80, 64))
    fed = InputRule(8, 32, 32, pipeline)
    plan = ViewPlan(index_of([path], 21), fed, Views(test_crops=3))
    (job,) = plan.jobs(range(3))
    own = VideoJob(str(path), "decord", input=fed, views=Views(test_crops=3))
    seen = look_and_decode(own)
    np.testing.assert_array_equal(seen.frames, decode_clip(job))
    assert own.answer_bytes == seen.frames.nbytes
    assert (seen.info.num_frames, seen.info.width, seen.info.height) == (21, 80, 64)


def test_a_head_without_routes_answers_too(clips):
    head = LinearProbe(128, len(CLASSES)).eval()
    record = {"store": FINGERPRINT, "title": "probe"}
    with Predictor(make_bundle(head=head, head_record=record)) as predictor:
        (answer,) = predictor.predict(clips[:1])
        assert predictor.num_neurons is None and predictor.temporal_shares == []
    assert answer.neurons is None and answer.probabilities.sum() == pytest.approx(1, abs=1e-5)


# ---- broken files -----------------------------------------------------------------------------


def test_broken_files_have_reasons_and_sound_ones_answers(odd):
    paths = list_videos([odd]).paths
    with Predictor(make_bundle(), decoder_fallback="pyav", clip_timeout_seconds=30) as predictor:
        answers = {answer.path.stem: answer for answer in predictor.predict(paths)}
    assert len(answers) == len(paths) == len(list(odd.iterdir())) - 1
    refused = {name for name, answer in answers.items() if isinstance(answer, Refusal)}
    broken = {"empty", "text", "noise", "sound_only", "hanging"}
    assert refused == broken | {f"cut{percent}" for percent in (5, 20, 50, 80, 97)}
    assert set(GOOD) <= answers.keys() - refused
    assert answers["empty"].reason == "it is empty"
    assert all(answers[name].reason for name in refused)


def test_a_decoder_that_hangs_is_ended(clips, monkeypatch):
    monkeypatch.setattr("dsts_pipeline.serve.predictor.work", sleep_for_ever)
    with Predictor(make_bundle(), clip_timeout_seconds=1) as predictor:
        (answer,) = predictor.predict(clips[:1])
    assert isinstance(answer, Refusal) and "longer than 1 s" in answer.reason


# ---- files and pictures -----------------------------------------------------------------------


def test_which_files_are_meant(odd, clips):
    listed = list_videos([clips[0], odd, clips[0]])
    assert listed.paths[0] == clips[0] and len(set(listed.paths)) == len(listed.paths)
    assert listed.num_left_out == 1
    with pytest.raises(DataError, match=r"nowhere\.mp4: no such file"):
        list_videos([Path("nowhere.mp4")])
    with pytest.raises(DataError, match="no video in it"):
        list_videos([ROOT / "configs"])


def test_names_of_copies_never_meet():
    paths = [Path("a/clip.mp4"), Path("b/clip.mp4"), Path("clip-2.avi"), Path("clip.mkv")]
    names = name_outputs(paths, "-annotated.mp4")
    assert names[0] == "clip-annotated.mp4" and len(set(names)) == 4


def test_panel_is_as_wide_as_asked_whatever_the_names():
    bars = [("a" * 300, 1.0), ("\x1b[31mred\n", 0.0)]
    panel = draw_panel(bars, ["x" * 500], 320)
    assert panel.width == 320 and panel.height % 2 == 0
    for height, width in ((2, 900), (900, 2), (64, 64)):
        sheet = compose(np.zeros((height, width, 3), np.uint8), panel)
        assert sheet.width == 320 and sheet.height % 2 == 0 and sheet.height < 800


def test_preview_is_a_square_of_the_asked_size(odd):
    index = index_of([odd / "odd_size.mp4", odd / "text.mp4"], NUM_FRAMES)
    requests = [preview_request(index, clip, 16, size_px=48) for clip in index.clips]
    with Predictor(make_bundle()) as predictor:
        frames, broken = predictor.preview(requests)
    assert frames.shape == (16, 48, 48, 3) and broken is None


# ---- the stage and the command ----------------------------------------------------------------


def test_stage_writes_lines_and_copies(exported, clips, odd, tmp_path, capsys):
    videos = [clips[0], odd / "text.mp4", odd / "rotated.mp4"]
    options = {"bundle": exported, "json_file": tmp_path / "a.jsonl", "annotate": tmp_path / "out"}
    settings = Settings.model_validate({"backbone": {"decoder_fallback": "pyav"}})
    with pytest.raises(stage.SomeRefused, match="1 of 3 videos"):
        stage.run(settings, videos=videos, **options)
    shown = capsys.readouterr().out
    assert "no answer: FFmpeg" in shown and "milliseconds per video: decode" in shown
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [line["video"] for line in lines] == [str(path) for path in videos]
    assert lines[1].keys() == {"video", "error"}
    good = lines[0]
    assert [entry["name"] for entry in good["top"]] == [CLASSES[e["class"]] for e in good["top"]]
    assert len(good["top"]) == 5 and len(good["neurons"][0]) == 2 == len(good["temporal_share"])
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {f"{clips[0].stem}-annotated.mp4", "rotated-annotated.mp4"}
    with av.open(str(tmp_path / "out" / "rotated-annotated.mp4")) as file:
        frames = list(file.decode(video=0))
    assert len(frames) == NUM_FRAMES and frames[0].width == 480


def test_annotated_gif(exported, clips, tmp_path):
    stage.run(Settings(), videos=clips[:1], bundle=exported, annotate=tmp_path, gif=True)
    (path,) = tmp_path.glob("*-annotated.gif")
    with av.open(str(path)) as file:
        assert sum(1 for _ in file.decode(video=0)) == 16


def test_json_over_a_video_is_refused(exported, clips, tmp_path):
    content = clips[0].read_bytes()
    with pytest.raises(DataError, match="is one of the videos"):
        stage.run(Settings(), videos=clips[:1], bundle=exported, json_file=clips[0])
    assert clips[0].read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "status", "word"),
    [
        (["{clip}", "--bundle", "{bundle}"], 0, "milliseconds"),
        (["{clip}", "{bad}", "--bundle", "{bundle}"], 1, "no answer"),
        (["nowhere.mp4", "--bundle", "{bundle}"], 2, "no such file"),
        (["{clip}", "--bundle", "nowhere"], 2, "no bundle here"),
        (["{clip}"], 2, "outputs/heads/dsts holds no finished head"),
        ([], 2, "Missing argument"),
    ],
)
@pytest.mark.long
def test_exit_status(exported, clips, odd, tmp_path, arguments, status, word):
    places = {"clip": clips[0], "bad": odd / "noise.mp4", "bundle": exported}
    run = run_cli(tmp_path, "predict", *(text.format(**places) for text in arguments))
    assert run.returncode == status, run.stderr
    assert word in run.stdout + run.stderr and "Traceback" not in run.stderr


def test_decode_processes_do_not_import_torch():
    code = "import sys, dsts_pipeline.serve.video_jobs; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="10" height="10"></svg>'


def test_one_video_that_nobody_foresaw_leaves_the_others_their_answers(
    clips, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("dsts_pipeline.serve.predictor.work", break_on_request)
    breaking = tmp_path / "breaking.mp4"
    breaking.write_bytes(b"break")
    paths = [breaking, clips[0], breaking, clips[1]]
    with Predictor(make_bundle(), num_decode_workers=2) as predictor:
        answers = list(predictor.predict(paths))
    told = "decoding failed: AttributeError: 'NoneType' object has no attribute 'decode'"
    assert [type(answer) is Refusal for answer in answers] == [True, False, True, False]
    assert answers[0].reason == answers[2].reason == told


@pytest.mark.slow
def test_a_stream_without_a_decoder_is_listed_and_the_others_are_answered(
    exported, clips, tmp_path
):
    (tmp_path / "picture.mp4").write_bytes(SVG)
    lines = tmp_path / "lines.jsonl"
    run = run_cli(
        tmp_path, "predict", str(tmp_path / "picture.mp4"), str(clips[0]),
        "--bundle", str(exported), "--json", str(lines),
    )  # fmt: skip
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert "1 of 2 videos have no answer" in run.stderr
    first, second = map(json.loads, lines.read_text().splitlines())
    assert first["error"] and "top" in second
