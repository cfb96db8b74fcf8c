"""Maps that a storage type can't hold, and the error of int8, from the writer to the manifest."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import StoreWriter, open_store
from tests.feature_store.small_store import make_maps, make_plan, read_tree, write_store


def write_with(root, values: dict[int, float], order=range(5), **changes):
    """A store in whose clips (by position) a value of channel 1 is replaced; its manifest."""
    with StoreWriter(root, make_plan(**changes)) as writer:
        for shard in order:
            positions = writer.shard_clips(shard)
            maps = make_maps(writer.plan, positions)
            for position, value in values.items():
                if position in positions:
                    maps[position - positions.start, 1, 0, 2] = value
            writer.write_shard(shard, maps)
        return json.loads(writer.finish({}).read_text())


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float16", 70_000.0), ("float16", -1e30), ("bfloat16", 3.4e38)],
)
def test_overflow_stops_the_writer_and_names_clip_and_channel(tmp_path, dtype, value):
    with pytest.raises(StoreError) as caught:
        write_with(tmp_path, {7: value}, dtype=dtype)
    message = str(caught.value)
    assert f"clip clip-7: channel 1 of its map holds {value:g}, which overflows {dtype}" in message
    assert "store.dtype" in message and "store.on_overflow" in message


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("on_overflow", ["error", "saturate"])
def test_nan_and_inf_always_stop_the_writer(tmp_path, dtype, value, on_overflow):
    with pytest.raises(StoreError, match="clip clip-7: channel 1 .* is no number to store"):
        write_with(tmp_path, {7: value}, dtype=dtype, on_overflow=on_overflow)


def test_the_shard_stays_pending_and_the_writer_can_go_on(tmp_path):
    with StoreWriter(tmp_path, make_plan()) as writer:
        maps = make_maps(writer.plan, range(5))
        maps[2, 1, 0, 0, 0] = np.inf
        writer.write_shard(0, maps)
        with pytest.raises(StoreError, match="clip clip-2"):
            writer.write_shard(1, make_maps(writer.plan, range(5, 10)))
        assert writer.pending_shards() == [0, 1, 2, 3, 4]
        assert not list(writer.path.glob("maps/*c.0*"))
        writer.write_shard(0, make_maps(writer.plan, range(5)))
        assert writer.pending_shards() == [1, 2, 3, 4]


def test_leaving_the_writer_tells_the_last_error(tmp_path):
    with pytest.raises(StoreError, match="clip clip-0"), StoreWriter(tmp_path, make_plan()) as w:
        w.write_shard(0, np.full((5, *w.plan.map_shape), np.nan))


def test_fail_lists_the_clips_with_their_reasons(tmp_path):
    manifest = write_with(tmp_path, {3: 1e6, 7: np.nan}, on_overflow="fail")
    assert [(f["id"], f["split"], f["reason"]) for f in manifest["failures"]] == [
        (
            "clip-3",
            "train",
            "can't be stored: channel 1 of its map holds 1e+06, which overflows float16",
        ),
        (
            "clip-7",
            "train",
            "can't be stored: channel 1 of its map holds nan, which is no number to store",
        ),
    ]
    assert manifest["counts"]["failed"] == 2
    store = open_store(tmp_path / manifest["fingerprint"])
    assert len(store) == 21 and not {3, 7} & set(store.positions.tolist())
    assert np.isfinite(store.read(range(21))).all()


def test_saturate_cuts_and_counts_values_and_clips(tmp_path):
    manifest = write_with(tmp_path, {3: 1e6, 7: -1e9, 20: 65504.0}, on_overflow="saturate")
    assert manifest["saturated"] == {"values": 8, "clips": 2}  # 4 values of each
    path = tmp_path / manifest["fingerprint"]
    sidecar = json.loads((path / "shards/000000.json").read_text())
    assert sidecar["saturated"] == {"values": 4, "clips": 1}
    maps = open_store(path).read([3, 7])
    assert (maps[0, 1, 0, 2] == 65504).all() and (maps[1, 1, 0, 2] == -65504).all()
    np.testing.assert_array_equal(maps[0, 0], make_maps(make_plan(), [3])[0, 0].astype(np.float16))


def test_int8_reports_its_error_whatever_the_order_of_writing(tmp_path):
    manifest = write_with(tmp_path / "a", {}, dtype="int8")
    other = write_with(tmp_path / "b", {}, order=(4, 2, 0, 3, 1), dtype="int8")
    assert manifest == other
    path = tmp_path / "a" / manifest["fingerprint"]
    assert read_tree(path) == read_tree(tmp_path / "b" / manifest["fingerprint"])
    exact = make_maps(make_plan(), range(23)).astype(np.float64)
    error = open_store(path).read(range(23)) - exact
    told = manifest["quantization"]
    assert told["relative_rms_error"] == pytest.approx(
        math.sqrt((error**2).sum() / (exact**2).sum()), rel=1e-4
    )
    assert told["largest_absolute_error"] == pytest.approx(np.abs(error).max(), rel=1e-4)
    assert 0 < told["relative_rms_error"] < 0.01


def test_int8_of_nothing_but_zeros(tmp_path):
    with StoreWriter(tmp_path, make_plan(num_clips=5, dtype="int8")) as writer:
        writer.write_shard(0, np.zeros((5, *writer.plan.map_shape)))
        manifest = json.loads(writer.finish({}).read_text())
    assert manifest["quantization"] == {"relative_rms_error": 0.0, "largest_absolute_error": 0.0}
    assert not open_store(writer.path).read(range(5)).any()


def test_other_types_report_no_quantization(tmp_path):
    path = write_store(tmp_path)
    assert json.loads((path / "manifest.json").read_text())["quantization"] is None
