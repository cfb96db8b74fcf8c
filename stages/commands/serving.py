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


def demo_app(
    bundle: Bundle = None,
    weights: Weights = None,
    host: Annotated[
        str, typer.Option("--host", help="Where to listen; other machines get in by 0.0.0.0.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes a free one.")
    ] = 8765,
    max_upload_mib: Annotated[
        float, typer.Option("--max-upload-mib", min=0.01, help="Largest file that is taken.")
    ] = 64.0,
    timeout_seconds: Annotated[
        float, typer.Option("--timeout-seconds", min=0.1, help="For decoding one video.")
    ] = 30.0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Open a page on this machine: drop a video, see the answer, its route, its neighbours.

    Needs the extra `app`: pip install -c constraints.txt -e ".[app]". Only this machine can reach
    the page unless --host says otherwise; see docs/predict.md.

    Example: python cli.py demo-app --bundle my_bundle
    """
    options = {"bundle": bundle, "weights": weights, "host": host, "port": port}
    limits = {"max_upload_mib": max_upload_mib, "timeout_seconds": timeout_seconds}
    run_stage("predict.demo_app", params, overrides, debug, **options, **limits)
