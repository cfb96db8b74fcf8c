"""Commands around a run: the machine, the settings, the last results, the embedded backbone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage


def doctor(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Look whether this machine can run the settings: one line per check, ok or what to do.

    Versions, decoder, devices, data, weights, free space, and the time of the extraction as
    measured on four clips. The exit status is 0 if all is well, else 1.

    Example: python cli.py doctor --set dataset.root=/data/diving48
    """
    run_stage("doctor", params, overrides, debug)


def results(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print the table of the last evaluation and where the report is; computes nothing.

    Example: python cli.py results
    """
    run_stage("report.show_results", params, overrides, debug)


def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Outputs folders or git revisions.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path(
        "outputs/compare/compare.html"
    ),
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Write one page about several evaluated runs: figures, paired differences, curves, routing.

    A RUN is an outputs folder, a folder that holds one, or a git revision whose results DVC's
    cache has. Differences are to the first one, clip by clip: all must be evaluated on the same
    clips.

    Example: python cli.py compare outputs runs/small/outputs HEAD~1
    """
    run_stage("report.compare", params, overrides, debug, runs=runs, out=out)


def show(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print all settings as YAML, defaults and --set included: a file for --params.

    Example: python cli.py show --set head.num_neurons=5 > five.yaml
    """
    run_stage("doctor.show", params, overrides, debug)


def pretrain(
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train the embedded backbone on freshly rendered clips (a quarter of an hour on 2 cores).

    The trained weights are in the repository: only a change of the renderer or of the backbone
    calls for this. The model card lies beside the weights.

    Example: python cli.py pretrain
    """
    run_stage("pretrain", params, overrides, debug)
