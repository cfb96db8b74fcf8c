"""docs/store-format.md tells the truth: the reader printed there reads every kind of store."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest

from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.shards import format_nameplate
from dsts_pipeline.feature_store.stored_types import STORED_TYPES
from tests.feature_store.small_store import FAILURES, make_plan, write_store

FRAMES = [[position] for position in range(23)]
PLAYERS = [f"player {position % 4}" for position in range(23)]


@pytest.fixture
def page(repository: Path) -> str:
    return (repository / "docs" / "store-format.md").read_text()


@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("dtype", STORED_TYPES)
def test_the_printed_reader_reads_every_map(page, tmp_path, dtype, codec):
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL).group(1), names)
    store = open_store(write_store(tmp_path, make_plan(dtype=dtype, codec=codec)))
    for row, position in enumerate(store.positions.tolist()):
        found = names["read_map"](store.path, position)
        assert found.dtype == store.dtype
        assert found.tobytes() == store.read([row]).tobytes()
    with pytest.raises(AssertionError, match="no map"):
        names["read_map"](store.path, min(FAILURES))


def test_the_page_names_every_key_and_file(page, tmp_path):
    path = write_store(tmp_path, make_plan(dtype="int8", frames=FRAMES, groups=PLAYERS))
    manifest = json.loads((path / "manifest.json").read_text())
    table = page[page.index("## manifest.json") : page.index("## What a reader must do")]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == set(manifest)
    (array,) = re.findall(r"^\| `array` \| (.*) \|$", table, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", array)) == set(manifest["array"])
    tree = page[page.index("stores/<fingerprint>/") : page.index("## Storage types")]
    named = set(re.findall(r"^  (\S+)", tree, re.MULTILINE))
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert named <= found
    assert {re.sub(r"\d+", "0", name) for name in found} == {
        re.sub(r"\d+", "0", name) for name in named
    }


def test_the_page_gives_versions_sidecars_and_nameplates(page, tmp_path):
    path = write_store(tmp_path)
    version = json.loads((path / "manifest.json").read_text())["format"]["version"]
    assert page.startswith(f"# The feature store's format, version {version}\n")
    writing = page[page.index("## What a writer must do") : page.index("## Size of a shard")]
    for key in json.loads((path / "shards/000000.json").read_text()):
        assert f"`{key}`" in writing
    lengths = [len(format_nameplate("f" * 32, 7, array)) for array in ("maps", "scales")]
    assert f"| nameplate | {lengths[0]} or {lengths[1]} |" in page


def test_the_digest_is_what_the_page_says(tmp_path):
    manifest = json.loads((write_store(tmp_path) / "manifest.json").read_text())
    digest = manifest.pop("digest")
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert hashlib.sha256(text.encode()).hexdigest() == digest
