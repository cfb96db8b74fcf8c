"""A regime from nothing to its trainings, by the same commands that people type.

Enters: a regime. Leaves: its folder below `home` with outputs/ablation. Every command goes on where
it was interrupted, so the whole may be killed and started again.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dvc.utils.hydra import compose_and_dump

from benchmarks.claims.real import lay_out_thetis, lay_out_ut_interaction, require_source
from benchmarks.claims.regimes import BY_NAME, ROOT, Regime
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.base.progress import console


def run_regime(
    regime: Regime,
    home: Path,
    *,
    num_seeds: int,
    jobs: int,
    overrides: list[str],
    leave_out: Sequence[str] = (),
    real: Path | None = None,
) -> Path:
    """Render, pretrain where needed, extract, train every variant; the regime's folder.

    Args:
        home: Holds all regimes, and the data that they share.
        overrides: More settings, KEY=VALUE, as Hydra takes them.
        leave_out: Variants that are not wanted, beside those that the experiment leaves out.
        real: Folder of the real data sets, for the regimes that are of one.

    Raises:
        DataError: The regime's real data set is not there.
        subprocess.CalledProcessError: A command failed; it has said why.
    """
    if regime.maker is not None and not (home / "weights" / str(regime.weights)).exists():
        maker = BY_NAME[regime.maker]
        run_command(["pretrain"], settle(maker, home / maker.name, overrides))
    folder = settle(regime, home / regime.name, overrides)
    if regime.real is None:
        run_command(["prepare"], folder)
        run_command(["extract"], folder)
    else:
        _take_in(regime, require_source(regime.real, real), folder)
    known = load_settings(folder / "params.yaml").ablate.leave_out
    wanted = f"ablate.leave_out=[{','.join([*known, *leave_out])}]"
    how = [] if regime.real is None else ["--folds"]
    how += ["--jobs", str(jobs), "--seeds", str(num_seeds), "--set", wanted]
    run_command(["ablate", *how], folder)
    return folder


def _take_in(regime: Regime, source: Path, folder: Path) -> None:
    """A real data set into a store."""
    if regime.has_videos:
        lay_out_ut_interaction(source, folder / "data")
        run_command(["prepare"], folder)
        run_command(["extract"], folder)
        return
    lay_out_thetis(source, folder / "data")
    labels = ["--labels", "data/labels.csv", "--name", regime.name]
    run_command(["import-features", "data/features.h5", *labels], folder)


def settle(regime: Regime, folder: Path, overrides: Sequence[str]) -> Path:
    """`folder` with the regime's params.yaml."""
    folder.mkdir(parents=True, exist_ok=True)
    chosen = [f"experiment={regime.experiment}"]
    chosen += [f"{key}={value}" for key, value in regime.settings.items()]
    configs, params = str(ROOT / "configs"), str(folder / "params.yaml")
    compose_and_dump(params, configs, None, "config", configs, [*chosen, *overrides])
    return folder


def run_command(command: list[str], folder: Path) -> None:
    """Run `python cli.py COMMAND` in `folder`.

    Raises:
        subprocess.CalledProcessError: It failed, and has said why.
    """
    console.print(f"{folder.name}: {' '.join(command)}")
    subprocess.run([sys.executable, str(ROOT / "cli.py"), *command], cwd=folder, check=True)
