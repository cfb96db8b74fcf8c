"""stores, export and import-features as a user types them, and what stores never removes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.housekeeping import list_stores, remove_store
from tests.feature_store.small_store import make_plan, write_store
from tests.pipeline import TINY, run_cli, tell_plainly


def make_other(root: Path) -> Path:
    return write_store(root, make_plan(fingerprint_parts={"backbone": {"name": "other"}}))


def refer_to(folder: Path, store: Path) -> None:
    """Let outputs/features.json name a store."""
    (folder / "outputs").mkdir(exist_ok=True)
    manifest = json.loads((store / "manifest.json").read_text())
    record = manifest | {"store": str(store.relative_to(folder))}
    (folder / "outputs" / "features.json").write_text(json.dumps(record))


# ---- what is listed ---------------------------------------------------------------------------


def test_states(tmp_path):
    root = tmp_path / "stores"
    whole = write_store(root)
    unfinished = make_other(root)
    (unfinished / "manifest.json").unlink()
    (unfinished / "shards/000001.json").unlink()
    states = {entry.path: entry.state for entry in list_stores(root)}
    assert states == {whole: "complete", unfinished: "unfinished, 4 of 5 shards"}
    (whole / "maps/c.3.0.0.0.0").unlink()
    assert {e.path: e.state for e in list_stores(root)}[whole] == "damaged, 4 of 5 shards there"
    (whole / "manifest.json").write_text("{")
    assert {e.path: e.state for e in list_stores(root)}[whole] == "damaged manifest"
    group = json.loads((whole / "zarr.json").read_text())
    group["attributes"]["version"] = 1
    (whole / "zarr.json").write_text(json.dumps(group))
    state = {e.path: e.state for e in list_stores(root)}[whole]
    assert state == "older format (version 1, now 2)"
    assert list_stores(tmp_path / "none") == []


def test_figures_of_an_entry(tmp_path):
    store = write_store(tmp_path, make_plan(dtype="int8"))
    (entry,) = list_stores(tmp_path)
    assert (entry.num_maps, entry.stored_type, entry.removable) == (21, "int8", True)
    sizes = [path.stat().st_size for path in store.rglob("*") if path.is_file()]
    assert entry.num_bytes == sum(sizes)


# ---- what is removed, and what never ----------------------------------------------------------


def test_a_store_is_removed_with_all_that_is_in_it(tmp_path):
    kept, gone = write_store(tmp_path), make_other(tmp_path)
    (gone / "maps/.c.0.0.0.0.0.abc.tmp").write_bytes(b"left by a killed writer")
    remove_store(tmp_path, next(e for e in list_stores(tmp_path) if e.path == gone))
    assert not gone.exists()
    open_store(kept).verify()


def put_file(store):
    (store / "maps/notes.txt").write_text("mine")


def put_folder(store):
    (store / "results").mkdir()


def put_link(store):
    (store / "maps/c.9.0.0.0.0").symlink_to("/etc/hostname")


def drop_group(store):
    (store / "zarr.json").unlink()


@pytest.mark.parametrize("change", [put_file, put_folder, put_link, drop_group])
def test_what_is_not_wholly_a_store_stays(tmp_path, change):
    store = write_store(tmp_path)
    change(store)
    before = sorted(tmp_path.rglob("*"))
    (entry,) = list_stores(tmp_path)
    assert not entry.removable
    with pytest.raises(StoreError, match="not removed: look at it"):
        remove_store(tmp_path, entry)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_change_after_listing_is_seen(tmp_path):
    store = write_store(tmp_path)
    (entry,) = list_stores(tmp_path)
    put_file(store)
    with pytest.raises(StoreError, match="maps/notes.txt"):
        remove_store(tmp_path, entry)


def test_links_are_not_followed(tmp_path):
    elsewhere = write_store(tmp_path / "elsewhere")
    root = tmp_path / "stores"
    root.mkdir()
    (root / elsewhere.name).symlink_to(elsewhere)
    (entry,) = list_stores(root)
    assert entry.state == "not a store (a link, not followed)" and not entry.removable
    with pytest.raises(StoreError, match="link"):
        remove_store(root, entry)
    open_store(elsewhere).verify()


def test_a_store_that_is_being_written_stays(tmp_path):
    store = write_store(tmp_path)
    ready, child = os.pipe(), os.fork()
    if child == 0:
        descriptor = os.open(store / ".writer.lock", os.O_RDWR)
        fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, 3)  # shard 3
        os.write(ready[1], b"x")
        os.read(os.pipe()[0], 1)
    os.read(ready[0], 1)
    try:
        with pytest.raises(StoreError, match="another process is writing this store"):
            remove_store(tmp_path, list_stores(tmp_path)[0])
        open_store(store).verify()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    remove_store(tmp_path, list_stores(tmp_path)[0])
    assert not store.exists()


# ---- the commands -----------------------------------------------------------------------------


def test_prune_removes_what_nothing_refers_to(tmp_path):
    root = tmp_path / "stores"
    used, unused = write_store(root), make_other(root)
    (root / "notes").mkdir()
    told = tell_plainly(run_cli(tmp_path, "stores", "--prune", "--yes"))
    assert "not pruned: neither outputs/features.json nor the settings tell" in told
    refer_to(tmp_path, used)
    run = run_cli(tmp_path, "stores", "--prune")  # Nobody answers: nothing is removed.
    assert used.exists() and unused.exists() and "remove 1 stores" in run.stdout
    run = run_cli(tmp_path, "stores", "--prune", "--yes")
    assert run.returncode == 0, run.stderr
    assert not unused.exists() and (root / "notes").exists()
    (line,) = [line for line in run.stdout.splitlines() if used.name in line]
    assert "features.json" in line and "complete" in line
    assert "not a store" in run.stdout
    open_store(used).verify()


@pytest.mark.slow
def test_export_and_verify_of_the_file(tmp_path):
    store = write_store(tmp_path / "stores")
    refer_to(tmp_path, store)
    run = run_cli(tmp_path, "export", "train.h5", "--split", "train")
    assert run.returncode == 0 and "train.h5: 14 maps" in run.stderr, run.stderr
    checked = run_cli(tmp_path, "verify", "train.h5")
    assert checked.returncode == 0 and "14 maps: all sound" in checked.stdout, checked.stderr
    told = tell_plainly(run_cli(tmp_path, "export", "train.h5"))
    assert "train.h5: exists already" in told
    told = tell_plainly(run_cli(tmp_path, "export", "train.zip"))
    assert "expected a name that ends in .h5 or .hdf5" in told
    told = tell_plainly(run_cli(tmp_path, "export", "x.h5", "--split", "val"))
    assert "no map of split 'val'; found: test, train" in told
    (tmp_path / "train.h5").write_bytes((tmp_path / "train.h5").read_bytes()[:5000])
    assert "not a sound HDF5 file" in tell_plainly(run_cli(tmp_path, "verify", "train.h5"))


@pytest.mark.slow
def test_imported_features_are_trained_on_and_evaluated(tmp_path):
    """Vectors of two classes that can be told apart; a backbone of other sizes is configured."""
    source, generator = tmp_path / "vectors", np.random.default_rng(0)
    source.mkdir()
    lines = ["id,label,split"]
    for number in range(96):
        vector = generator.standard_normal((4, 32)).astype(np.float32) + 2.0 * (number % 2)
        np.save(source / f"c{number}.npy", vector)
        lines.append(f"c{number},{('up', 'down')[number % 2]},{('train', 'test')[number % 3 == 2]}")
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    settings = {key.replace(".", "__"): value for key, value in TINY.items()}
    run = run_cli(tmp_path, "import-features", "vectors", "--labels=labels.csv", "--name=v")
    assert run.returncode == 0 and "96 maps of 32x4x1x1, 0 clips failed" in run.stderr, run.stderr
    (tmp_path / "outputs/heads/baseline").mkdir(parents=True)  # of an earlier run
    settings |= {
        "train__learning_rate": 0.02,
        "train__num_epochs": 12,
        "head__width": 8,
        "head__num_neurons": 2,
    }
    run = run_cli(tmp_path, "train-head", **settings)
    assert run.returncode == 0, run.stderr
    run = run_cli(tmp_path, "evaluate", **settings)
    assert run.returncode == 0, run.stderr
    metrics = json.loads((tmp_path / "outputs/evaluation/metrics.json").read_text())
    assert set(metrics["heads"]) == {"linear_probe", "dsts"}
    assert (metrics["evaluated"], metrics["missing"]) == (32, 0)
    assert metrics["heads"]["linear_probe"]["top1"] > 0.9
    listed = run_cli(tmp_path, "stores")
    assert "features.json" in listed.stdout and "complete" in listed.stdout, listed.stderr
    (store,) = (tmp_path / "stores").iterdir()
    content = bytearray((store / "maps/c.0.0.0.0.0").read_bytes())
    content[5] ^= 4
    (store / "maps/c.0.0.0.0.0").write_bytes(content)
    assert "run `python cli.py import-features` again" in tell_plainly(run_cli(tmp_path, "verify"))
    again = run_cli(tmp_path, "import-features", "vectors", "--labels=labels.csv", "--name=v")
    assert again.returncode == 0 and run_cli(tmp_path, "verify").returncode == 0
    shutil.rmtree(source)
    told = tell_plainly(run_cli(tmp_path, "import-features", "vectors", "--labels=labels.csv"))
    assert "vectors: no such file or folder" in told
