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

from benchmarks.claims.regimes import END_TO_END, ROOT
from benchmarks.claims.results import RESULTS, as_bits, result_file
from benchmarks.claims.trainings import run_command, settle
from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.metrics import Predictions, align

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
KINDS = ("cached", "finetuned")


def train_one(home: Path, name: str, rate: float, seed: int, more: Sequence[str]) -> dict[str, Any]:
    """Top-1 of one head on held-out and on test clips, cached and end to end."""
    folder = home / END_TO_END.name / f"{name}-{rate:g}-seed{seed}"
    metrics = folder / "outputs" / "finetuned" / "metrics.json"
    if not metrics.exists():
        own = {"finetune.learning_rate": rate, "seed": seed, "train.data_seed": 0}
        chosen = [f"{key}={value}" for key, value in {**VARIANTS[name][1], **own}.items()]
        settle(END_TO_END, folder, [*chosen, *more])
        for part in ("clips.json", "clip_check.json", "features.json"):
            (folder / "outputs").mkdir(exist_ok=True)
            shutil.copy(home / END_TO_END.name / "maps" / "outputs" / part, folder / "outputs")
        for command in ("train-head", "finetune"):
            run_command([command], folder)
    found = read_json(metrics)
    answers = [Predictions.load(metrics.parent / "predictions" / f"test_{k}.npz") for k in KINDS]
    cached, finetuned = (align(answers[0], one).hits() for one in answers)
    return {
        "seed": seed,
        "learning_rate": rate,
        **{f"{kind}_heldout": found["heldout"][kind]["top1"] for kind in KINDS},
        "num_clips": len(cached),
        "seconds_per_epoch": found["seconds_per_epoch"],
        "cached_right": as_bits(cached),
        "right": as_bits(finetuned),
    }


def run(home: Path, results: Path, num_seeds: int, more: Sequence[str]) -> Path:
    """All trainings; the result file, written after each head."""
    maps = home / END_TO_END.name / "maps"
    settle(END_TO_END, maps, list(more))
    for command in ("prepare", "extract"):
        run_command([command], maps)
    path = result_file(END_TO_END, results)
    content: dict[str, Any] = {"regime": END_TO_END.name, "rates": list(RATES), "variants": {}}
    for position, (name, (title, _)) in enumerate(VARIANTS.items()):
        tried = [train_one(home, name, rate, 0, more) for rate in RATES]
        best = max(tried, key=lambda one: one["finetuned_heldout"])
        rate = best["learning_rate"]
        others = [train_one(home, name, rate, seed, more) for seed in range(1, num_seeds)]
        runs = [best, *others]
        content["num_clips"] = best["num_clips"]
        content["variants"][name] = {"title": title, "position": position, "tried": tried}
        content["variants"][name]["runs"] = runs
        write_json(path, content)
    return path


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser("python -m benchmarks.claims.end_to_end", description=__doc__)
    parser.add_argument("--home", type=Path, default=ROOT / "runs" / "claims")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=END_TO_END.num_seeds)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="overrides")
    chosen = parser.parse_args()
    print(run(chosen.home.resolve(), chosen.results, chosen.seeds, chosen.overrides))


if __name__ == "__main__":
    main()
