"""End to end, in the paper's order: a generic backbone, trained on the classes with each head.

What frozen maps can't show. Each head is trained on cached maps of the embedded backbone, which
never saw the classes of stick something, and then together with all of the backbone on the videos:
a linear classifier, an attentive probe, our head, and the paper's with one neuron, without UDL and
whole. One learning rate of two is chosen with the first seed by held-out clips, for each.

    python -m benchmarks.claims.end_to_end [--home runs/claims] [--seeds 3] [--set KEY=VALUE ...]

Enters: nothing. Leaves: docs/claims/end_to_end.json. It goes on where it was interrupted, on a GPU
where there is one: there it takes minutes.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.claims.regimes import ROOT, Regime
from benchmarks.claims.results import RESULTS
from benchmarks.claims.trainings import run_command, settle
from dsts_pipeline.base.files import read_json, write_json

REGIME = Regime("end_to_end", "Stick something, end to end", "claims_end_to_end", num_seeds=3)
FILE = "end_to_end.json"
RATES = (3e-4, 1e-3)
ALONE = {"head.num_layers": 0, "udl.enabled": False}
VARIANTS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "linear": ("linear classifier (baseline)", {**ALONE, "head.readout": "average"}),
    "attentive": ("attentive probe, with positions", ALONE),
    "full": ("DSTS, one neuron (default)", {}),
    "paper_1": ("paper's layers, N = 1", {"head": "dsts", "head.num_neurons": 1}),
    "paper_without_udl": ("paper's layers, N = 10, no UDL", {"head": "dsts", "udl.enabled": False}),
    "paper": ("paper's layers, N = 10, UDL", {"head": "dsts"}),
}
"""Name, title, what differs from the experiment; "head" is a file of configs/head."""


def train_one(home: Path, name: str, rate: float, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """Top-1 of one head on held-out and on test clips, cached and end to end."""
    folder = home / REGIME.name / f"{name}-{rate:g}-seed{seed}"
    metrics = folder / "outputs" / "finetuned" / "metrics.json"
    if not metrics.exists():
        own = {"finetune.learning_rate": rate, "seed": seed, "train.data_seed": 0}
        chosen = [f"{key}={value}" for key, value in {**VARIANTS[name][1], **own}.items()]
        settle(REGIME, folder, [*chosen, *more])
        for part in ("clips.json", "clip_check.json", "features.json"):
            (folder / "outputs").mkdir(exist_ok=True)
            shutil.copy(home / REGIME.name / "maps" / "outputs" / part, folder / "outputs")
        for command in ("train-head", "finetune"):
            run_command([command], folder)
    found = read_json(metrics)
    kinds = ("cached", "finetuned")
    return {
        "seed": seed,
        "learning_rate": rate,
        **{f"{kind}_heldout": found["heldout"][kind]["top1"] for kind in kinds},
        **{f"{kind}_test": found["test"][kind]["top1"] for kind in kinds},
        "seconds_per_epoch": found["seconds_per_epoch"],
    }


def run(home: Path, results: Path, num_seeds: int, more: Sequence[str]) -> Path:
    """All trainings; the result file, written after each head."""
    maps = home / REGIME.name / "maps"
    settle(REGIME, maps, list(more))
    for command in ("prepare", "extract"):
        run_command([command], maps)
    path = results / FILE
    content: dict[str, Any] = {"regime": REGIME.name, "rates": list(RATES), "variants": {}}
    for name, (title, _) in VARIANTS.items():
        tried = [train_one(home, name, rate, 0, more) for rate in RATES]
        best = max(tried, key=lambda one: one["finetuned_heldout"])
        rate = best["learning_rate"]
        others = [train_one(home, name, rate, seed, more) for seed in range(1, num_seeds)]
        content["variants"][name] = {"title": title, "tried": tried, "runs": [best, *others]}
        write_json(path, content)
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.claims.end_to_end", description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=REGIME.num_seeds)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    chosen = parser.parse_args()
    print(run(chosen.home.resolve(), chosen.results, chosen.seeds, chosen.overrides))


if __name__ == "__main__":
    main()
