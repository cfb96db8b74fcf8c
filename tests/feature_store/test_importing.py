"""Features made elsewhere: what comes in is what was there, and nothing wrong comes in silently."""

from __future__ import annotations

import os
import pickle

import h5py
import numpy as np
import pytest
import torch

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import StoreSettings
from dsts_pipeline.feature_store import StoreWriter, open_store
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.importing import (
    Unusable,
    arrange_axes,
    doubt_layout,
    find_videos,
    open_source,
    plan_import,
    read_labels,
    survey_source,
    write_import,
)
from dsts_pipeline.feature_store.joining import join_views
from tests.feature_store.segments import open_segments
from tests.feature_store.small_store import make_plan, read_tree, write_store
from tests.pipeline import run_cli

SHAPE = (3, 4, 2, 2)
NUM = 20


def make_features(number: int, shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(number).standard_normal(shape).astype(np.float32)


def write_labels(path, rows, header="id,label,split"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def default_rows():
    return [f"clip{n},{'ab'[n % 2]},{'test' if n % 4 == 3 else 'train'}" for n in range(NUM)]


@pytest.fixture
def folder(tmp_path):
    """20 .npy files and their labels.csv."""
    source = tmp_path / "features"
    source.mkdir()
    for number in range(NUM):
        np.save(source / f"clip{number}.npy", make_features(number))
    write_labels(tmp_path / "labels.csv", default_rows())
    return source


def bring_in(root, source, labels, *, limit=0.0, axes=None, dataset=None, dtype="float32", **more):
    """Import and open the store."""
    table, features = read_labels(labels), open_source(source, axes=axes, dataset=dataset, **more)
    survey = survey_source(features, table.rows, max_failed_fraction=limit)
    how = StoreSettings(dtype=dtype, shard_bytes=2**20, min_shards=4)
    plan = plan_import(features, table, survey, name="mine", how=how)
    with StoreWriter(root, plan) as writer:
        path = write_import(features, table.rows, survey, writer, provenance={}).parent
    return open_store(path)


# ---- folders ----------------------------------------------------------------------------------


def test_folder_of_npy(folder, tmp_path):
    store = bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv")
    assert store.video_ids == tuple(f"clip{n}" for n in range(NUM))
    assert store.class_names == ("a", "b")
    assert store.labels.tolist() == [n % 2 for n in range(NUM)]
    assert len(store.rows_of_split("test")) == 5
    np.testing.assert_array_equal(
        store.read(range(NUM)), np.stack([make_features(n) for n in range(NUM)])
    )
    assert store.manifest["made_of"]["clips"]["dataset"] == "mine"
    store.verify()


def test_every_kind_of_file_gives_the_same_store(folder, tmp_path):
    """The fingerprint follows the content, not the container."""
    first = bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv")
    mixed = tmp_path / "mixed"
    (mixed / "deep").mkdir(parents=True)
    for number in range(NUM):
        features = make_features(number)
        if number % 3 == 0:
            np.savez(mixed / f"clip{number}.npz", features)
        elif number % 3 == 1:
            torch.save(torch.from_numpy(features), mixed / "deep" / f"clip{number}.pt")
        else:
            torch.save({"map": torch.from_numpy(features)}, mixed / f"clip{number}.pth")
    second = bring_in(tmp_path / "other", mixed, tmp_path / "labels.csv")
    assert read_tree(second.path) == read_tree(first.path)
    np.save(folder / "clip3.npy", make_features(99))
    third = bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv")
    assert third.fingerprint != first.fingerprint


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (None, (3, 4, 2, 2), (3, 4, 2, 2)),
        (None, (1, 3, 4, 2, 2), (3, 4, 2, 2)),
        ("TCHW", (4, 3, 2, 2), (3, 4, 2, 2)),
        ("THWC", (4, 2, 2, 3), (3, 4, 2, 2)),
        (None, (4, 3), (3, 4, 1, 1)),
        ("TC", (4, 3), (3, 4, 1, 1)),
        ("CT", (3, 4), (3, 4, 1, 1)),
        ("TC", (1, 4, 3), (3, 4, 1, 1)),
        (None, (7,), (7, 1, 1, 1)),
        ("C", (1, 7), (7, 1, 1, 1)),
    ],
)
def test_layouts(axes, shape, expected):
    features = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    arranged = arrange_axes(features, axes)
    assert arranged.shape == expected
    plain = features.reshape(shape[1:] if len(shape) > len(axes or "CTHW") else shape)
    if axes in ("TCHW", "TC", "THWC"):
        channel = axes.index("C")
        time = axes.index("T")
        assert arranged[2, 3].ravel().tolist() == (
            np.moveaxis(plain, (channel, time), (0, 1))[2, 3].ravel().tolist()
        )


