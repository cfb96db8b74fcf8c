"""A shard is never held in memory whole: peak memory of a process that downloads large ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from dsts_pipeline.feature_store import StoreWriter
from tests.feature_store.servers import BUCKET, http_server, s3_server, upload
from tests.feature_store.small_store import PROVENANCE, make_plan

# One shard of 80 MB. Measured in a process of its own, against its own peak before the reads.
MAP_SHAPE, NUM_CLIPS = (256, 8, 14, 14), 100
MEASURE = """
import json, re, sys
from pathlib import Path
from dsts_pipeline.feature_store import open_store

def peak_bytes():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", status)[1])

store = open_store(sys.argv[1], cache_dir=sys.argv[2], cache_bytes=2**28)
before = peak_bytes()
for row in (0, 99):
    store.read([row])
print(json.dumps(peak_bytes() - before))
"""


@pytest.fixture(scope="module")
def store_path(tmp_path_factory):
    plan = make_plan(NUM_CLIPS, map_shape=MAP_SHAPE, samples_per_shard=NUM_CLIPS)
    one = np.random.default_rng(0).standard_normal(MAP_SHAPE).astype(np.float32)
    maps = np.broadcast_to(one, (NUM_CLIPS, *MAP_SHAPE))
    with StoreWriter(tmp_path_factory.mktemp("stores"), plan) as writer:
        for shard in writer.pending_shards():
            writer.write_shard(shard, maps, {})
        return writer.finish(PROVENANCE).parent


def measure(url, cache, **environment):
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, url, str(cache)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(result.stdout)


def test_over_http(store_path, tmp_path):
    with http_server(store_path.parent) as server:
        growth = measure(f"{server.url}/{store_path.name}", tmp_path)
    assert len(list(tmp_path.glob("[0-9a-f]*"))) == 1
    assert 0 < growth < 48 * 2**20


def test_over_s3(store_path, tmp_path, monkeypatch):
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with s3_server() as endpoint:
        for name, value in (keys | {"AWS_ENDPOINT_URL": endpoint}).items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/{store_path.name}"
        upload(store_path, url)
        growth = measure(url, tmp_path)
    assert len(list(tmp_path.glob("[0-9a-f]*"))) == 1
    assert 0 < growth < 48 * 2**20
