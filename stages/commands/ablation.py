"""Comparing many variants of a head."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stages.commands.running import (
    PARAMS_FILE,
    Debug,
    Overrides,
    Params,
    run_stage,
    told_plainly,
)


def ablate(
    experiment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Settings of configs/experiment/NAME.yaml first."),
    ] = None,
    grid: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,VALUE", help="Every combination is a variant; repeatable."),
    ] = [],
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each variant.")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the trainings.")
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train many variants in one pass over the cached maps and compare them, seed by seed.

    Each result is the one that training the variant alone gives. Finished trainings are kept in
    outputs/ablation/runs and never repeated: variants, values and seeds may be added later; a
    stopped command goes on. Writes outputs/ablation/results.json and results.csv.

    Example: python cli.py ablate --experiment paper_tables --jobs 2
    """
    with told_plainly(debug):
        from dsts_pipeline.base.params import overrides_of

        first = overrides_of(experiment) if experiment else []
    options = {"num_seeds": seeds, "jobs": jobs, "grid": json.dumps(grid) if grid else None}
    last = [f"ablate.{name}={value}" for name, value in options.items() if value is not None]
    run_stage("ablate", params, [*first, *overrides, *last], debug)