@pytest.mark.parametrize(
    ("features", "axes"),
    [
        (np.zeros((3, 4, 2)), None),
        (np.zeros((3, 4)), "CTHW"),
        (np.zeros((3, 4, 2, 2), np.int64), None),
        (np.zeros((0, 4, 2, 2)), None),
        (np.array(["text"]), None),
    ],
)
def test_what_is_no_map(features, axes):
    with pytest.raises(Unusable, match="expected"):
        arrange_axes(features, axes)


# ---- what goes wrong --------------------------------------------------------------------------


class Harmful:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def spoil(folder, tmp_path):
    """One file of each kind that can't be used; the reason expected of each."""
    marks = [tmp_path / f"executed{n}" for n in range(3)]
    (folder / "clip0.npy").unlink()
    (folder / "clip1.npy").write_bytes((folder / "clip1.npy").read_bytes()[:100])
    np.save(folder / "clip2.npy", make_features(2, (3, 4, 2, 3)))
    bad = make_features(4)
    bad[1, 0, 0, 0] = np.nan
    np.save(folder / "clip4.npy", bad)
    np.save(folder / "clip5.npy", np.array([Harmful(marks[0])], dtype=object), allow_pickle=True)
    (folder / "clip6.npy").unlink()
    torch.save(Harmful(marks[1]), folder / "clip6.pt")
    (folder / "clip8.npy").unlink()
    (folder / "clip8.pt").write_bytes(pickle.dumps(Harmful(marks[2])))
    np.save(folder / "clip9.npy", np.zeros(SHAPE, np.int32))
    np.savez(folder / "clip10.npz", a=bad, b=bad)
    np.save(folder / "clip12.npy", make_features(12).astype(np.float64) * 1e39)
    return marks, {
        "clip0": "no file of that id",
        "clip1": "can't be loaded safely",
        "clip2": "map is (3, 4, 2, 3), most are (3, 4, 2, 2)",
        "clip4": "channel 1 of its map holds NaN or Inf",
        "clip5": "can't be loaded safely",
        "clip6": "can't be loaded safely",
        "clip8": "can't be loaded safely",
        "clip9": "holds int32, expected floats",
        "clip10": "several files of that id",
        "clip12": "overflows float32",
    }


def test_unusable_files_are_listed_with_their_reason(folder, tmp_path):
    marks, reasons = spoil(folder, tmp_path)
    store = bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv", limit=0.5)
    found = {failure["id"]: failure["reason"] for failure in store.manifest["failures"]}
    assert found.keys() == reasons.keys()
    for clip, reason in reasons.items():
        assert reason in found[clip], (clip, found[clip])
    assert not any(mark.exists() for mark in marks), "a harmful pickle ran"
    assert len(store) == 10 and store.manifest["counts"]["failed"] == 10
    assert not set(store.video_ids) & reasons.keys()


def test_too_many_failures_stop_before_anything_is_written(folder, tmp_path):
    spoil(folder, tmp_path)
    with pytest.raises(DataError, match=r"10 of 20 clips have no usable map, 2 are allowed"):
        bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv", limit=0.1)
    assert not (tmp_path / "stores").exists()


