"""`python cli.py prepare` on people's data: settings arrive, files are left where they are said."""

from __future__ import annotations

import json
import os

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import DatasetSettings
from dsts_pipeline.clips import videos
from dsts_pipeline.clips.prepare import prepare_clips
from tests.clips import test_diving48, test_ssv2
from tests.clips.videos import write_video
from tests.pipeline import run_cli, tell_plainly

FRAMES = {"start_frame": 0, "end_frame": 4}


@pytest.fixture
def root(tmp_path):
    """Diving48's layout: five-frame videos whose annotations name the last frame."""
    names = [f"dive{n // 2}_{n:05d}" for n in range(6)]
    items = [{"vid_name": name, "label": n % 2} | FRAMES for n, name in enumerate(names)]
    root = test_diving48.write_root(tmp_path / "data", train=items[:4], test=items[4:])
    for n, name in enumerate(names):
        write_video(root / "rgb" / f"{name}.mp4", num_frames=5, size=(32, 32), seed=n)
    return root


def prepare(folder, root, **settings):
    values = {"dataset__root": root, "dataset__render": "null", "dataset__format": "diving48"}
    return run_cli(folder, "prepare", **values | settings)


def test_settings_arrive_and_a_second_run_knows_the_videos(root, tmp_path):
    settings = {
        "dataset__heldout_fraction": 0.5,
        "dataset__heldout_by": "group",
        "dataset__official_counts": "true",
    }
    run = prepare(tmp_path, root, **settings)
    assert run.returncode == 0, run.stderr
    assert "2 train, 2 val, 2 test clips of 2 classes, 0 unusable" in run.stderr
    assert "end_frame is inclusive (auto): of 6 clips 0 end at" in run.stderr
    assert "published counts: train: 15,027 published, 4 annotated" in run.stderr
    index = json.loads((tmp_path / "outputs" / "clips.json").read_text())
    assert {clip["end_frame"] for clip in index["clips"]} == {5}
    check = json.loads((tmp_path / "outputs" / "clip_check.json").read_text())
    assert check["usable"] == {"train": 2, "val": 2, "test": 2}
    again = prepare(tmp_path, root, **settings)
    assert "6/6 videos" in again.stderr and "6 known" in again.stderr
    assert json.loads((tmp_path / "outputs" / "clips.json").read_text()) == index


def test_findings_are_a_table(root, tmp_path):
    (root / "rgb" / "spare.mp4").write_bytes(b"x")
    (root / "rgb" / "dive0_00001.mp4").unlink()
    run = prepare(tmp_path, root, dataset__max_problem_fraction=0.5)
    assert run.returncode == 0, run.stderr
    for text in ("Worth a look", "rgb/spare.mp4", "unusable: missing", "train/dive0_00001"):
        assert text in run.stderr


def test_a_refusal_leaves_all_problems_and_their_reasons(root, tmp_path):
    for name in ("dive0_00001", "dive2_00005"):
        (root / "rgb" / f"{name}.mp4").unlink()
    run = prepare(tmp_path, root)
    told = tell_plainly(run)
    assert "2 of 6 annotated clips" in told and "dataset.max_problem_fraction=0.334" in told
    assert "outputs/clip_check.json: all 2 unusable clips with reasons" in run.stderr
    check = json.loads((tmp_path / "outputs" / "clip_check.json").read_text())
    assert check["reasons"].keys() == {"train/dive0_00001", "test/dive2_00005"}
    assert "looked for" in check["reasons"]["test/dive2_00005"]
    assert told == f"error: {check['refused']}"
    assert not (tmp_path / "outputs" / "clips.json").exists()
    tell_plainly(prepare(tmp_path, root, dataset__class_file="none.json"))
    check = json.loads((tmp_path / "outputs" / "clip_check.json").read_text())
    assert "expected none.json" in check["refused"] and "reasons" not in check


def test_what_a_training_does_with_too_few_clips_is_told_before_the_extraction(root, tmp_path):
    run = prepare(tmp_path, root)
    assert run.returncode == 0, run.stderr
    assert (
        "train-head: 4 training clips do not fill two batches of train.batch_size 32: batches of 2 "
        "are taken"
    ) in run.stderr
    check = json.loads((tmp_path / "outputs" / "clip_check.json").read_text())
    assert check["notes"] == []  # a training's settings decide nothing that the stage leaves
    assert "batches of" not in prepare(tmp_path, root, train__batch_size=2).stderr
    lone = {"head__num_neurons": 1, "head__specialization": "ungated"}  # UDL has no part in it
    assert "batches of" not in prepare(tmp_path, root, train__batch_size=4, **lone).stderr
    refused = prepare(tmp_path, root, train__early_stopping_epochs=2, train__heldout_fraction=0.001)
    assert "warning: train-head will refuse these clips" in refused.stderr


