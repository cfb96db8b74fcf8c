"""Commands for those who train and test with mmaction2's own tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage


def export_annotations(
    out: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the lists go.")],
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Write the clip index as annotation lists of mmaction2's VideoDataset, a list per split.

    Example: python cli.py export-annotations outputs/mmaction2
    """
    run_stage("export.export_annotations", params, overrides, debug, out=out)


def convert_checkpoint(
    source: Annotated[Path, typer.Argument(help="A checkpoint, weights, or a head's folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A folder; or a file x.pth.")],
    weights: Annotated[
        Path | None, typer.Option("--weights", help="With a head's folder: its backbone's.")
    ] = None,
    store: Annotated[
        bool, typer.Option("--store", help="Make the head outputs/heads/dsts, for evaluate.")
    ] = False,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Turn mmaction2's checkpoint with a DSTS head into our weights and head, or the other way.

    Into a folder: OUT/backbone.safetensors and OUT/head of the checkpoint SOURCE. Into a file OUT
    that ends in .pth: a checkpoint of a head's folder (with --weights), or of weights alone.

    Example: python cli.py convert-checkpoint work_dirs/dsts/epoch_2.pth outputs/mmaction2
    """
    options = {"source": source, "out": out, "weights": weights, "store": store}
    run_stage("export.convert_checkpoint", params, overrides, debug, **options)