def test_links_out_of_the_source_are_refused(folder, tmp_path):
    np.save(tmp_path / "secret.npy", make_features(0))
    (folder / "clip0.npy").unlink()
    (folder / "clip0.npy").symlink_to(tmp_path / "secret.npy")
    store = bring_in(tmp_path / "stores", folder, tmp_path / "labels.csv", limit=0.1)
    assert "leads out of the source folder" in store.manifest["failures"][0]["reason"]


@pytest.mark.parametrize(
    ("header", "rows", "message"),
    [
        ("id,split", ["a,train"], "no column label"),
        ("label,split", ["a,train"], r"no column id \(or path\)"),
        ("id,label,split", [], "no row below the header"),
        ("id,label,split", ["a,x,train", "b,y"], "line 3: 2 cells; expected 3"),
        ("id,label,split", ["a,x,train,more"], "line 2: 4 cells; expected 3"),
        ("id,label,split", ["a,,train"], "line 2: the label is empty"),
        ("id,label,split", ["a,x,"], "line 2: split is ''; expected train, val or test"),
        ("id,label,split", [",x,train"], "line 2: neither id nor path"),
        ("id,label,split", ["a,x,train", "a,x,test"], "line 3: clip a view 0 was in line 2"),
        ("id,label,split,view", ["a,x,train,one"], "view one, expected a number"),
        (
            "id,label,split",
            ["a,99999999,train"],
            "line 2: class number 99999999; expected less than 65,536",
        ),
        ("id,label,split", ["a,0,train", "b,-1,test"], "line 3: the label is '-1', a negative"),
        ("id,label,split", ["a,0,train", "b,0.5,test"], "line 3: the label is '0.5', no whole"),
        ("id,label,split", ["a,x,train", "b,1.0,test"], "line 3: the label '1.0' is a number, and"),
        ("id,label,split", ["a,x\x07,train"], "line 2: label .*holds a control character"),
        ("id,label,split", ["a\x07,x,train"], "line 2: id .*holds a control character"),
        ("id,label,split", ["a,x,holdout"], "line 2: split is 'holdout'; expected train, val or t"),
        ("id,label,label,split", ["a,x,x,train"], "column 'label' stands twice"),
        ("path,label,split", ["../a.npy,x,train"], "leaves the source folder"),
        ("path,label,split", ["/etc/a.npy,x,train"], "leaves the source folder"),
    ],
)
def test_wrong_labels(tmp_path, header, rows, message):
    path = write_labels(tmp_path / "labels.csv", rows, header)
    with pytest.raises(DataError, match=message):
        read_labels(path)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_labels_as_programs_write_them(tmp_path, delimiter):
    rows = ["id,label,split,extra", "a,0.0,Train,?", "b,2.0,TESTING,?", "c,10.0,valid,?"]
    text = "\ufeff" + "\r\n".join(rows).replace(",", delimiter) + "\r\n"
    path = tmp_path / "labels.csv"
    path.write_bytes(text.encode())
    table = read_labels(path)
    assert [(row.label, row.split) for row in table.rows] == [
        (0, "train"),
        (2, "test"),
        (10, "val"),
    ]
    assert table.numbered and len(table.class_names) == 11 and table.notes == ()


def test_numbers_from_one_and_splits_without_a_clip_are_told(tmp_path):
    table = read_labels(write_labels(tmp_path / "labels.csv", ["a,1,train", "b,2,train"]))
    assert [row.label for row in table.rows] == [1, 2]
    assert "labels run from 1 to 2, and class 0 never occurs" in table.notes[0]
    assert table.notes[1] == "no clip is of the split test"


