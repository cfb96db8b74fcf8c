"""Checks of a whole store, fast and full: each kind of damage is found and named, alone."""

from __future__ import annotations

import json
import shutil
import tracemalloc

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import sha256_file, sign
from dsts_pipeline.feature_store import StoreWriter, open_store
from dsts_pipeline.feature_store.verify import check_store, check_values
from stages.stores import verdict_table
from tests.feature_store.small_store import make_maps, make_plan, write_store

SHARD = "maps/c.2.0.0.0.0"


def check(path, *, fast=False):
    return check_store(path, fast=fast)


@pytest.fixture(params=["float16", "int8"])
def path(tmp_path, request):
    return write_store(tmp_path / "stores", make_plan(dtype=request.param))


def flip_bit(file, offset):
    content = bytearray(file.read_bytes())
    content[offset] ^= 0x10
    file.write_bytes(content)


def revise(path, change):
    """Change a file of shard 2 and make manifest and sidecar vouch for what it then is."""
    change(path / SHARD)
    manifest = json.loads((path / "manifest.json").read_text())
    entry = manifest["shards"][2]["files"][0]
    entry |= {"bytes": (path / SHARD).stat().st_size, "sha256": sha256_file(path / SHARD)}
    (path / "manifest.json").write_text(json.dumps(sign(manifest)))


def test_sound_store(path):
    for fast in (True, False):
        verdict = check(path, fast=fast)
        assert not verdict.damage and not verdict.warnings and not verdict.damaged_shards
        verdict.require_sound("", strict=True)
    assert verdict.num_maps == 21
    assert verdict.num_files == len([f for f in path.rglob("*") if f.is_file()]) - 5 - 2
    assert verdict.values.statistics.num_maps == 21
    exact = open_store(path).read(range(21)).astype(np.float64)
    np.testing.assert_allclose(verdict.values.statistics.mean, exact.mean(axis=(0, 2, 3, 4)))
    json.dumps(verdict.to_json())


