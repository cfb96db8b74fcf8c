"""`extract` on the command line: its dry run, and what it leaves in outputs/features.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from dsts_pipeline.base.settings import (
    BackboneSettings,
    DatasetSettings,
    RenderSettings,
    StoreSettings,
)
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feature_store.planning import prepare_work
from dsts_pipeline.feature_store.writer import shard_bytes, store_bytes
from dsts_pipeline.stick import render_embedded
from stages.extract import list_ways
from tests.pipeline import WEIGHTS, run_cli

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]
RENDER = RenderSettings(
    num_train=24, num_test=8, size_px=64, num_frames=16, difficulty=1.0, seed=3, num_workers=1
)
WAYS = ("as it is", "int8", "pooled 2x2", "both")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with 32 prepared clips: 2 shards of 16."""
    folder = tmp_path_factory.mktemp("run")
    render_embedded(folder / "data", RENDER)
    run = run_cli(folder, "prepare", dataset__root=folder / "data", dataset__render="null")
    assert run.returncode == 0, run.stderr
    return folder


def extract(folder: Path, *arguments: str, **settings: object):
    values = {"backbone__weights": WEIGHTS, "backbone__num_decode_workers": 0} | settings
    return run_cli(folder, "extract", *arguments, **values)


def table_of(run) -> dict[str, str]:
    """First and second column of the printed table, continued lines joined."""
    assert run.returncode == 0, run.stderr
    rows: dict[str, str] = {}
    name = ""
    for line in run.stdout.splitlines():
        if cells := re.match(r"│ (.*?) +│ (.*?) +│$", line):
            name = cells[1].strip() or name
            rows[name] = f"{rows[name]} {cells[2]}" if name in rows else cells[2]
    return rows


def test_a_stores_size_in_another_form_is_what_its_shards_would_take(folder, monkeypatch):
    monkeypatch.chdir(folder)
    index = ClipIndex.load(Path("outputs/clips.json"))
    chosen = BackboneSettings(weights="random", taps=("backbone", "backbone:1x2x2"))
    (work, *others) = (
        prepare_work(index, chosen, DatasetSettings(), StoreSettings(dtype=dtype))
        for dtype in ("float16", "int8", "float32")
    )
    for plan in (plan for one in (work, *others) for plan in one.plans):
        shards = sum(shard_bytes(plan, shard) for shard in range(plan.num_shards))
        told = store_bytes(work.plan, plan.map_shape, plan.dtype)
        assert 0 <= shards - told < 1000 * plan.num_shards, "but for the shards' own headers"
    ways = {way.name: way for way in list_ways(others[0])}
    assert set(ways) == {"as it is", "pooled 2x2"}, "it is int8 already"
    assert ways["pooled 2x2"].to_set == "'backbone.taps=[backbone:1x2x2,backbone:1x4x4]'"


def test_maps_of_odd_sides_are_not_pooled(folder, monkeypatch):
    monkeypatch.chdir(folder)
    index = ClipIndex.load(Path("outputs/clips.json"))
    chosen = BackboneSettings(weights="random", size_px=80)
    (*_, last) = list_ways(prepare_work(index, chosen, DatasetSettings(), StoreSettings()))
    assert last.num_bytes is None and last.reason == "no: 5 x 5 positions are no multiple of 2"


def test_dry_run_tells_size_space_and_time_and_writes_nothing(folder):
    before = sorted(folder.rglob("*"))
    rows = table_of(extract(folder, "--dry-run"))
    assert sorted(folder.rglob("*")) == before, "not even the stores' folder"
    assert rows["store"].startswith("stores/") and rows["store"].endswith("(not there yet)")
    assert rows["maps"] == "32 of 128 x 8 x 4 x 4"
    assert (rows["stored as"], rows["shards"]) == ("float16", "2, 2 pending")
    assert (rows["size"], rows["already there"]) == ("1.0 MB", "0 bytes")
    assert rows["to be written"] == "1.0 MB" and rows["free"].endswith("B")
    assert rows["clips pending"] == "32 of 32"
    assert re.match(r"about \d+ s, measured on 32 clips: decoding [\d.]+ ms", rows["time"])
    ways = {way: [cell.strip() for cell in rows[way].split("│")] for way in WAYS}
    sizes = [ways[way][0] for way in WAYS]
    assert sizes == ["1.0 MB", "542.0 kB", "262.8 kB", "148.7 kB"]
    assert all(re.match(r"about \d+ s", ways[way][2]) for way in WAYS)
    assert [ways[way][3] for way in WAYS] == [
        "",
        "store.dtype=int8",
        "'backbone.taps=[backbone:1x2x2]'",
        "store.dtype=int8 'backbone.taps=[backbone:1x2x2]'",
    ]


@pytest.mark.long
def test_dry_run_of_a_half_and_of_a_finished_store(folder):
    root = {"store__root": folder / "half"}
    assert extract(folder, **root).returncode == 0
    finished = table_of(extract(folder, "--dry-run", **root))
    assert (finished["shards"], finished["to be written"]) == ("2, 0 pending", "0 bytes")
    assert finished["clips pending"] == "0 of 32" and "time" not in finished
    (store,) = (folder / "half").iterdir()
    (store / "maps" / "c.1.0.0.0.0").unlink()
    half = table_of(extract(folder, "--dry-run", **root, backbone__batch_size=4))
    assert (half["shards"], half["clips pending"]) == ("2, 1 pending", "16 of 32")
    assert (half["already there"], half["to be written"]) == ("524.7 kB", "524.7 kB")
    assert "measured on 8 clips" in half["time"]


@pytest.mark.long
def test_dry_run_of_a_compressed_store_tells_a_bound(folder):
    rows = table_of(extract(folder, "--dry-run", store__dtype="int8", store__codec="zstd"))
    assert rows["stored as"] == "int8, zstd 1" and rows["size"].startswith("at most ")


@pytest.mark.long
def test_features_json_says_what_is_stored_and_not_who_stored_it(folder):
    """Its bytes are the same after another extraction with other decode settings."""
    records = []
    for number, workers in enumerate((0, 1)):
        root = folder / f"stores{number}"
        run = extract(folder, store__root=root, backbone__num_decode_workers=workers)
        assert run.returncode == 0, run.stderr
        record = json.loads((folder / "outputs" / "features.json").read_text())
        manifest = json.loads((Path(record["store"]) / "manifest.json").read_text())
        assert set(manifest) - set(record) == {"provenance", "digest"}
        assert record.pop("store") == str(root / manifest["fingerprint"])
        records.append(record)
        settings = manifest["provenance"]["settings"]["backbone"]
        assert settings["num_decode_workers"] == workers
    assert records[0] == records[1]
    assert records[0]["files"]["frames/c.0.0"]["bytes"] == 32 * 16 * 4 + 4