@pytest.mark.parametrize(
    ("shape", "axes", "told"),
    [
        ((16, 1024, 1, 1), None, "--layout CT"),
        ((16, 4, 4, 64), None, "--layout THWC"),
        ((8, 512, 7, 7), None, "--layout TCHW"),
        ((16, 1024, 1, 1), "TC", None),
        ((1024, 16, 7, 7), None, None),
        ((7, 1, 1, 1), None, None),
    ],
)
def test_maps_that_look_transposed_are_told_with_the_option(shape, axes, told):
    doubt = doubt_layout(shape, axes)
    assert (told in doubt) if told else doubt == ""


@pytest.mark.slow
def test_the_command_warns_of_a_layout_and_takes_the_one_that_was_meant(tmp_path):
    (tmp_path / "features").mkdir()
    for number in range(4):
        np.save(tmp_path / "features" / f"clip{number}.npy", make_features(number, (32, 6)))
    labels = write_labels(
        tmp_path / "labels.csv",
        [f"clip{n},{n % 2 + 1},{'test' if n else 'train'}" for n in range(4)],
    )
    asked = "import-features", str(tmp_path / "features"), "--labels", str(labels)
    run = run_cli(tmp_path, *asked)
    assert run.returncode == 0, run.stderr
    assert "warning: maps were read as 6 channels x 32 time steps" in run.stderr
    assert "--layout CT" in run.stderr and "labels run from 1 to 2" in run.stderr
    run = run_cli(tmp_path, *asked, "--layout", "CT")
    assert "warning" not in run.stderr and "4 maps of 32x6x1x1" in run.stderr


def test_numbers_are_class_numbers_and_paths_are_found(folder, tmp_path):
    rows = [f"clip{n}.npy,{n % 5},train" for n in range(NUM)]
    labels = write_labels(tmp_path / "labels.csv", rows, "path,label,split")
    store = bring_in(tmp_path / "stores", folder, labels)
    assert store.class_names == ("0", "1", "2", "3", "4")
    assert store.video_ids[3] == "clip3" and store.labels[3] == 3


def test_a_path_that_names_a_video_leaves_the_map_to_the_id(folder, tmp_path):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "clip3.MP4").write_bytes(b"")
    outside = tmp_path.parent / f"{tmp_path.name}-outside.mp4"
    outside.write_bytes(b"")
    (tmp_path / "videos" / "clip4.MP4").symlink_to(outside)
    rows = [f"clip{n},videos/clip{n}.MP4,{n % 5},train" for n in range(NUM)]
    labels = write_labels(tmp_path / "labels.csv", rows, "id,path,label,split")
    store = bring_in(tmp_path / "stores", folder, labels)
    np.testing.assert_array_equal(store.read([3])[0], make_features(3))
    assert find_videos(read_labels(labels).rows, tmp_path) == {"clip3": "videos/clip3.MP4"}
    rows = [f"clip{n}.mp4,{n % 5},train" for n in range(NUM)]  # a table without ids
    labels = write_labels(tmp_path / "labels.csv", rows, "path,label,split")
    again = bring_in(tmp_path / "stores", folder, labels)
    assert again.video_ids[3] == "clip3.mp4"
    np.testing.assert_array_equal(again.read([3])[0], make_features(3))


def test_views(folder, tmp_path):
    for number in range(4):
        np.save(folder / f"clip{number}_view1.npy", make_features(100 + number))
    rows = [f"clip{n},x,train,{view}" for n in range(4) for view in (0, 1)]
    labels = write_labels(tmp_path / "labels.csv", rows, "id,label,split,view")
    store = bring_in(tmp_path / "stores", folder, labels)
    assert store.views.tolist() == [0, 1] * 4
    np.testing.assert_array_equal(store.read([3])[0], make_features(101))


def test_nothing_to_import_from(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "none")
    with pytest.raises(DataError, match="nothing to import"):
        open_source(tmp_path)
    (tmp_path / "x.h5").write_bytes(b"no HDF5")
    with pytest.raises(DataError, match="neither a folder nor an HDF5 file"):
        open_source(tmp_path / "x.h5")
    with pytest.raises(DataError, match="layout HWC: expected one of CTHW"):
        open_source(tmp_path, axes="HWC")


