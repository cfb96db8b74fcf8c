"""Damage real files, one fault at a time: each is an error that names the shard and the cure."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sign
from dsts_pipeline.feature_store import StoreWriter, find_damage, open_store
from tests.feature_store.small_store import (
    make_maps,
    make_plan,
    read_tree,
    write_shard,
    write_store,
)

REPAIR = "run `python cli.py verify --repair`"
EXTRACT = "run `python cli.py extract`"


@pytest.fixture
def path(tmp_path):
    return write_store(tmp_path / "stores")


def flip_bit(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def fails(action, *words, cure=REPAIR):
    with pytest.raises(StoreError) as caught:
        action()
    message = str(caught.value)
    assert cure in message, message
    assert all(word in message for word in words), message
    return message


def repair_restores(path, before):
    """Extract again over the damage: only then the store opens, and it has its old bytes."""
    assert write_store(path.parent) == path
    assert read_tree(path) == before
    open_store(path).verify()


@pytest.mark.parametrize("offset", [0, 100, 193, 195])
def test_flipped_bit_in_a_chunk_or_its_checksum(path, offset):
    before, shard = read_tree(path), path / "maps/c.2.0.0.0.0"
    flip_bit(shard, offset)
    store = open_store(path)
    row = list(store.positions).index(10)
    fails(lambda: store.read([row]), "shard 2 (maps/c.2.0.0.0.0)", "damaged map in slot 0")
    store.read([row + 1])  # The neighbour is sound.
    fails(store.verify, "shard 2", "sha256")
    repair_restores(path, before)


def test_flipped_bit_in_the_index(path):
    before = read_tree(path)
    flip_bit(path / "maps/c.0.0.0.0.0", -20)
    store = open_store(path)
    fails(lambda: store.read([0]), "shard 0", "damaged index")
    fails(store.verify, "shard 0")
    repair_restores(path, before)


def test_truncated_shard(path):
    before, shard = read_tree(path), path / "maps/c.3.0.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-7])
    fails(lambda: open_store(path), "shard 3 (maps/c.3.0.0.0.0) has")
    repair_restores(path, before)


def test_empty_shard(path):
    before = read_tree(path)
    (path / "maps/c.1.0.0.0.0").write_bytes(b"")
    fails(lambda: open_store(path), "shard 1 (maps/c.1.0.0.0.0) has 0 bytes")
    repair_restores(path, before)


def test_missing_shard(path):
    before, store = read_tree(path), open_store(path)
    (path / "maps/c.4.0.0.0.0").unlink()
    fails(lambda: open_store(path), "shard 4 (maps/c.4.0.0.0.0) is missing")
    fails(lambda: store.read([len(store) - 1]), "shard 4", "is missing")
    repair_restores(path, before)


def test_shard_truncated_while_open(path):
    store, shard = open_store(path), path / "maps/c.0.0.0.0.0"
    store.read([0])
    shard.write_bytes(shard.read_bytes()[:50])
    fails(lambda: store.read([0]), "shard 0", "cut off in slots 0 to 0")


def test_neighbour_in_a_shards_place(path):
    """Same size, every checksum right: only its nameplate tells."""
    before = read_tree(path)
    shutil.copy(path / "maps/c.0.0.0.0.0", path / "maps/c.3.0.0.0.0")
    store = open_store(path)
    row = list(store.positions).index(15)
    fails(lambda: store.read([row]), "shard 3", "another shard")
    fails(store.verify, "shard 3")
    repair_restores(path, before)


def test_shard_and_sidecar_of_another_store(path, tmp_path):
    before = read_tree(path)
    other = write_store(tmp_path / "other", make_plan(fingerprint_parts={"backbone": "other"}))
    for name in ("maps/c.2.0.0.0.0", "shards/000002.json"):
        shutil.copy(other / name, path / name)
    store = open_store(path)
    row = list(store.positions).index(10)
    fails(lambda: store.read([row]), "shard 2", "another shard")
    repair_restores(path, before)


@pytest.mark.parametrize("name", ["clips.json", "zarr.json", "maps/zarr.json"])
def test_damaged_metadata(path, name):
    before = read_tree(path)
    flip_bit(path / name, 30)
    fails(lambda: open_store(path), f"file {name} is damaged")
    repair_restores(path, before)


def test_every_flipped_byte_of_the_manifest_is_seen(path):
    before, manifest = read_tree(path), path / "manifest.json"
    content = manifest.read_bytes()
    for offset in range(0, len(content), 97):
        flip_bit(manifest, offset)
        fails(lambda: open_store(path), "manifest.json", cure=EXTRACT)
        manifest.write_bytes(content)
    flip_bit(manifest, 200)
    repair_restores(path, before)


@pytest.mark.parametrize("version", [1, 3])
def test_another_format_version(path, version):
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["format"]["version"] = version
    (path / "manifest.json").write_text(json.dumps(sign(manifest)))
    expected = f"is dsts-feature-store version {version}, expected dsts-feature-store version 2"
    fails(lambda: open_store(path), expected, cure=EXTRACT)
    fails(lambda: open_store(path), "delete the store", cure=EXTRACT)


def test_another_fingerprint(path, tmp_path):
    """All of another store, but for the name in its manifest."""
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["fingerprint"] = "0" * 32
    (path / "manifest.json").write_text(json.dumps(sign(manifest)))
    store = open_store(path)
    fails(lambda: store.read([0]), "shard 0", "another shard")


def test_manifest_of_another_store(path, tmp_path):
    other = write_store(tmp_path / "other", make_plan(fingerprint_parts={"backbone": "other"}))
    shutil.copy(other / "manifest.json", path / "manifest.json")
    fails(lambda: open_store(path), "zarr.json")
    with StoreWriter(path.parent, make_plan()) as writer:
        assert not writer.finished


def test_all_damage_is_listed(path):
    (path / "maps/c.0.0.0.0.0").unlink()
    flip_bit(path / "maps/c.2.0.0.0.0", 9)
    manifest = json.loads((path / "manifest.json").read_text())
    damage = {what: bad for what, bad in find_damage(path, manifest, digests=True) if bad}
    assert list(damage) == ["shard 0 (maps/c.0.0.0.0.0)", "shard 2 (maps/c.2.0.0.0.0)"]


def test_no_store_no_manifest_not_a_store(tmp_path):
    fails(lambda: open_store(tmp_path / "none"), "no feature store here", cure=EXTRACT)
    fails(lambda: open_store(tmp_path), "not a feature store", cure=EXTRACT)
    (tmp_path / "file").write_text("no folder")
    fails(lambda: open_store(tmp_path / "file"), "no feature store here", cure=EXTRACT)
    with StoreWriter(tmp_path, make_plan()) as writer:
        write_shard(writer, 1)
        with pytest.raises(StoreError, match=r"shards \[0, 2, 3, 4\] of 5 are not written"):
            writer.finish({})
    unfinished = "unfinished store (1 shards written"
    fails(lambda: open_store(writer.path), unfinished, cure=EXTRACT)


def test_row_out_of_range(path):
    store = open_store(path)
    for rows in ([21], [-1], [0, 99]):
        with pytest.raises(IndexError, match="have 21"):
            store.read(rows)
    assert store.read([]).shape == (0, 3, 2, 4, 4)


@pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
def test_values_that_do_not_fit_are_refused_with_clip_and_channel(tmp_path, value):
    with StoreWriter(tmp_path, make_plan()) as writer:
        maps = make_maps(writer.plan, range(5, 10))
        maps[2, 1, 0, 0, 0] = value
        with pytest.raises(StoreError, match=f"clip clip-7: channel 1 of its map holds {value:g}"):
            writer.write_shard(1, maps)
            writer.flush()
        assert 1 in writer.pending_shards()


def test_wrong_shapes_and_positions_are_refused(tmp_path):
    with StoreWriter(tmp_path, make_plan()) as writer:
        maps = make_maps(writer.plan, range(5))
        with pytest.raises(ValueError, match=r"maps are \(4, .*expected \(5, "):
            writer.write_shard(0, maps[:4])
        with pytest.raises(ValueError, match=r"failures at \[7\]"):
            writer.write_shard(0, maps, {7: "elsewhere"})
        with pytest.raises(IndexError, match="shards 0 to 4"):
            writer.write_shard(5, maps)
