"""The result file of a regime: a row per variant and seed, with which clips it got right.

Enters: outputs/ablation of a regime's folder. Leaves: docs/claims/<regime>.json; of clips in groups
also which group each is of, of a cross-validation which fold, and nothing else of real data.
Seeds that were trained on another day are kept beside the new ones if everything else is the same:
maps, settings of the variant, number of clips. Which clips were right is kept as bits, so that
every interval can be computed again from the file alone.
"""

from __future__ import annotations

import base64
import json
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from benchmarks.claims.regimes import ROOT, Regime
from benchmarks.claims.routes import Describe
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, read_signed, write_json
from dsts_pipeline.base.settings import HeadSettings, TrainSettings, UdlSettings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.metrics.predictions import Predictions

RESULTS = ROOT / "docs" / "claims"
SECTIONS: dict[str, type[BaseModel]] = {
    "head": HeadSettings,
    "udl": UdlSettings,
    "train": TrainSettings,
}
KEPT = ("seed", "heldout_accuracy", "class_wise", "epochs", "best_epoch", "train_seconds", "layers")


def result_file(regime: Regime, folder: Path = RESULTS) -> Path:
    """Where the regime's results are."""
    return folder / f"{regime.name}.json"


def collect(
    regime: Regime, folder: Path, results: Path = RESULTS, describe: Describe | None = None
) -> Path:
    """Take the trainings of `folder` into the regime's result file.

    Args:
        describe: Gives what a run's neurons serve, from the run's folder.

    Raises:
        DataError: The file there is of other maps or settings; it is left as it is.
    """
    found = read_signed(folder / "outputs" / "ablation" / "results.json")
    made_by = found["provenance"]
    common: dict[str, Any] = {
        "regime": regime.name,
        "store": found["store"],
        "split": found["split"],
        "num_clips": found["num_clips"],
        "settings": _with_defaults(made_by["settings"]),
        "search_seeds": made_by["settings"].get("ablate", {}).get("search_seeds"),
        "search": made_by["settings"].get("ablate", {}).get("search"),
    }
    if clips := _folds_and_groups(found, folder):
        common["clips"] = clips
    variants = {
        name: {
            "title": variant["title"],
            "table": variant["table"],
            "position": variant["position"],
            "settings": variant["settings"],
            "num_parameters": variant["num_parameters"],
            "runs": [_row(run, folder, made_by, describe) for run in variant["runs"]],
        }
        for name, variant in found["variants"].items()
    }
    path = result_file(regime, results)
    if path.exists():
        variants = _merge(read_json(path), common, variants, path)
    listed = made_by["settings"].get("ablate", {}).get("variants", [])
    for position, one in enumerate(listed):  # of all, not of those that were trained together
        if one["name"] in variants:
            variants[one["name"]]["position"] = position
    write_json(path, {**common, "variants": variants})
    return path


def right_clips(run: dict[str, Any], num_clips: int) -> np.ndarray:
    """Which clips a run got right, bool `[num_clips]`."""
    bits = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
    return np.unpackbits(bits, count=num_clips).astype(bool)


def _row(
    run: dict[str, Any], folder: Path, made_by: dict[str, Any], describe: Describe | None
) -> dict[str, Any]:
    parts = run.get("folds", [run])
    paths = [folder / "outputs" / "ablation" / part["predictions"] for part in parts]
    hits = np.concatenate([Predictions.load(path).hits() for path in paths])
    row = {key: run[key] for key in KEPT}
    for key in ("chosen", "tried"):
        if told := [part[key] for part in parts if key in part]:
            row[key] = told
    if describe is not None:
        row["routes"] = describe(paths[0].parent)
    row |= {"commit": _commit(), "torch": made_by.get("versions", {}).get("torch")}
    return row | {"right": as_bits(hits)}


def as_bits(hits: np.ndarray) -> str:
    """bool `[n]` as `right_clips` reads it."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


@cache
def _commit() -> str:
    """The checkout's, from which this runs; the folders of regimes are in none."""
    git = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(git, check=True, capture_output=True, text=True).stdout.strip()


def _folds_and_groups(found: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """The group of each clip, and its fold in a cross-validation, in the order of a run's answers:
    fold after fold. Empty where clips have no groups."""
    outputs = folder / "outputs"
    store = open_store(folder / read_json(outputs / "features.json")["store"])
    if store.group_numbers is None:
        return {}
    group_of = dict(zip(store.video_ids, store.group_numbers.tolist(), strict=True))
    run = next(run for variant in found["variants"].values() for run in variant["runs"])
    clips: dict[str, list[int]] = {"groups": []}
    for part in run.get("folds", [run]):
        ids = Predictions.load(outputs / "ablation" / part["predictions"]).clip_ids
        clips["groups"] += [group_of[clip] for clip in ids]
        if "fold" in part:
            clips.setdefault("folds", []).extend([part["fold"]] * len(ids))
    return clips


def _with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """Sections that decide a training; options that came later have their defaults, which leave
    everything as it was."""
    return {
        name: section.model_validate_json(json.dumps(settings.get(name, {}))).model_dump(
            mode="json"
        )
        for name, section in SECTIONS.items()
    }


def _merge(
    before: dict[str, Any], common: dict[str, Any], variants: dict[str, Any], path: Path
) -> dict[str, Any]:
    before |= {"settings": _with_defaults(before.get("settings", {}))}
    other = sorted(key for key, value in common.items() if before.get(key) != value)
    if other:
        raise DataError(
            f"{path} is of other {', '.join(other)}; delete it to begin anew, or run what it is of"
        )
    merged = dict(before["variants"])
    for name, variant in variants.items():
        known = merged.get(name)
        if known is not None and known["settings"] != variant["settings"]:
            raise DataError(f"{path}: variant {name} had other settings; delete the file first")
        seeds = {run["seed"]: run for run in ([] if known is None else known["runs"])}
        seeds |= {run["seed"]: run for run in variant["runs"]}
        merged[name] = variant | {"runs": [seeds[seed] for seed in sorted(seeds)]}
    return merged