# ---- going on ---------------------------------------------------------------------------------


def test_import_goes_on_from_the_finished_shards(folder, tmp_path):
    labels = tmp_path / "labels.csv"
    whole = bring_in(tmp_path / "whole", folder, labels)
    store = bring_in(tmp_path / "stores", folder, labels)
    kept = (store.path / "maps/c.0.0.0.0.0").stat().st_mtime_ns
    for name in ("manifest.json", "maps/c.1.0.0.0.0"):
        (store.path / name).unlink()
    bring_in(tmp_path / "stores", folder, labels)
    assert read_tree(store.path) == read_tree(whole.path)
    assert (store.path / "maps/c.0.0.0.0.0").stat().st_mtime_ns == kept


def test_a_source_that_changes_meanwhile_is_told(folder, tmp_path):
    table, source = read_labels(tmp_path / "labels.csv"), open_source(folder)
    survey = survey_source(source, table.rows, max_failed_fraction=0)
    how = StoreSettings(dtype="float16", shard_bytes=2**20, min_shards=4)
    plan = plan_import(source, table, survey, name="mine", how=how)
    np.save(folder / "clip7.npy", make_features(70))
    with (
        pytest.raises(DataError, match="clip clip7: its map changed"),
        StoreWriter(tmp_path / "stores", plan) as writer,
    ):
        write_import(source, table.rows, survey, writer, provenance={})


# ---- HDF5 -------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("maps", "ids"), ("some/features", "clips")])
def test_any_hdf5_file_with_maps_and_ids(folder, tmp_path, names):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file[names[0]] = np.stack([make_features(n) for n in reversed(range(NUM))])
        file[names[1]] = [f"clip{n}" for n in reversed(range(NUM))]
        file["scores"] = np.zeros((NUM, 4))
    store = bring_in(tmp_path / "stores", path, tmp_path / "labels.csv")
    from_folder = bring_in(tmp_path / "other", folder, tmp_path / "labels.csv")
    assert store.fingerprint == from_folder.fingerprint


def test_hdf5_file_that_leaves_a_choice(folder, tmp_path):
    path, labels = tmp_path / "other.h5", tmp_path / "labels.csv"
    maps = np.stack([make_features(n) for n in range(NUM)])
    with h5py.File(path, "w") as file:
        file["early"], file["late"] = maps, maps + 1
        file["x"] = file["y"] = [f"clip{n}" for n in range(NUM)]
    with pytest.raises(DataError, match="2 datasets with 5 axes .* name the one with --dataset"):
        open_source(path)
    with pytest.raises(DataError, match="name the one with --ids-dataset"):
        open_source(path, dataset="late")
    with pytest.raises(DataError, match="no dataset later; found early, late"):
        open_source(path, dataset="later")
    store = bring_in(tmp_path / "stores", path, labels, dataset="late", ids_dataset="x")
    np.testing.assert_array_equal(store.read([2])[0], make_features(2) + 1)