DAMAGE = {
    "bit in a chunk": (lambda f: flip_bit(f, 10), "sha256 does not hold"),
    "bit in the index": (lambda f: flip_bit(f, -20), "sha256 does not hold"),
    "bit in the nameplate": (lambda f: flip_bit(f, -100), "sha256 does not hold"),
    "truncated": (lambda f: f.write_bytes(f.read_bytes()[:-7]), "bytes, not"),
    "empty": (lambda f: f.write_bytes(b""), "has 0 bytes, not"),
    "missing": (lambda f: f.unlink(), "is missing"),
    "foreign": (lambda f: shutil.copy(f.with_name("c.0.0.0.0.0"), f), "sha256 does not hold"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_of_each_kind_is_named(path, kind):
    damage, problem = DAMAGE[kind]
    damage(path / SHARD)
    verdict = check(path)
    assert f"shard 2 ({SHARD})" in verdict.damage[0] and problem in verdict.damage[0]
    assert verdict.damaged_shards == [2]
    with pytest.raises(StoreError, match=r"shard 2 .*; run this"):
        verdict.require_sound("run this", strict=False)
    lost = {strange.clip for strange in verdict.values.damaged}
    whole = {f"clip-{number}" for number in range(10, 15)}
    assert lost == ({"clip-10"} if kind == "bit in a chunk" else whole)
    assert verdict.values.statistics.num_maps == 21 - len(lost), "the others were looked at"
    seen = check(path, fast=True).damaged_shards
    assert seen == ([2] if kind in ("truncated", "empty", "missing") else [])


def test_damaged_scales(tmp_path):
    path = write_store(tmp_path, make_plan(dtype="int8"))
    flip_bit(path / "scales/c.1.0", 3)
    verdict = check(path)
    assert verdict.damaged_shards == [1] and "scales/c.1.0" in verdict.damage[0]


@pytest.mark.parametrize("name", ["clips.json", "zarr.json", "maps/zarr.json"])
@pytest.mark.parametrize("fast", [True, False])
def test_damaged_small_file(path, name, fast):
    flip_bit(path / name, 30)
    verdict = check(path, fast=fast)
    assert [problem.file for problem in verdict.problems] == [name]
    assert verdict.values is None, "without trust in the small files no map is looked at"


def test_all_damage_is_listed(path):
    flip_bit(path / "maps/c.0.0.0.0.0", 3)
    (path / "maps/c.3.0.0.0.0").unlink()
    flip_bit(path / "maps/c.4.0.0.0.0", -9)
    assert check(path).damaged_shards == [0, 3, 4]


def test_chunk_damaged_before_its_digest_was_taken(path):
    """The digest vouches for the damage: only the chunk's own checksum tells."""
    revise(path, lambda file: flip_bit(file, 10))
    verdict = check(path)
    assert not verdict.problems and verdict.damaged_shards == [2]
    (strange,) = verdict.values.damaged
    assert strange.clip == "clip-10" and "damaged" in strange.problem
    assert open_store(path).video_ids[strange.row] == "clip-10"


def test_sidecars_are_a_warning(path):
    (path / "shards/000001.json").write_text("{}")
    (path / "shards/000003.json").unlink()
    verdict = check(path)
    assert not verdict.damage
    assert ["000001" in verdict.warnings[0], "000003" in verdict.warnings[1]] == [True, True]
    verdict.require_sound("", strict=False)
    with pytest.raises(StoreError, match="000001"):
        verdict.require_sound("", strict=True)


def test_maps_of_zeros_are_named_and_only_a_warning(tmp_path):
    plan = make_plan()
    with StoreWriter(tmp_path, plan) as writer:
        for shard in writer.claims():
            maps = make_maps(plan, writer.shard_clips(shard))
            if shard == 1:
                maps[2] = 0
            writer.write_shard(shard, maps)
        path = writer.finish({}).parent
    verdict = check(path)
    assert [strange.clip for strange in verdict.values.zero] == ["clip-7"]
    assert verdict.warnings == ["1 maps are all zeros: clip clip-7 has a map of zeros"]
    verdict.require_sound("", strict=False)
    with pytest.raises(StoreError, match="clip-7 has a map of zeros"):
        verdict.require_sound("", strict=True)


def test_values_that_are_not_finite_are_named(path):
    """The writer refuses them; a file from elsewhere may hold them."""
    store = open_store(path)
    read = store.read

    def read_strange(rows):
        maps = read(rows).astype(np.float32)
        maps[np.asarray(rows) == 4, 1, 0, 0, :3] = np.nan
        maps[np.asarray(rows) == 20, 0, 0, 0, 0] = np.inf
        return maps

    store.read = read_strange
    report = check_values(store)
    assert [(s.clip, s.problem) for s in report.damaged] == [
        ("clip-4", "has 3 NaN and 0 Inf in its map"),
        ("clip-22", "has 0 NaN and 1 Inf in its map"),
    ]
    assert report.statistics.num_maps == 19


def test_table_tells_the_damage(path, capsys):
    from rich.console import Console

    flip_bit(path / SHARD, 10)
    Console(width=200).print(verdict_table(check(path)))
    told = capsys.readouterr().out
    assert "1 damaged" in told and "clip clip-10 has no sound map" in told
    assert "is damaged (sha256 does not hold)" in told


def test_what_is_no_store(tmp_path):
    for name, text in (("none", "no feature store here"), ("folder", "not a feature store")):
        if name == "folder":
            (tmp_path / name).mkdir()
        with pytest.raises(StoreError, match=text):
            check(tmp_path / name)


def test_memory_does_not_grow_with_the_store(tmp_path):
    """Beyond what is kept per clip (its name and one mean per channel) only batches are held."""
    peaks = []
    for num_clips in (100, 400):
        plan = make_plan(num_clips, map_shape=(4, 8, 16, 16), samples_per_shard=20)
        path = write_store(tmp_path / str(num_clips), plan)
        tracemalloc.start()
        check(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    store_bytes = 300 * 4 * 8 * 16 * 16 * 2
    assert peaks[1] - peaks[0] < store_bytes / 4


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["failures"].pop(),
        lambda manifest: manifest["failures"][0].update(reason="another"),
        lambda manifest: manifest["counts"].update(failed=7),
        lambda manifest: manifest["counts"]["splits"]["train"].update(stored=1),
        lambda manifest: manifest["counts"]["splits"].update(more={"planned": 1, "stored": 1}),
    ],
)
def test_a_manifest_of_other_failures_or_counts_is_found_though_its_digest_holds(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(sign(manifest)))
    verdict = check(path, fast=True)
    (problem,) = verdict.problems
    assert problem.file == "manifest.json" and "other failures or counts" in problem.problem
    with pytest.raises(StoreError, match="other failures or counts"):
        verdict.require_sound("", strict=False)
