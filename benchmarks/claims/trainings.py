"""A regime from nothing to its trainings, by the same commands that people type.

Enters: a regime. Leaves: its folder below `home` with outputs/ablation. Every command goes on where
it was interrupted, so the whole may be killed and started again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from dvc.utils.hydra import compose_and_dump

from benchmarks.claims.regimes import ROOT, Regime
from dsts_pipeline.base.progress import console


def run_regime(
    regime: Regime, home: Path, *, num_seeds: int, jobs: int, overrides: list[str]
) -> Path:
    """Render, pretrain where needed, extract, train every variant; the regime's folder.

    Args:
        home: Holds all regimes, and the data that they share.
        overrides: More settings, KEY=VALUE, as Hydra takes them.

    Raises:
        subprocess.CalledProcessError: A command failed; it has said why.
    """
    folder = home / regime.name
    folder.mkdir(parents=True, exist_ok=True)
    compose(regime, folder / "params.yaml", overrides)
    commands = [["prepare"], ["extract"]]
    if regime.weights is not None and not (home / "weights" / regime.weights).exists():
        commands.insert(0, ["pretrain"])
    commands.append(["ablate", "--jobs", str(jobs), "--seeds", str(num_seeds)])
    for command in commands:
        console.print(f"{regime.name}: {' '.join(command)}")
        subprocess.run([sys.executable, str(ROOT / "cli.py"), *command], cwd=folder, check=True)
    return folder


def compose(regime: Regime, path: Path, overrides: list[str]) -> None:
    """Write the regime's params.yaml."""
    chosen = [f"experiment={regime.experiment}"]
    chosen += [f"{key}={value}" for key, value in regime.settings.items()]
    configs = str(ROOT / "configs")
    compose_and_dump(str(path), configs, None, "config", configs, [*chosen, *overrides])
