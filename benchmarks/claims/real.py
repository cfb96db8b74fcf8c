"""Two small real data sets whose clips come in groups, read from a folder that a person has.

They carry no licence, so nothing of them is part of the project: `--real FOLDER` names where
`thetis/` and `ut_interaction/` lie, and without it their regimes say where to get them.

Enters: that folder. Leaves: what the commands of the pipeline take: THETIS's features as an HDF5
file and a table of labels with players, UT-Interaction's clips as annotations.csv with sequences.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from benchmarks.claims.regimes import Regime
from benchmarks.claims.verdicts import markdown
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import csv_text, read_json, read_signed, write_atomic, write_json

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


# ---- results: figures over folds, no clip of the data --------------------------------------------

KEPT = ("title", "position", "num_parameters", "top1", "by_clip", "versus_reference")


def collect_folds(name: str, folder: Path, results: Path) -> Path:
    """Keep what the cross-validation of `folder` says as `<name>.json` in `results`."""
    found = read_signed(folder / "outputs" / "ablation" / "results.json")
    variants = {
        variant_name: {key: variant.get(key) for key in KEPT} | {"chosen": chosen_of(variant)}
        for variant_name, variant in found["variants"].items()
    }
    content = {
        "regime": name,
        "reference": found["reference"],
        "store": found["store"],
        "num_clips": found["num_clips"],
        "folds": found["folds"],
        "seeds": found["seeds"],
        "search": found["provenance"]["settings"]["ablate"]["search"],
        "commit": found["provenance"]["commit"],
        "variants": variants,
    }
    path = results / f"{name}.json"
    write_json(path, content)
    return path


def chosen_of(variant: dict[str, Any]) -> list[dict[str, Any]]:
    """What the search chose in each fold of each seed."""
    return [fold.get("chosen", {}) for run in variant["runs"] for fold in run.get("folds", [])]


# ---- a section of the page -----------------------------------------------------------------------


@dataclass(frozen=True)
class Section:
    """What the page says of a cross-validation."""

    title: str
    about: str
    table: str
    told: str


def of_folds(regime: Regime, results: Path) -> Section:
    """The section of a regime of `REAL`, of its result file alone."""
    found = read_json(results / f"{regime.name}.json")
    folds = found["folds"]
    searched = ", ".join(f"`{key}`" for key in found["search"])
    about = (
        f"{found['num_clips']:,} clips of {folds['num_groups']} groups in {folds['num_folds']} "
        f"folds of whole groups, {len(found['seeds'])} seed; per fold every head tries {searched}, "
        "and clips of held-out groups choose the epoch and among these. Every clip is answered by "
        "a head that saw none of its group. Intervals: Student's t over folds; a bootstrap of "
        f"whole groups. `python -m benchmarks.claims run --regimes {regime.name} --real FOLDER` "
        "repeats it, once the data are there: they may not be passed on."
    )
    reference = found["variants"][found["reference"]]["title"]
    heads = ["head", "parameters", "top-1", "over folds", "over groups"]
    rows = [[*heads, f"minus {reference}", "over folds", "over groups"]]
    for variant in sorted(found["variants"].values(), key=lambda one: one["position"]):
        top1 = variant["top1"]
        cells = [variant["title"], f"{variant['num_parameters']:,}", f"{100 * top1['mean']:.1f}"]
        cells += [_between(top1, ""), _between(variant["by_clip"], "")]
        versus = variant["versus_reference"]
        if versus is not None:
            cells += [f"{100 * versus['difference']:+.1f}", _between(versus, "+")]
            cells.append(_between(versus["by_clip"], "+"))
        rows.append(cells + [""] * (8 - len(cells)))
    told = _told_verdicts(found["variants"], reference) + " " + _told_choices(found["variants"])
    return Section(regime.title, about, markdown(rows), told)


def _between(interval: Mapping[str, Any], sign: str) -> str:
    low, high = (100 * interval[end] for end in ("low", "high"))
    return f"{low:{sign}.1f} to {high:{sign}.1f}"


def _told_verdicts(variants: Mapping[str, Any], reference: str) -> str:
    """Which heads both intervals put ahead of the reference, or behind it."""
    told: dict[str, list[str]] = {"Ahead of": [], "Behind": []}
    for variant in sorted(variants.values(), key=lambda one: one["position"]):
        versus = variant["versus_reference"]
        if versus is None:
            continue
        points = f"{variant['title']} ({100 * versus['difference']:+.1f})"
        if min(versus["low"], versus["by_clip"]["low"]) > 0:
            told["Ahead of"].append(points)
        if max(versus["high"], versus["by_clip"]["high"]) < 0:
            told["Behind"].append(points)
    return " ".join(
        f"{side} the {reference} by both intervals: {'; '.join(names) or 'none'}."
        for side, names in told.items()
    )


def _told_choices(variants: Mapping[str, Any]) -> str:
    """How often each value was chosen, by head."""
    told = []
    for variant in sorted(variants.values(), key=lambda one: one["position"]):
        counts: dict[str, Counter] = {}
        for choice in variant["chosen"]:
            for key, value in choice.items():
                counts.setdefault(key.rsplit(".", 1)[-1], Counter())[value] += 1
        parts = [
            f"{key} " + ", ".join(f"{value:g} ({number})" for value, number in sorted(of.items()))
            for key, of in counts.items()
        ]
        told.append(f"{variant['title']}: {'; '.join(parts)}")
    return "Chosen in how many folds: " + ". ".join(told) + "."
