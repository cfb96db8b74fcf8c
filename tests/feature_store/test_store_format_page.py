"""docs/store-format.md tells the truth: the reader printed there reads a real store."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from dsts_pipeline.feature_store import open_store
from tests.feature_store.small_store import FAILURES, write_store


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "store-format.md").read_text()


def test_the_printed_reader_reads_every_map(page, tmp_path):
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), names)
    store = open_store(write_store(tmp_path))
    for row, position in enumerate(store.positions.tolist()):
        assert names["read_map"](store.path, position).tobytes() == store.read([row]).tobytes()
    with pytest.raises(AssertionError, match="no map"):
        names["read_map"](store.path, min(FAILURES))


def test_the_page_names_every_key_and_file(page, tmp_path):
    path = write_store(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text())
    table = page[page.index("## manifest.json") : page.index("## What a reader must do")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(manifest)
    tree = page[page.index("stores/<fingerprint>/") : page.index("## A shard")]
    for name in ("zarr.json", "maps/zarr.json", "maps/c.0.0.0.0.0", "shards/000000.json"):
        assert name in tree and (path / name).is_file()


def test_the_digest_is_what_the_page_says(tmp_path):
    manifest = json.loads((write_store(tmp_path) / "manifest.json").read_text())
    digest = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest
