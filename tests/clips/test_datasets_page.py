"""The tables of docs/datasets.md: every layout that it names is read, every refusal happens."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.clips import read_annotations
from dsts_pipeline.clips.decode import find_refusal
from dsts_pipeline.clips.probe import probe
from tests.clips.encodings import Encoding, write_encoding

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()


def table(header: str) -> dict[str, str]:
    """The rows below a header, first cell to second."""
    lines = PAGE[PAGE.index(header) :].split("\n\n")[0].splitlines()[2:]
    return dict(line.strip("| ").split(" | ", 1) for line in lines)


def write(root: Path, **files: str) -> None:
    """Text files by name."""
    for name, text in files.items():
        (root / name).write_text(text)


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "`folder`": lambda root: touch(
        root, "train/a/g/1.mp4", "train/b/2.mp4", "test/a/3.mp4", "val/b/4.mp4"
    ),
    "`folder`, without splits": lambda root: touch(root, "a/1.mp4", "b/2.mp4"),
    "`csv`": lambda root: write(
        root,
        **{
            "annotations.csv": "path,label,split,id,start_frame,end_frame,start_seconds,"
            "end_seconds,group\n1.mp4,a,train,x,0,9,,,g\n2.mp4,b,Test,y,,,0.5,1,g\n"
        },
    ),
    "`csv`, a file per split": lambda root: write(
        root,
        **{
            "train.csv": "path,label\n1.mp4,a\n",
            "val.csv": "path,label\n2.mp4,b\n",
            "test.csv": "path,label\n3.mp4,b\n",
        },
    ),
    "`csv`, without splits": lambda root: write(
        root, **{"annotations.csv": "path,label\n1.mp4,a\n2.mp4,b\n"}
    ),
    "`csv`, lists": lambda root: write(
        root,
        **{
            "train.csv": f"{root}/1.mp4 0\n",
            "val.csv": f"{root}/2.mp4 1\n",
            "test.csv": "3.mp4 1\n",
        },
    ),
    "`mmaction`": lambda root: write(
        root,
        **{
            "train_list_videos.txt": "1.mp4 0\n",
            "val_list_videos.txt": "2.mp4 1\n",
            "label_map.txt": "a\nb\n",
        },
    ),
}


def test_the_page_names_these_layouts():
    assert table("| `dataset=` |").keys() == LAYOUTS.keys()


@pytest.mark.parametrize("row", LAYOUTS)
def test_a_layout_is_read(tmp_path, row):
    LAYOUTS[row](tmp_path)
    kind = re.match(r"`(\w+)`", row)[1]
    stated = re.search(r"test_fraction=([\d.]+)", table("| `dataset=` |")[row])
    fraction = float(stated[1]) if stated else 0.0
    found = read_annotations(kind, tmp_path, test_fraction=fraction)
    assert len(found.class_names) == 2 and len(found.clips) >= 2
    if not stated:
        assert {"train", "test"} <= {clip.split for clip in found.clips}


def csv(*rows: str, header: str = "path,label,split") -> Callable[[Path], None]:
    return lambda root: write(root, **{"annotations.csv": "\n".join([header, *rows])})


REFUSALS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "a label -1, or another negative number": (
        "csv",
        csv("1.mp4,0,train", "2.mp4,-1,test"),
    ),
    "a label 0.5": ("csv", csv("1.mp4,0,train", "2.mp4,0.5,test")),
    "labels 1.0 and jump": ("csv", csv("1.mp4,1.0,train", "2.mp4,jump,test")),
    "a label nan, or an empty one": ("csv", csv("1.mp4,0,train", "2.mp4,nan,test")),
    "a control character in a class name": (
        "folder",
        lambda root: touch(root, "train/a\x01/1.mp4", "test/b/1.mp4"),
    ),
    "another word as a split": ("csv", csv("1.mp4,0,eval")),
    "no test split, and no `dataset.test_fraction`": (
        "folder",
        lambda root: touch(root, "a/1.mp4", "b/1.mp4"),
    ),
    "two folders for one split, such as Train and training": (
        "folder",
        lambda root: touch(root, "Train/a/1.mp4", "training/a/2.mp4", "test/a/3.mp4"),
    ),
    "a path outside of the root": ("csv", csv("/elsewhere/1.mp4,0,train")),
    "a backslash in a path": ("csv", csv("a\\1.mp4,0,train")),
    "the same clip twice in a split": ("csv", csv("1.mp4,0,train", "./1.mp4,1,train")),
    'a list of raw frames ("id frames label")': (
        "csv",
        lambda root: write(root, **{"train.csv": "78687 54 19\n", "test.csv": "1 2 3\n"}),
    ),
    "several labels a line": (
        "mmaction",
        lambda root: write(root, **{"train.txt": "1.mp4 0 3\n", "val.txt": "2.mp4 0\n"}),
    ),
    "the names of the columns a second time": (
        "csv",
        csv("1.mp4,0,train", "path,label,split", "2.mp4,0,test"),
    ),
}


def test_the_page_names_these_refusals():
    assert table("| found |").keys() == REFUSALS.keys()


@pytest.mark.parametrize("row", REFUSALS)
def test_a_refusal_says_what_the_page_says(tmp_path, row):
    kind, build = REFUSALS[row]
    build(tmp_path)
    with pytest.raises(DataError, match=re.escape(table("| found |")[row])):
        read_annotations(kind, tmp_path)


FRAMES = Encoding("libx264", "mp4", num_frames=50, gop_size=10, num_b_frames=2)
REFRESH = {"groups": "refresh", "num_b_frames": 0}
KINDS: dict[str, list[dict]] = {
    "H.264, HEVC, VP9 in mp4, mov, mkv, webm": [
        {},
        {"ending": "mov"},
        {"ending": "mkv"},
        {"codec": "libx265"},
        {"codec": "libvpx-vp9", "ending": "webm"},
    ],
    "the same, every frame a key frame": [{"gop_size": 1, "num_b_frames": 0}],
    "the same, open groups of pictures (x265's default)": [
        {"groups": "open"},
        {"groups": "open", "codec": "libx265"},
    ],
    "the same, intra refresh": [REFRESH, REFRESH | {"ending": "mkv"}],
    "the same, more than 8 bits a colour": [
        {"pixel_format": "yuv420p10le"},
        {"pixel_format": "yuv420p10le", "codec": "libx265", "ending": "mkv"},
    ],
    "the same, rotated by 90 or 270 degrees": [
        {"rotation_degrees": 90},
        {"rotation_degrees": 270},
    ],
    "the same, cut by `ffmpeg -ss ... -c copy`": [{"cut_at": 17, "num_b_frames": 0}],
    "VP8, AV1 in webm, mkv": [
        {"codec": "libvpx", "ending": "webm"},
        {"codec": "libvpx", "ending": "mkv"},
    ],
    "H.264 in an MPEG transport stream": [{"ending": "ts"}],
    "H.264, HEVC without times of presentation (AVI or raw streams copied to mp4), joined with "
    "overlapping times": [{"forgets_times": True}],
    "interlaced H.264": [{"is_interlaced": True, "num_b_frames": 0}],
    "MPEG-4 or H.264 in AVI, MPEG-2, WMV, FLV": [
        {"codec": "mpeg4", "ending": "avi"},
        {"ending": "avi"},
        {"codec": "mpeg2video", "ending": "mpg"},
        {"codec": "wmv2", "ending": "wmv"},
        {"codec": "flv", "ending": "flv"},
    ],
    "MJPEG, ProRes, FFV1": [
        {"codec": "mjpeg", "ending": "avi", "pixel_format": "yuvj420p"},
        {"codec": "prores_ks", "ending": "mov", "pixel_format": "yuv422p10le"},
        {"codec": "ffv1", "ending": "mkv", "gop_size": 1},
    ],
}


def test_the_page_names_these_kinds_of_files():
    assert table("| file | `gop` |").keys() == KINDS.keys()


@pytest.mark.parametrize(
    ("kind", "changes"), [(kind, changes) for kind, each in KINDS.items() for changes in each]
)
def test_files_are_read_by_whom_the_page_says(kind, changes, tmp_path):
    gop, decord, torchcodec, _ = table("| file | `gop` |")[kind].split(" | ")
    encoding = replace(FRAMES, **changes)
    info = probe(write_encoding(tmp_path / f"clip.{encoding.ending}", encoding))
    assert f"`{info.gop}`" == gop
    exact = {name: find_refusal(info, name) is None for name in ("decord", "torchcodec")}
    assert exact["decord"] == (decord == "exact")
    if torchcodec == "mov, mkv":
        assert exact["torchcodec"] == (encoding.ending in ("mov", "mkv"))
    else:
        assert exact["torchcodec"] == (torchcodec == "exact")
    assert find_refusal(info, "auto") is find_refusal(info, "pyav") is None
