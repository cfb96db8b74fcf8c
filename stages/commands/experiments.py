"""Commands that train many heads on one cache."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage


def search(
    space: Annotated[
        list[str],
        typer.Option(
            "--space",
            metavar="KEY=RANGE",
            help="low:high, low:high:log or a,b,c; repeatable; replaces search.space.",
        ),
    ] = [],
    num_trials: Annotated[
        int | None, typer.Option("--num-trials", min=1, help="In all, with those of earlier calls.")
    ] = None,
    timeout_seconds: Annotated[
        float | None, typer.Option("--timeout-seconds", help="Begin no trial after so long.")
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Search settings of head, udl and train by clips held out of train; test is never read.

    Goes on where it was stopped. Bad trials end early. Leaves outputs/search/best_params.yaml, a
    file for --params, and trials.json. See docs/ablations.md.

    Example: python cli.py search --space train.learning_rate=1e-4:1e-2:log --space head.width=16,32
    """
    given = {"num_trials": num_trials, "timeout_seconds": timeout_seconds}
    values = [f"search.{name}={value}" for name, value in given.items() if value is not None]
    values += [f"search.space={json.dumps(space)}"] if space else []
    run_stage("search", params, [*overrides, *values], debug)
