"""zarr-python, zarrs and tensorstore open every kind of store and read equal bytes.

Each library reads in a process of its own: zarrs and tensorstore do not survive a fork.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.feature_store.stored_types import STORED_TYPES, encode_map
from tests.feature_store.small_store import FAILURES, make_map, make_plan, write_store

FRAMES = [[3 * position, 3 * position + 1, -1][: 2 + position % 2] for position in range(23)]
KINDS = [(dtype, codec) for dtype in STORED_TYPES for codec in ("none", "zstd")]

ZARR = """
import json, sys
import numpy as np, zarr
if sys.argv[1] == "zarrs":
    import zarrs
    zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"})
for path in json.loads(sys.argv[2]):
    group = zarr.open_group(path, mode="r", zarr_format=3)
    np.savez(path + ".npz", **{name: array[...] for name, array in group.arrays()})
"""
TENSORSTORE = """
import json, os, sys
import numpy as np, tensorstore
for path in json.loads(sys.argv[2]):
    arrays = {}
    for name in ("maps", "scales", "frames"):
        if os.path.exists(f"{path}/{name}"):
            kvstore = {"driver": "file", "path": f"{path}/{name}/"}
            array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True).result()
            arrays[name] = array.read().result()
    np.savez(path + ".npz", **arrays)
"""
PROGRAMS = {"zarr": ZARR, "zarrs": ZARR, "tensorstore": TENSORSTORE}


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[tuple[str, str], Path]:
    root = tmp_path_factory.mktemp("stores")
    return {
        (dtype, codec): write_store(root, make_plan(dtype=dtype, codec=codec, frames=FRAMES))
        for dtype, codec in KINDS
    }


@pytest.fixture(scope="module", params=PROGRAMS)
def arrays(request, stores) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """What one library reads of every store, array by array."""
    pytest.importorskip(request.param)
    paths = json.dumps([str(path) for path in stores.values()])
    subprocess.run(
        [sys.executable, "-c", PROGRAMS[request.param], request.param, paths],
        check=True,
        timeout=120,
    )
    return {
        kind: dict(np.load(path.with_name(path.name + ".npz"))) for kind, path in stores.items()
    }


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_equal_bytes_and_fill_values_for_failed_clips(arrays, stores, kind):
    dtype, _ = kind
    plan, found = make_plan(dtype=dtype), arrays[kind]
    assert set(found) == {"maps", "frames", *(["scales"] if dtype == "int8" else [])}
    assert found["maps"].dtype == plan.stored_dtype
    for position in range(23):
        if position in FAILURES:
            is_float = found["maps"].dtype.kind == "f"
            fill = np.isnan if is_float else np.logical_not
            assert fill(found["maps"][position]).all()
            continue
        encoded = encode_map(make_map(plan, position), dtype)
        assert found["maps"][position].tobytes() == encoded.stored.tobytes()
        if encoded.scales is not None:
            assert found["scales"][position].tobytes() == encoded.scales.tobytes()
    assert found["frames"].tolist() == [[*row, -1, -1, -1][:3] for row in FRAMES]


def test_zarr_sees_groups_attributes_and_shards(stores):
    import zarr

    for (dtype, codec), path in stores.items():
        group = zarr.open_group(path, mode="r", zarr_format=3)
        assert dict(group.attrs)["version"] == 2
        maps = group["maps"]
        assert (maps.chunks, maps.shards) == ((1, 3, 2, 4, 4), (5, 3, 2, 4, 4))
        assert maps.attrs["stored_type"] == dtype
        manifest = json.loads((path / "manifest.json").read_text())
        zstd = ["zstd"] if codec == "zstd" else []
        assert manifest["array"]["codecs"] == ["bytes", *zstd, "crc32c"]
        assert ("scales" in group) == (dtype == "int8")
