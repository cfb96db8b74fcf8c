"""The recorded store is opened by directory or URL, and must be the one that was recorded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.settings.features import FeedSettings
from dsts_pipeline.feature_store import open_store
from stages.inputs import open_features
from tests.feature_store.servers import http_server
from tests.feature_store.small_store import make_plan, write_store


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
            store = open_features(feed)
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
        with pytest.raises(StoreError, match=f"{url}: its shards are not the ones"):
            open_features(FeedSettings())
