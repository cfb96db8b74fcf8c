"""Groups of clips in a store: kept, refreshed without the maps, carried everywhere, dealt."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import read_json, sign, write_json
from dsts_pipeline.base.settings import DatasetSettings, FeedSettings
from dsts_pipeline.feature_store import StoreWriter, open_store
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.housekeeping import list_stores, remove_store
from dsts_pipeline.feature_store.opening import open_features, record_store
from dsts_pipeline.feature_store.verify import check_store
from tests.feature_store.servers import http_server
from tests.feature_store.small_store import FAILURES, make_plan, read_tree, write_store

PLAYERS = [f"player {position % 4}" for position in range(23)]
OTHERS = [f"player {position % 5}" for position in range(23)]
# The children of these tests: write the store with such groups.
WRITE = """
import json, os, sys
from pathlib import Path
from tests.feature_store.small_store import make_plan, write_store
root, groups, last_step = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
steps = 0

def dying(function):
    def step(*arguments, **keywords):
        global steps
        steps += 1
        if steps == last_step:
            os.kill(os.getpid(), 9)
        return function(*arguments, **keywords)
    return step

for name in ("fsync", "replace", "unlink"):
    setattr(os, name, dying(getattr(os, name)))
write_store(root, make_plan(groups=groups))
"""


def write_grouped(root: Path, groups=PLAYERS) -> Path:
    return write_store(root, make_plan(groups=groups))


def groups_files(path: Path) -> list[str]:
    return [file.name for file in path.glob("groups-*.json")]


def test_groups_of_rows_are_kept(tmp_path):
    store = open_store(write_grouped(tmp_path))
    kept = [group for position, group in enumerate(PLAYERS) if position not in FAILURES]
    assert list(store.groups) == kept
    assert store.group_numbers.tolist() == [int(group[-1]) for group in kept]
    assert store.division.startswith(f"{store.fingerprint}-")
    (name,) = groups_files(store.path)
    assert name in store.manifest["files"]


@pytest.mark.parametrize("groups", [None, [None] * 23])
def test_without_groups_the_store_has_the_bytes_it_had(tmp_path, groups):
    path = write_grouped(tmp_path, groups)
    plain = write_store(tmp_path / "plain")
    assert path.name == plain.name and read_tree(path) == read_tree(plain)
    store = open_store(path)
    assert store.groups is store.group_numbers is None and store.division == store.fingerprint


def test_the_fingerprint_and_all_other_files_do_not_depend_on_groups(tmp_path):
    path = write_grouped(tmp_path)
    plain = write_store(tmp_path / "plain")
    assert path.name == plain.name
    tree = read_tree(path)
    (name,) = groups_files(path)
    assert tree.keys() - read_tree(plain).keys() == {name}
    differing = {file for file, content in read_tree(plain).items() if tree[file] != content}
    assert differing == {"manifest.json"}


@pytest.mark.parametrize(("former", "now"), [(PLAYERS, OTHERS), (None, OTHERS), (PLAYERS, None)])
def test_other_groups_replace_their_file_and_the_manifest_alone(tmp_path, capsys, former, now):
    path = write_grouped(tmp_path, former)
    before = {file: (path / file).stat().st_mtime_ns for file in read_tree(path)}
    provenance = read_json(path / "manifest.json")["provenance"]
    capsys.readouterr()
    with StoreWriter(tmp_path, make_plan(groups=now)) as writer:
        assert writer.pending_shards() == []
        writer.finish({"command": "later"})
    told = capsys.readouterr().err
    assert f"{path.name}: its clips' groups are other ones" in told and told.count("\n") == 1
    after = {file: (path / file).stat().st_mtime_ns for file in read_tree(path)}
    changed = {file for file in after.keys() | before.keys() if after.get(file) != before.get(file)}
    assert {file for file in changed if not file.startswith("groups-")} == {"manifest.json"}
    assert len(groups_files(path)) == (now is not None)
    assert read_json(path / "manifest.json")["provenance"] == provenance, "the maps' own"
    assert read_tree(path) == read_tree(write_grouped(tmp_path / "fresh", now))
    assert check_store(path, fast=False).damage == []
    with StoreWriter(tmp_path, make_plan(groups=now)) as writer:
        writer.finish({"command": "later"})
    assert "groups" not in capsys.readouterr().err, "nothing to say the second time"


@pytest.mark.slow
def test_a_kill_at_any_step_leaves_the_former_groups_or_the_new_ones(tmp_path):
    expected = read_tree(write_grouped(tmp_path / "fresh", OTHERS))
    step, died, seen = 0, True, set()
    while died:
        step += 1
        root = tmp_path / str(step)
        path = write_grouped(root)
        child = subprocess.run(
            [sys.executable, "-c", WRITE, str(root), json.dumps(OTHERS), str(step)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
        )
        died = child.returncode == -signal.SIGKILL
        assert died or child.returncode == 0, child.stderr
        store = open_store(path)
        assert check_store(path, fast=False).damage == []
        (entry,) = list_stores(root)
        assert entry.state == "complete" and entry.removable
        seen.add((len(set(store.groups)), len(groups_files(path))))
        assert read_tree(write_grouped(root, OTHERS)) == expected, f"step {step}"
    # The former ones; both files with the former manifest; both with the new one; the new ones.
    assert {(4, 1), (4, 2), (5, 1)} <= seen and step > 4


def test_a_writer_that_finishes_later_does_not_lose_its_file(tmp_path):
    """Two with different groups at work at once: who finishes last decides."""
    write_grouped(tmp_path, None)
    with StoreWriter(tmp_path, make_plan(groups=PLAYERS)) as first:
        with StoreWriter(tmp_path, make_plan(groups=OTHERS)) as second:
            second.finish({})
        path = first.finish({}).parent
    assert len(set(open_store(path).groups)) == 4 and len(groups_files(path)) == 1


# ---- carried everywhere --------------------------------------------------------------------------


@pytest.mark.parametrize("split", [None, "test"])
def test_an_exported_file_has_the_groups(tmp_path, split):
    store = open_store(write_grouped(tmp_path / "stores"))
    file = open_store(export_hdf5(store, tmp_path / "maps.h5", split))
    rows = range(len(store)) if split is None else store.rows_of_split(split)
    assert list(file.groups) == [store.groups[row] for row in rows]
    again = open_store(export_hdf5(file, tmp_path / "again.h5"))
    assert again.groups == file.groups and again.planned_groups == file.planned_groups
    plain = open_store(write_store(tmp_path / "plain"))
    assert open_store(export_hdf5(plain, tmp_path / "plain.h5")).groups is None


def test_a_remote_store_has_the_groups(tmp_path):
    path = write_grouped(tmp_path / "stores")
    with http_server(path.parent) as server:
        store = open_store(f"{server.url}/{path.name}", cache_dir=tmp_path / "kept")
        assert store.groups == open_store(path).groups


def test_damage_is_told_and_written_again(tmp_path):
    path = write_grouped(tmp_path)
    (name,) = groups_files(path)
    expected = read_tree(path)
    (path / name).write_text("{}")
    with pytest.raises(StoreError, match=f"file {name} is damaged"):
        open_store(path)
    assert any(name in damage for damage in check_store(path, fast=True).damage)
    (path / name).unlink()
    with pytest.raises(StoreError, match=f"file {name} is missing"):
        open_store(path)
    assert read_tree(write_grouped(tmp_path)) == expected


def test_groups_of_another_number_of_maps_are_refused(tmp_path):
    path = write_grouped(tmp_path)
    other = write_grouped(tmp_path / "other", PLAYERS[:-1] + ["player 9"])
    (name,) = groups_files(other)
    content = json.dumps({"groups": PLAYERS[:-1]}).encode()
    (path / name).write_bytes(content)
    manifest = read_json(path / "manifest.json")
    (old,) = (file for file in manifest["files"] if file.startswith("groups-"))
    del manifest["files"][old]
    digest = hashlib.sha256(content).hexdigest()
    manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    write_json(path / "manifest.json", sign(manifest))
    with pytest.raises(StoreError, match="tells groups of 22 maps, expected 23"):
        open_store(path)
    with pytest.raises(ValueError, match="22 groups, expected one of 23"):
        make_plan(groups=PLAYERS[:-1])


def test_a_store_with_groups_is_listed_and_removed(tmp_path):
    path = write_grouped(tmp_path)
    (path / "groups-0123abcd.json").write_text("left over")
    (entry,) = list_stores(tmp_path)
    assert entry.state == "complete" and entry.removable
    remove_store(tmp_path, entry)
    assert not path.exists()


# ---- folds ---------------------------------------------------------------------------------------


def test_folds_answer_every_clip_once_and_keep_groups_whole(tmp_path):
    store = open_store(write_grouped(tmp_path))
    folds = store.deal_folds(2, 0)
    assert len(folds) == 2
    tested = [set(fold.rows_of_split("test").tolist()) for fold in folds]
    assert tested[0] | tested[1] == set(range(21)) and not tested[0] & tested[1]
    for fold in folds:
        test, train = (fold.rows_of_split(split) for split in ("test", "train"))
        assert {store.groups[row] for row in test}.isdisjoint(store.groups[row] for row in train)
        np.testing.assert_array_equal(fold.read(test), store.read(test))
        assert fold.fingerprint == store.fingerprint and fold.fold.num_folds == 2
    assert len({fold.division for fold in (store, *folds)}) == 3
    assert store.fold is None and "val" not in store.splits, "the store itself is as it was"
    # A clip without a map is of its group's fold.
    (first,) = (
        f for f in folds if "player 2" in {store.groups[r] for r in f.rows_of_split("test")}
    )
    failed = {failure["id"]: failure["split"] for failure in first.manifest["failures"]}
    assert failed["clip-6"] == "test"
    assert store.manifest["failures"][0]["split"] == "train"


def test_a_record_is_opened_as_one_fold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write_grouped(tmp_path / "stores")
    features = Path("outputs/features.json")
    write_json(features, record_store(read_json(path / "manifest.json"), path))

    def splits(**dataset):
        return open_features(features, FeedSettings(), DatasetSettings(**dataset)).splits.tolist()

    whole = splits(num_folds=4)
    assert whole == splits() == open_store(path).splits.tolist()
    dealt = [splits(num_folds=4, fold=fold) for fold in range(4)]
    assert all(row.count("test") == 1 for row in zip(*dealt, strict=True))
    assert dealt == [splits(num_folds=4, fold=fold) for fold in range(4)]
    other = [splits(num_folds=4, fold=fold, heldout_seed=1) for fold in range(4)]
    assert other != dealt


VIEWS = [
    (f"clip-{n}", n % 3, "train" if n < 8 else "test", view) for n in range(12) for view in (0, 1)
]
UNEVEN = [clip for clip in VIEWS if clip[2] == "test" or clip[3] == 0]
REFUSED = {
    "no groups": ({}, 2, "its clips tell no groups"),
    "more folds than groups": ({"groups": PLAYERS}, 5, "at most 4"),
    "a class of one group": (
        {"groups": [f"class {position % 3}" for position in range(23)]},
        3,
        "has all clips of class a, so its training has none",
    ),
    "augmented": (
        {
            "groups": PLAYERS,
            "fingerprint_parts": {"views": {"train": 1, "augmentation": {"flip": 0.5}}},
        },
        2,
        "training views are augmented",
    ),
    "more views in test": (
        {"clips": UNEVEN, "groups": [f"g{n % 4}" for n in range(len(UNEVEN))]},
        2,
        "views of a clip: 2 of test, 1 of train",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_dealt_is_told_in_a_line(tmp_path, kind):
    changes, num_folds, expected = REFUSED[kind]
    if kind == "more views in test":
        changes = changes | {"groups": [clip[0][-1] for clip in UNEVEN]}
    plan = make_plan(**changes)
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.claims():
            size = len(writer.shard_clips(shard))
            writer.write_shard(shard, np.ones((size, *plan.map_shape), np.float32))
        store = open_store(writer.finish({}).parent)
    with pytest.raises(DataError, match=expected) as error:
        store.deal_folds(num_folds, 0)
    assert "\n" not in str(error.value)


def test_views_of_a_clip_stay_in_one_fold(tmp_path):
    plan = make_plan(clips=VIEWS, groups=[f"g{int(clip[0][5:]) % 4}" for clip in VIEWS])
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.claims():
            size = len(writer.shard_clips(shard))
            writer.write_shard(shard, np.ones((size, *plan.map_shape), np.float32))
        store = open_store(writer.finish({}).parent)
    for fold in store.deal_folds(4, 0):
        tested = fold.rows_of_split("test")
        assert len(tested) == 6 and len({store.video_ids[row] for row in tested}) == 3
