"""Real data sets are laid out from a person's folder, and told where to get if they are not there.

The data themselves are no part of the project: small made-up ones have their form.
"""

from __future__ import annotations

import csv

import h5py
import numpy as np
import pytest

from benchmarks.claims.real import SOURCES, lay_out_thetis, lay_out_ut_interaction, require_source
from dsts_pipeline.base.errors import DataError


@pytest.mark.parametrize("name", SOURCES)
def test_what_is_not_there_is_told_with_where_it_is(name, tmp_path):
    with pytest.raises(DataError, match=f"no --real FOLDER was given; {name} is to be fetched"):
        require_source(name, None)
    with pytest.raises(DataError, match=f"{name}: no such folder"):
        require_source(name, tmp_path)
    (tmp_path / name).mkdir()
    assert require_source(name, tmp_path) == tmp_path / name


def test_thetis(tmp_path):
    generator = np.random.default_rng(0)
    stored = generator.integers(0, 256, (6, 4, 5), dtype=np.uint8)
    scale = generator.random(5, dtype=np.float32)
    players = np.array([1, 1, 2, 2, 55, 55])
    strokes = np.arange(6) % 3
    file = tmp_path / "thetis_u8.npz"
    np.savez(file, q=stored, scale=scale, stroke=strokes, player=players)
    lay_out_thetis(tmp_path, tmp_path / "data")
    with h5py.File(tmp_path / "data" / "features.h5") as features:
        maps = (stored * scale).swapaxes(1, 2)[..., None, None]
        np.testing.assert_allclose(features["features"], maps)
    rows = list(csv.DictReader((tmp_path / "data" / "labels.csv").open()))
    assert [row["group"] for row in rows[1:3]] == ["player01", "player02"]
    assert {row["label"] for row in rows} == {"stroke00", "stroke01", "stroke02"}


def test_ut_interaction(tmp_path):
    source = tmp_path / "source"
    (source / "set1").mkdir(parents=True)
    (source / "set1" / "a.avi").write_bytes(b"film")
    (source / "labels.csv").write_text(
        "path,label,name,sequence,set\nset1/a.avi,4,punching,7,set1\n"
    )
    for _ in range(2):
        lay_out_ut_interaction(source, tmp_path / "data")
    assert (tmp_path / "data" / "set1" / "a.avi").read_bytes() == b"film"
    (row,) = csv.DictReader((tmp_path / "data" / "annotations.csv").open())
    assert row == {
        "path": "set1/a.avi",
        "label": "punching",
        "split": "train",
        "group": "sequence07",
    }