def test_hdf5_ids_twice_or_unknown(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["maps"], file["ids"] = np.zeros((3, *SHAPE), np.float32), ["a", "b", "a"]
    with pytest.raises(DataError, match="id a is there twice"):
        open_source(path)
    with h5py.File(path, "a") as file:
        file["ids"][2] = "c"
    labels = write_labels(tmp_path / "labels.csv", ["a,x,train", "b,x,train", "d,x,train"])
    store = bring_in(tmp_path / "stores", path, labels, limit=0.4)
    assert store.manifest["failures"][0]["reason"] == "no such id in the file"


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_our_own_file_comes_back_with_its_backbone_and_classes(tmp_path, dtype):
    parts = {"backbone": {"name": "b", "weights": {"sha256": "0" * 64}}}
    plan = make_plan(dtype=dtype, fingerprint_parts=parts)
    store = open_store(write_store(tmp_path / "first", plan))
    path = export_hdf5(store, tmp_path / "maps.h5")
    rows = [
        f"{clip},{label},{split}"
        for clip, label, split in zip(store.video_ids, store.labels, store.splits, strict=True)
    ]
    labels = write_labels(tmp_path / "labels.csv", rows)
    again = bring_in(tmp_path / "second", path, labels, dtype=store.dtype.name)
    np.testing.assert_array_equal(again.read(range(21)), store.read(range(21)))
    assert again.class_names == store.class_names and again.attributes == store.attributes
    assert again.manifest["made_of"]["backbone"] == parts["backbone"]
    assert again.manifest["made_of"]["import"]["store"] == store.fingerprint


def test_segments_of_our_own_file_are_joined_as_in_its_store(tmp_path):
    store = open_segments(tmp_path / "first")
    path = export_hdf5(store, tmp_path / "maps.h5")
    columns = zip(store.video_ids, store.labels, store.splits, store.views, strict=True)
    rows = [",".join(map(str, row)) for row in columns]
    labels = write_labels(tmp_path / "labels.csv", rows, "id,label,split,view")
    again = join_views(bring_in(tmp_path / "second", path, labels))
    expected = join_views(store)
    assert (again.num_joined, again.views.tolist()) == (2, expected.views.tolist())
    np.testing.assert_array_equal(again.read(range(24)), expected.read(range(24)))


def write_secret(tmp_path):
    """Another file of this machine, whose content nobody meant to import."""
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["maps"] = np.ones((3, *SHAPE), np.float32)
        file["ids"] = ["a", "b", "c"]
        file["views"] = [0, 0, 0]
    (tmp_path / "secret.bin").write_bytes(np.ones((3, *SHAPE), np.float32).tobytes())
    return secret


def add_virtual(file, name, secret, kind):
    with h5py.File(secret) as other:
        source = h5py.VirtualSource(other[kind])
    layout = h5py.VirtualLayout(source.shape, source.dtype)
    layout[:] = source
    file.create_virtual_dataset(name, layout)


OUTSIDE = {
    "external link": "is a link to another file",
    "external link, deep": "is a link to another file",
    "soft link to an external one": "is a link to another file",
    "raw data": "keeps its data in another file",
    "virtual": "is a virtual dataset",
    "soft link to a virtual one": "is a virtual dataset",
}


def put(file, name, secret, how):
    """Make `name` of `file` show the data of `secret`."""
    if how == "raw data":
        raw = [(str(secret.with_suffix(".bin")), 0, h5py.h5f.UNLIMITED)]
        file.create_dataset(name, (3, *SHAPE), np.float32, external=raw)
    elif how == "virtual":
        add_virtual(file, name, secret, name)
    elif how == "soft link to a virtual one":
        add_virtual(file, "g/hidden", secret, name)
        file[name] = h5py.SoftLink("/g/hidden")
    elif how == "external link":
        file[name] = h5py.ExternalLink(str(secret), f"/{name}")
    elif how == "external link, deep":
        file["g/h/i"] = h5py.ExternalLink(str(secret), "/")
        file[name] = h5py.SoftLink(f"g/h/i/{name}")
    else:
        file["g/other"] = h5py.ExternalLink(str(secret), f"/{name}")
        file[name] = h5py.SoftLink("/g/./other")


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        (name, how)
        for name in ("maps", "ids", "views")
        for how in OUTSIDE
        if how != "raw data" or name == "maps"
    ],
)
def test_data_of_other_files_are_never_read(tmp_path, name, how, asked):
    path, secret = tmp_path / "mine.h5", write_secret(tmp_path)
    with h5py.File(path, "w") as file:
        for other in {"maps", "ids", "views"} - {name}:
            with h5py.File(secret) as source:
                source.copy(other, file)
        put(file, name, secret, how)
    secret.unlink()
    os.mkfifo(secret)  # to open it would wait for ever
    options = {"dataset": "maps", "ids_dataset": "ids"} if asked else {}
    with pytest.raises(DataError, match=f"mine.h5: {name} {OUTSIDE[how]}.*copy them"):
        open_source(path, **options)


