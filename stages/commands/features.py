"""Commands that look after feature stores: check, list, bring in, take out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stages.commands.running import PARAMS_FILE, Debug, Overrides, Params, run_stage

if TYPE_CHECKING:
    from dsts_pipeline.base.settings import Settings


def verify(
    store: Annotated[str | None, typer.Argument(help="Folder, URL or HDF5 file.")] = None,
    fast: Annotated[bool, typer.Option("--fast", help="Presence and sizes only.")] = False,
    repair: Annotated[bool, typer.Option("--repair", help="Extract damaged shards again.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the whole result there.")
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Check a feature store: digests, checksums, values, statistics, drift between shards.

    STORE is the one that outputs/features.json names, unless given. The exit status is 0 if it is
    sound. Maps of zeros and drift are warnings.

    Example: python cli.py verify --json outputs/verify.json || python cli.py verify --repair
    """
    options = {"store": store, "fast": fast, "repair": repair, "strict": strict}
    outputs = {"json_file": json_file, "extract": _extract}
    run_stage("stores.verify", params, overrides, debug, **options, **outputs)


def _extract(settings: Settings, **options: Any) -> None:
    """The stage `extract`, for a repair; its imports take long and are often not needed."""
    from stages import extract

    extract.run(settings, **options)


def stores(
    prune: Annotated[bool, typer.Option("--prune", help="Remove what nothing refers to.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask before removing.")] = False,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """List the feature stores below store.root: size, state, and what refers to them now.

    Example: python cli.py stores --prune
    """
    run_stage("stores.show_stores", params, overrides, debug, prune=prune, yes=yes)


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to write.")],
    format: Annotated[
        str | None,
        typer.Option("--format", help="hdf5, bundle, onnx or program; without it, as OUT ends."),
    ] = None,
    store: Annotated[
        str | None, typer.Option("--store", help="hdf5: folder, URL or HDF5 file.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="hdf5: only this split.")] = None,
    head: Annotated[
        str | None, typer.Option("--head", help="Not hdf5: which of outputs/heads, else dsts.")
    ] = None,
    with_backbone: Annotated[
        bool | None,
        typer.Option(
            "--with-backbone/--without-backbone",
            help="bundle: copy the backbone's weights in; without it, files up to 16 MiB.",
        ),
    ] = None,
    whole: Annotated[
        bool | None,
        typer.Option("--whole", help="onnx, program: the backbone, too: frames to logits."),
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Take something out of a run: a store's maps, or the trained head with all it needs.

    hdf5 (OUT ends in .h5 or .hdf5) packs a feature store, or one split of it, into one file.
    bundle (OUT has no ending) makes the folder that `predict` and `demo-app` read: head, backbone,
    input and labels. See docs/predict.md.
    onnx (.onnx) and program (.pt2) make the head, with --whole also its backbone, a model for other
    runtimes, compared with PyTorch on clips of evaluate.split, and timed. See docs/export.md.

    Example: python cli.py export my_bundle && python cli.py export head.onnx
    """
    options = {"out": out, "format": format, "store": store, "split": split}
    parts = {"head": head, "with_backbone": with_backbone, "whole": whole}
    run_stage("export", params, overrides, debug, **options, **parts)


def import_features(
    source: Annotated[Path, typer.Argument(help="HDF5 file, or folder of .npy/.npz/.pt files.")],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="CSV", help="Columns: id (or path), label, split.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the data set.")] = None,
    layout: Annotated[
        str | None,
        typer.Option("--layout", help="CTHW, TCHW, THWC, TC, CT or C: order of the axes."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="Dataset of the maps (or array of an .npz).")
    ] = None,
    ids_dataset: Annotated[
        str | None, typer.Option("--ids-dataset", help="Dataset of the clips' ids.")
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Bring features that were made elsewhere into a store, for train-head and evaluate.

    Clips without a sound map are listed as failed; backbone.max_failed_fraction limits them.

    Example: python cli.py import-features features/ --labels labels.csv --name mine
    """
    options = {"source": source, "labels": labels, "name": name, "axes": layout}
    datasets = {"dataset": dataset, "ids_dataset": ids_dataset}
    run_stage("stores.import_features", params, overrides, debug, **options, **datasets)
