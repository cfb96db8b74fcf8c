"""Commands that answer for videos with a trained head."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage

Bundle = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="DIR", help="An exported bundle; else this run's head."),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="The backbone's weights, where the bundle holds none."),
]


def predict(
    videos: Annotated[
        list[Path], typer.Argument(metavar="VIDEO_OR_FOLDER...", help="Files, or folders of them.")
    ],
    bundle: Bundle = None,
    weights: Weights = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write a line of JSON per video.")
    ] = None,
    annotate: Annotated[
        Path | None,
        typer.Option("--annotate", metavar="DIR", help="Write copies with the answer drawn below."),
    ] = None,
    gif: Annotated[bool, typer.Option("--gif", help="Annotated copies as GIF, not mp4.")] = False,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Say what videos show: top-5, the neurons that were chosen, their gates, time by part.

    Input, views and decoder are those that the head's features were made with. Broken files are
    listed with their reason, the others answered: exit status 0 if all were, 1 if not, 2 for wrong
    use.

    Example: python cli.py predict clip.mp4 more_clips/ --bundle my_bundle --json answers.jsonl
    """
    options = {"videos": videos, "bundle": bundle, "weights": weights}
    outputs = {"json_file": json_file, "annotate": annotate, "gif": gif}
    run_stage("predict", params, overrides, debug, **options, **outputs)
