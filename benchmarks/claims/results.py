"""The result file of a regime: a row per variant and seed, with which clips it got right.

Enters: outputs/ablation of a regime's folder. Leaves: docs/claims/<regime>.json; of a
cross-validation also which fold and which group each clip is of, and nothing else of real data.
Seeds that were trained on another day are kept beside the new ones if everything else is the same:
maps, settings of the variant, number of clips. Which clips were right is kept as bits, so that
every interval can be computed again from the file alone.
"""

from __future__ import annotations

import base64
import json
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
    }
    if "folds" in found:
        common["clips"] = _folds_and_groups(found, folder)
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
    chosen = [part["chosen"] for part in parts if "chosen" in part]
    if chosen:
        row["chosen"] = chosen
    if describe is not None:
        row["routes"] = describe(paths[0].parent)
    row |= {"commit": made_by["commit"], "torch": made_by.get("versions", {}).get("torch")}
    return row | {"right": as_bits(hits)}


def as_bits(hits: np.ndarray) -> str:
    """bool `[n]` as `right_clips` reads it."""
    return base64.b64encode(np.packbits(hits).tobytes()).decode()


def _folds_and_groups(found: dict[str, Any], folder: Path) -> dict[str, list[int]]:
    """The fold and the group of each clip, in the order of a run's answers: fold after fold."""
    outputs = folder / "outputs"
    store = open_store(folder / read_json(outputs / "features.json")["store"])
    if store.group_numbers is None:
        raise DataError(f"{store.location}: its clips have no groups")
    group_of = dict(zip(store.video_ids, store.group_numbers.tolist(), strict=True))
    run = next(run for variant in found["variants"].values() for run in variant["runs"])
    clips: dict[str, list[int]] = {"folds": [], "groups": []}
    for part in run["folds"]:
        ids = Predictions.load(outputs / "ablation" / part["predictions"]).clip_ids
        clips["folds"] += [part["fold"]] * len(ids)
        clips["groups"] += [group_of[clip] for clip in ids]
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
    before = {"search_seeds": common["search_seeds"]} | before  # older files don't say
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
