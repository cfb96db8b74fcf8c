"""The recorded store is opened by directory or URL, and must be the one that was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import read_json, sign, write_json
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.opening import open_features, record_store
from tests.feature_store.servers import http_server
from tests.feature_store.small_store import make_plan, write_store

FEATURES = Path("outputs/features.json")


def record(store_path, location):
    manifest = json.loads((store_path / "manifest.json").read_bytes())
    with open("outputs/features.json", "w") as file:
        json.dump(manifest | {"store": str(location)}, file)


def test_a_recorded_url_is_read_through_the_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    path = write_store(tmp_path / "stores")
    local = open_store(path)
    feed = FeedSettings(cache_dir=str(tmp_path / "kept"), cache_bytes=2**20, num_read_threads=2)
    with http_server(path.parent) as server:
        for location in (path, f"{server.url}/{path.name}"):
            record(path, location)
            store = open_features(FEATURES, feed)
            rows = np.arange(len(store))[::-1]
            np.testing.assert_array_equal(store.read(rows), local.read(rows))
    assert len(list((tmp_path / "kept").iterdir())) == 1 + len(local.manifest["shards"])


def test_another_store_behind_the_url_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs").mkdir()
    path = write_store(tmp_path / "stores")
    other = write_store(tmp_path / "stores", make_plan(num_clips=24))
    with http_server(path.parent) as server:
        record(path, url := f"{server.url}/{other.name}")
        with pytest.raises(StoreError, match=f"{url}: its .* not what"):
            open_features(FEATURES, FeedSettings())


# ---- a manifest that was changed, its digest brought up to date -------------------------------


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """A store, and the record of it that `extract` leaves."""
    monkeypatch.chdir(tmp_path)
    path = write_store(tmp_path / "stores")
    manifest = read_json(path / "manifest.json")
    write_json("outputs/features.json", record_store(manifest, path))
    return path


def forge(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    write_json(path / "manifest.json", sign(manifest))


def forge_failure(manifest):
    """One clip less to train on."""
    manifest["failures"].insert(
        0, {"position": 2, "id": "clip-2", "view": 0, "split": "train", "reason": "forged"}
    )


FORGED = {
    "counts": lambda manifest: manifest["counts"].update(failed=0),
    "failures": forge_failure,
    "fewer failures": lambda manifest: manifest["failures"].pop(),
    "made_of": lambda manifest: manifest["made_of"].update(backbone="another"),
    "saturated": lambda manifest: manifest["saturated"].update(values=9),
    "a new part": lambda manifest: manifest.update(more=1),
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("kind", FORGED)
def test_a_changed_manifest_is_refused(recorded, kind, old):
    open_features(FEATURES, FeedSettings())
    if old:  # a record of an earlier release has no digest, and all of the manifest but provenance
        record = read_json("outputs/features.json")
        del record["manifest_sha256"]
        write_json("outputs/features.json", record)
        open_features(FEATURES, FeedSettings())
    forge(recorded, FORGED[kind])
    if old and kind == "a new part":
        open_features(FEATURES, FeedSettings())
        return
    with pytest.raises(StoreError, match=r"features.json recorded: .*cli.py extract"):
        open_features(FEATURES, FeedSettings())


def test_other_provenance_is_the_same_store(recorded):
    """Two extractions of the same bytes, or a repair on another machine."""
    forge(recorded, lambda manifest: manifest.update(provenance={"host": "another"}))
    open_features(FEATURES, FeedSettings())


def test_the_record_may_name_another_place_and_nothing_else(recorded, tmp_path):
    moved = recorded.rename(tmp_path / "moved")
    record = read_json("outputs/features.json")
    write_json("outputs/features.json", record | {"store": str(moved)})
    open_features(FEATURES, FeedSettings())
    record["counts"]["failed"] = 0
    write_json("outputs/features.json", record | {"store": str(moved)})
    with pytest.raises(DataError, match='only "store" may be changed by hand'):
        open_features(FEATURES, FeedSettings())
    for content in ([], {}, {"store": 3}):
        write_json("outputs/features.json", content)
        with pytest.raises(DataError, match="names no store"):
            open_features(FEATURES, FeedSettings())