def test_raw_data_of_another_name_are_told_where_they_would_be_the_choice(tmp_path):
    path, secret = tmp_path / "mine.h5", write_secret(tmp_path)
    with h5py.File(path, "w") as file:
        add_virtual(file, "elsewhere", secret, "maps")
        file["ids"] = ["a", "b", "c"]
    with pytest.raises(DataError, match="0 datasets .*elsewhere is a virtual dataset"):
        open_source(path)
    with pytest.raises(DataError, match="elsewhere is a virtual dataset"):
        open_source(path, dataset="elsewhere")


def test_links_within_the_file_are_followed(tmp_path):
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        file["g/real"] = np.stack([make_features(n) for n in range(3)])
        file["g/itself"] = file["g"]
        file["maps"] = h5py.SoftLink("/g/itself/real")
        file["again"] = h5py.SoftLink("maps")
        file["nothing"] = h5py.SoftLink("/g/none")
        file["round"] = h5py.SoftLink("/round")
        file["folder"] = h5py.SoftLink("/g")
        file["ids"] = ["a", "b", "c"]
    labels = write_labels(tmp_path / "labels.csv", ["a,x,train", "b,x,train", "c,x,train"])
    for number, asked in enumerate((None, "again", "/maps", "folder/real")):
        store = bring_in(tmp_path / f"stores{number}", path, labels, dataset=asked)
        np.testing.assert_array_equal(store.read([2])[0], make_features(2))
    for asked in ("nothing", "round", "g"):
        with pytest.raises(DataError, match=f"no dataset {asked}"):
            open_source(path, dataset=asked)
    with h5py.File(path, "a") as file:
        del file["maps"]
        file["x"] = h5py.SoftLink("/g/real")
    store = bring_in(tmp_path / "last", path, labels)  # several names of one dataset: no choice
    np.testing.assert_array_equal(store.read([1])[0], make_features(1))


def test_odd_types_are_errors_that_name_them(tmp_path):
    path, one = tmp_path / "mine.h5", np.zeros((3, *SHAPE), np.float32)
    pairs = np.dtype([("a", np.float32), ("b", np.float32)])
    with h5py.File(path, "w") as file:
        file["maps"], file["ids"] = one, ["a", "b", "c"]
        file.attrs["format"] = file["maps"].ref
        file.attrs["version"] = np.zeros(2, pairs)
        file["pairs"] = np.zeros((3, *SHAPE), pairs)
        file["number"] = 3.0
        file["places"] = np.array([file["maps"].ref] * 3, h5py.ref_dtype)
        region = file["maps"].regionref[0]
        file["parts"] = np.array([region] * 3, h5py.regionref_dtype)
        file.create_dataset("lists", (3,), h5py.vlen_dtype(np.int32))
    for asked in ("places", "parts", "lists"):
        with pytest.raises(DataError, match=f"{asked} holds object, expected texts"):
            open_source(path, dataset="maps", ids_dataset=asked)
    with pytest.raises(DataError, match="number is no array"):
        open_source(path, dataset="number")
    labels = write_labels(tmp_path / "labels.csv", ["a,x,train", "b,x,train", "c,x,train"])
    with pytest.raises(DataError, match="holds .*expected floats"):
        bring_in(tmp_path / "stores", path, labels, dataset="pairs", limit=0.5)
    with h5py.File(path, "a") as file:
        file["views"] = [0.5, 0.0, 0.0]
    with pytest.raises(DataError, match="views is float64 .*expected 3 integers"):
        open_source(path, dataset="maps")


def test_a_filter_that_is_not_here_is_told(tmp_path):
    path = tmp_path / "mine.h5"
    with h5py.File(path, "w") as file:
        options = {"compression": 32020, "allow_unknown_filter": True}
        maps = file.create_dataset("maps", (3, *SHAPE), np.float32, chunks=(1, *SHAPE), **options)
        for row in range(3):
            maps.id.write_direct_chunk((row, 0, 0, 0, 0), b"what only that filter can read")
        file["ids"] = ["a", "b", "c"]
    with pytest.raises(DataError, match="maps was written with HDF5 filter 32020.*h5repack"):
        open_source(path)


