"""Groups of the clip index in the store that `extract` makes, also when they change later."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from dsts_pipeline.base.files import read_json
from dsts_pipeline.feature_store import open_store
from tests.clips.videos import write_video
from tests.pipeline import WEIGHTS, run_cli

pytestmark = pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here")
SETTINGS = {
    "dataset__format": "csv",
    "dataset__root": "data",
    "dataset__render": "null",
    "backbone__weights": WEIGHTS,
    "backbone__num_decode_workers": 0,
}


def annotate(folder: Path, groups: list[str]) -> None:
    with (folder / "data" / "annotations.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", "label", "split", "group"])
        for number, group in enumerate(groups):
            table.writerow(
                [f"c{number}.mp4", "ab"[number % 2], "train test".split()[number // 6], group]
            )


def extract(folder: Path):
    for command in ("prepare", "extract"):
        run = run_cli(folder, command, **SETTINGS)
        assert run.returncode == 0, run.stderr
    return run, open_store(folder / read_json(folder / "outputs" / "features.json")["store"])


@pytest.mark.long
def test_groups_that_changed_are_written_anew_and_no_clip_is_decoded(tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(8):
        write_video(tmp_path / "data" / f"c{number}.mp4", num_frames=16, size=(96, 96), seed=number)
    annotate(tmp_path, [""] * 8)
    _, plain = extract(tmp_path)
    assert plain.groups is None
    shards = {path: path.stat().st_mtime_ns for path in plain.path.glob("maps/c.*")}
    for groups in ([f"p{n % 3}" for n in range(8)], [f"p{n % 4}" for n in range(8)]):
        annotate(tmp_path, groups)
        run, store = extract(tmp_path)
        assert store.path == plain.path and list(store.groups) == groups
        assert "its clips' groups are other ones: written anew; the maps stay" in run.stderr
    assert {path: path.stat().st_mtime_ns for path in plain.path.glob("maps/c.*")} == shards
    again, _ = extract(tmp_path)
    assert "groups" not in again.stderr
    # train-head opens what was recorded, and tells the groups that both splits have.
    run = run_cli(tmp_path, "train-head", train__batch_size=2, train__num_epochs=1, **SETTINGS)
    assert run.returncode == 0, run.stderr
    assert "warning: 2 of 2 test clips are of groups that train clips are of, too" in run.stderr
