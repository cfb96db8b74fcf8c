"""The stages of the default run, in its order."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage


def prepare(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Render or read the data set and write the checked clip index, outputs/clips.json.

    Example: python cli.py prepare --set dataset.render.num_train=240
    """
    run_stage("prepare", params, overrides, debug)


def extract(
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print size, free space and time; write nothing."),
    ] = False,
    engine: Annotated[
        str, typer.Option("--engine", help="processes, or ray for a Ray cluster.")
    ] = "processes",
    num_workers: Annotated[
        int | None,
        typer.Option("--num-workers", min=1, help="With ray: backbones at work, else as fit."),
    ] = None,
) -> None:
    """Cache the frozen backbone's feature map of every clip in a store under stores/.

    Goes on from the finished shards when it was interrupted; over a finished store it does
    nothing. Several of these commands may work on one store at once, also as
    `torchrun --nproc-per-node 8 cli.py extract`; see docs/extraction-on-clusters.md.

    Example: python cli.py extract --set backbone.num_decode_workers=2
    """
    if engine not in ("processes", "ray"):
        raise typer.BadParameter(
            f"found {engine}, expected processes or ray", param_hint="--engine"
        )
    if dry_run:
        run_stage("extract.dry_run", params, overrides, debug)
    else:
        options = {"engine": engine, "num_workers": num_workers}
        run_stage("extract", params, overrides, debug, **options)


def train_head(
    devices: Annotated[int, typer.Option(help="Processes; 0: as train.devices says.")] = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train the DSTS head and the two baselines on the cached maps, into outputs/heads/.

    Goes on from its checkpoints in outputs/checkpoints when it was stopped. SIGTERM saves and
    exits with train.requeue_status (99), on which a scheduler may start it again.

    Example: python cli.py train-head --set head.num_neurons=5 --set train.num_epochs=4
    """
    overrides = [*overrides, f"train.devices={devices}"] if devices else overrides
    run_stage("train_head", params, overrides, debug)


def evaluate(
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Score every trained head on the test split and print the table of results.

    Writes outputs/evaluation/metrics.json and the predictions of each head.

    Example: python cli.py evaluate --set evaluate.num_bootstrap=10000
    """
    run_stage("evaluate", params, overrides, debug)


def report(
    screenshots: Annotated[
        Path | None,
        typer.Option("--screenshots", metavar="FOLDER", help="Also take README's pictures."),
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Write outputs/report/report.html: figures, curves, confusion, routing, provenance.

    Beside it lie the plots as SVG and PNG, and the tables as Markdown and LaTeX. Pictures of the
    page are taken by an installed Chromium.

    Example: python cli.py report && xdg-open outputs/report/report.html
    """
    run_stage("report", params, overrides, debug, screenshots=screenshots)
