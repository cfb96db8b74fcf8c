"""Faults in compressed and quantised stores: each, alone, names the file and the cure."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.shards import format_nameplate, read_index
from tests.feature_store.small_store import make_plan, read_tree, write_store

FORMS = [
    {"dtype": "float16", "codec": "zstd"},
    {"dtype": "bfloat16"},
    {"dtype": "float32", "codec": "zstd"},
    {"dtype": "int8"},
    {"dtype": "int8", "codec": "zstd"},
]
by_form = pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(form.values()))
SHARD_2 = "maps/c.2.0.0.0.0"


def flip_bit(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def fails(action, *words):
    with pytest.raises(StoreError) as caught:
        action()
    message = str(caught.value)
    for word in (*words, "run `python cli.py verify --repair`"):
        assert word in message, message


@by_form
def test_flipped_bits_in_a_chunk(tmp_path, form):
    path = write_store(tmp_path, make_plan(**form))
    before, sound = read_tree(path), open_store(path).read(range(21))
    with open(path / SHARD_2, "rb") as file:
        plate = format_nameplate(path.name, 2)
        offset, length = read_index(file.fileno(), len(before[SHARD_2]), 5, plate)[0]
    row = list(open_store(path).positions).index(10)
    for place in (offset, offset + length // 2, offset + length - 5, offset + length - 1):
        flip_bit(path / SHARD_2, place)
        fails(lambda: open_store(path).read([row]), f"shard 2 ({SHARD_2})", "map in slot 0")
        np.testing.assert_array_equal(open_store(path).read([row + 1])[0], sound[row + 1])
        (path / SHARD_2).write_bytes(before[SHARD_2])
    np.testing.assert_array_equal(open_store(path).read(range(21)), sound)


def test_flipped_bits_in_the_scales(tmp_path):
    path = write_store(tmp_path, make_plan(dtype="int8"))
    name = "scales/c.1.0"
    content = (path / name).read_bytes()
    row = list(open_store(path).positions).index(5)
    for place, problem in ((0, "damaged map in slot 0"), (13, "slot 0"), (-10, "damaged index")):
        flip_bit(path / name, place)
        fails(lambda: open_store(path).read([row]), f"shard 1 ({name})", problem)
        (path / name).write_bytes(content)
    open_store(path).read([row])


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "neighbour", "maps"])
def test_a_wrong_scales_file(tmp_path, damage):
    path = write_store(tmp_path, make_plan(dtype="int8"))
    file = path / "scales/c.1.0"
    content = file.read_bytes()
    if damage == "missing":
        file.unlink()
        fails(lambda: open_store(path), "shard 1 (scales/c.1.0) is missing")
    elif damage in ("empty", "truncated"):
        file.write_bytes(content[:-3] if damage == "truncated" else b"")
        fails(lambda: open_store(path), "shard 1 (scales/c.1.0) has")
    elif damage == "neighbour":
        shutil.copy(path / "scales/c.2.0", path / "scales/c.3.0")
        store = open_store(path)
        row = list(store.positions).index(15)
        fails(lambda: store.read([row]), "shard 3 (scales/c.3.0)", "another shard")
    else:
        shutil.copy(path / "maps/c.1.0.0.0.0", file)
        fails(lambda: open_store(path), "shard 1 (scales/c.1.0) has")


def test_without_verification_a_flipped_bit_is_not_looked_for(tmp_path):
    """What the switch gives up: speed for silence. Damage that changes a size is still seen."""
    path = write_store(tmp_path)
    sound = open_store(path).read([0])
    flip_bit(path / "maps/c.0.0.0.0.0", 3)
    assert not np.array_equal(open_store(path, verify_checksums=False).read([0]), sound)
    fails(lambda: open_store(path).read([0]), "damaged map")
    flip_bit(path / "maps/c.0.0.0.0.0", -20)
    fails(lambda: open_store(path, verify_checksums=False).read([0]), "damaged index")


def test_a_damaged_frame_without_verification_is_seen_by_the_decoder(tmp_path):
    path = write_store(tmp_path, make_plan(codec="zstd"))
    flip_bit(path / "maps/c.0.0.0.0.0", 0)  # The frame's magic number.
    fails(lambda: open_store(path, verify_checksums=False).read([0]), "zstd frame", "slot 0")


def test_damage_met_by_a_second_thread_is_told_and_the_reader_goes_on(tmp_path):
    path = write_store(tmp_path, make_plan(num_clips=60, map_shape=(64, 8, 8, 8)))
    flip_bit(path / "maps/c.9.0.0.0.0", 9)
    store = open_store(path, num_threads=3)
    for _ in range(5):
        fails(lambda: store.read(range(len(store))), "shard 9 (maps/c.9.0.0.0.0)")
    sound = [row for row, position in enumerate(store.positions) if position // 5 != 9]
    assert np.isfinite(store.read(sound)).all()