# ---- groups -------------------------------------------------------------------------------------

PLAYERS = [f"player {n // 5}" for n in range(NUM)]


def label_groups(tmp_path, groups, name="labels.csv"):
    rows = [f"{row},{group}" for row, group in zip(default_rows(), groups, strict=True)]
    return write_labels(tmp_path / name, rows, "id,label,split,group")


def test_a_column_of_groups_is_kept_and_names_no_other_store(folder, tmp_path):
    plain = bring_in(tmp_path / "plain", folder, tmp_path / "labels.csv")
    store = bring_in(tmp_path / "stores", folder, label_groups(tmp_path, PLAYERS, "groups.csv"))
    assert list(store.groups) == PLAYERS and plain.groups is None
    assert store.fingerprint == plain.fingerprint
    blank = bring_in(tmp_path / "blank", folder, label_groups(tmp_path, [""] * NUM, "blank.csv"))
    assert read_tree(blank.path) == read_tree(plain.path)
    some = label_groups(tmp_path, ["", *PLAYERS[1:]], "some.csv")
    assert bring_in(tmp_path / "some", folder, some).groups[:2] == (None, "player 0")


def test_other_groups_are_taken_without_writing_a_map(folder, tmp_path):
    path = bring_in(tmp_path / "stores", folder, label_groups(tmp_path, PLAYERS)).path
    shards = {file: file.stat().st_mtime_ns for file in path.glob("maps/c.*")}
    others = [f"player {n % 5}" for n in range(NUM)]
    again = bring_in(tmp_path / "stores", folder, label_groups(tmp_path, others))
    assert again.path == path and list(again.groups) == others
    assert all(file.stat().st_mtime_ns == when for file, when in shards.items())


def test_groups_of_an_exported_file_are_its_own_unless_labels_tell(folder, tmp_path):
    store = bring_in(tmp_path / "stores", folder, label_groups(tmp_path, PLAYERS))
    file = export_hdf5(store, tmp_path / "maps.h5")
    plain = write_labels(tmp_path / "plain.csv", default_rows())
    assert bring_in(tmp_path / "again", file, plain).groups == store.groups
    others = label_groups(tmp_path, ["x", "y"] * 10, "others.csv")
    assert bring_in(tmp_path / "others", file, others).groups == ("x", "y") * 10


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,x,train,0,p", "a,x,train,1,q"], "line 3: clip a is of group q, and of p in line 2"),
        (["a,x,train,0,p", "a,x,train,1,"], "is of group none, and of p in"),
        (["a,x,train,0,p\x07"], "group .* holds a control character"),
    ],
)
def test_wrong_groups_are_told_with_their_line(tmp_path, rows, message):
    path = write_labels(tmp_path / "labels.csv", rows, "id,label,split,view,group")
    with pytest.raises(DataError, match=message) as error:
        read_labels(path)
    assert "\n" not in str(error.value)


def test_the_command_warns_of_groups_in_train_and_test(folder, tmp_path):
    labels = label_groups(tmp_path, PLAYERS)
    run = run_cli(tmp_path, "import-features", str(folder), "--labels", str(labels))
    assert run.returncode == 0, run.stderr
    told = "warning: 5 of 5 test clips are of groups that train clips are of, too, such as player 0"
    assert told in run.stderr and "(4 train, 1 test)" in run.stderr
    label_groups(tmp_path, ["train" if ",train" in row else "test" for row in default_rows()])
    run = run_cli(tmp_path, "import-features", str(folder), "--labels", str(labels))
    assert "of groups that train clips" not in run.stderr
    assert "its clips' groups are other ones: written anew; the maps stay" in run.stderr
