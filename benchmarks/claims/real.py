"""Two small real data sets whose clips come in groups, read from a folder that a person has.

They carry no licence, so nothing of them is part of the project: `--real FOLDER` names where
`thetis/` and `ut_interaction/` lie, and without it their regimes say where to get them.

Enters: that folder. Leaves: what the commands of the pipeline take: THETIS's features as an HDF5
file and a table of labels with players, UT-Interaction's clips as annotations.csv with sequences.
"""

from __future__ import annotations

import csv
from pathlib import Path

import h5py
import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import csv_text, write_atomic

SOURCES = {
    "thetis": (
        "THETIS (Gourgari et al., CVPR Workshops 2013; github.com/THETIS-dataset): 1,980 clips of "
        "12 tennis strokes by 55 players. Features of 16 frames by Inception-v3 are in "
        "github.com/sujaygarlanka/tennis-stroke-recognition; as thetis/thetis_u8.npz: q uint8 "
        "[1980, 16, 2048], scale float32 [2048] to multiply it with, stroke 0 to 11, player 1 to 55"
    ),
    "ut_interaction": (
        "UT-Interaction (Ryoo and Aggarwal, ICPR 2010 contest on Semantic Description of Human "
        "Activities): the 120 segmented clips of sets 1 and 2, with ut_interaction/labels.csv: "
        "path, name of the class, sequence 1 to 20"
    ),
}


def require_source(name: str, real: Path | None) -> Path:
    """The data set's folder below `real`.

    Raises:
        DataError: It is not there; the message says where a person gets it.
    """
    if real is None or not (real / name).is_dir():
        where = "no --real FOLDER was given" if real is None else f"{real / name}: no such folder"
        raise DataError(f"{where}; {name} is to be fetched by hand: {SOURCES[name]}")
    return real / name


def lay_out_thetis(source: Path, folder: Path) -> None:
    """Write features.h5 and labels.csv into `folder`; players 45 to 55 are the split test."""
    if (folder / "labels.csv").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    with np.load(source / "thetis_u8.npz") as stored:
        maps = stored["q"] * stored["scale"].astype(np.float32)  # [n, T, C]
        strokes = stored["stroke"]
        players = stored["player"]
    ids = [f"clip{number:04d}" for number in range(len(maps))]
    with h5py.File(folder / "features.h5", "w") as file:
        file["features"] = maps.swapaxes(1, 2)[..., None, None]  # [n, C, T, H, W]
        file["ids"] = ids
    rows = [
        [clip, f"stroke{stroke:02d}", "test" if player > 44 else "train", f"player{player:02d}"]
        for clip, stroke, player in zip(ids, strokes.tolist(), players.tolist(), strict=True)
    ]
    content = csv_text(["id", "label", "split", "group"], rows)
    write_atomic(folder / "labels.csv", content.encode())


def lay_out_ut_interaction(source: Path, folder: Path) -> None:
    """Write annotations.csv into `folder`, its videos linked from `source`; sequences 17 to 20 are
    the split test."""
    folder.mkdir(parents=True, exist_ok=True)
    with (source / "labels.csv").open(newline="") as file:
        clips = list(csv.DictReader(file))
    for part in sorted({Path(clip["path"]).parts[0] for clip in clips}):
        if not (folder / part).exists():
            (folder / part).symlink_to((source / part).resolve(), target_is_directory=True)
    rows = []
    for clip in clips:
        sequence = int(clip["sequence"])
        split = "test" if sequence > 16 else "train"
        rows.append([clip["path"], clip["name"], split, f"sequence{sequence:02d}"])
    content = csv_text(["path", "label", "split", "group"], rows)
    write_atomic(folder / "annotations.csv", content.encode())