def test_a_name_that_is_no_utf8_is_one_problem_of_many(tmp_path):
    for split in ("train", "test"):
        write_video(tmp_path / "data" / split / "a" / "1.mp4", num_frames=3, size=(32, 32))
    top = os.fsencode(tmp_path / "data")
    os.rename(top + b"/test/a/1.mp4", top + b"/test/a/caf\xe9.mp4")
    write_video(tmp_path / "data" / "test" / "a" / "2.mp4", num_frames=4, size=(32, 32))
    run = prepare(tmp_path, tmp_path / "data", dataset__format="folder")
    assert "test/a/caf\\xe9 (its name is no UTF-8" in tell_plainly(run)
    run = prepare(
        tmp_path, tmp_path / "data", dataset__format="folder", dataset__max_problem_fraction=0.5
    )
    assert run.returncode == 0 and "1 train, 1 test clips of 1 classes, 1 unusable" in run.stderr
    check = json.loads((tmp_path / "outputs" / "clip_check.json").read_text())
    assert check["problems"] == {"name": ["test/a/caf\\xe9"]}
    assert check["annotated"] == {"train": 1, "test": 2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dataset__format": "zip"}, "expected 'diving48', 'ssv2', 'folder', 'csv' or 'mmaction'"),
        ({"dataset__format": "csv"}, "train.csv: no such file"),
        ({"dataset__end_frame": "maybe"}, "expected 'auto', 'exclusive' or 'inclusive'"),
        ({"dataset__train_file": "my.json"}, "no Diving48_V2_train.json; expected my.json"),
        ({"dataset__min_frames": 6}, "6 of 6 annotated clips are unusable"),
    ],
)
def test_wrong_settings_are_told_plainly(root, tmp_path, settings, message):
    assert message in tell_plainly(prepare(tmp_path, root, **settings))


# ---- links, whatever the format -----------------------------------------------------------------


def write_ssv2(root, name):
    test_ssv2.write_root(root, train=[test_ssv2.PUT | {"id": name}], validation=[test_ssv2.PRETEND])
    return f"{name}.webm", "99.webm"


def write_diving48(root, name):
    test_diving48.write_root(root, train=[{"vid_name": name, "label": 0}])
    return f"rgb/{name}.mp4", "rgb/b.mp4"


def write_csv(root, name):
    (root / "annotations.csv").write_text(f"path,label,split\n{name}.mp4,a,train\nb.mp4,a,test\n")
    return f"{name}.mp4", "b.mp4"


def write_mmaction(root, name):
    (root / "train.txt").write_text(f"{name}.mp4 0\n")
    (root / "val.txt").write_text("b.mp4 0\n")
    return f"{name}.mp4", "b.mp4"


FORMATS = {
    "ssv2": write_ssv2,
    "diving48": write_diving48,
    "csv": write_csv,
    "mmaction": write_mmaction,
}


@pytest.mark.parametrize("through", ["a link", "a linked folder"])
@pytest.mark.parametrize("kind", FORMATS)
def test_a_link_out_of_the_root_is_never_opened(tmp_path, kind, through, monkeypatch):
    root, outside = tmp_path / "data", tmp_path / "outside"
    (root / "rgb").mkdir(parents=True)
    name = "x" if through == "a link" else "sub/x"
    linked, sound = FORMATS[kind](root, name)
    codec = "libvpx-vp9" if kind == "ssv2" else "libx264"
    for path in (root / sound, outside / (root / linked).name):
        write_video(path, num_frames=3, size=(32, 32), codec=codec)
    if through == "a link":
        (root / linked).symlink_to(outside / linked.split("/")[-1])
    else:
        (root / linked).parent.symlink_to(outside)
    opened, real = [], videos.probe
    monkeypatch.setattr(videos, "probe", lambda path: opened.append(path) or real(path))
    with pytest.raises(DataError, match="no clip of the train split is usable") as caught:
        prepare_clips(DatasetSettings(format=kind, root=str(root), max_problem_fraction=1.0))
    assert f"{name} (a link that leads out of the data root)" in str(caught.value)
    assert [path.name for path in opened] == [sound.split("/")[-1]]
