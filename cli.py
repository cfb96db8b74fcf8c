"""The command line: one thin command per stage; dvc.yaml runs these same commands.

Heavy imports happen inside the commands, so that `--help` answers at once.
Exit status: 0 done, 2 a problem that the message explains, 99 saved on SIGTERM, 130 interrupted.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dsts_pipeline.base.errors import UserError

app = typer.Typer(
    help="Fine-grained action recognition with Dynamic Spatio-Temporal Specialization.\n\n"
    "The stages, in order: prepare, extract, train-head, evaluate, report. `dvc repro` runs those "
    "of them whose inputs or settings changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Params = Annotated[Path, typer.Option("--params", metavar="FILE", help="Settings file (YAML).")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace one setting for this call; repeatable."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PARAMS_FILE = Path("params.yaml")


@app.command()
def doctor(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Look whether this machine can run the settings: one line per check, ok or what to do.

    Versions, decoder, devices, data, weights, free space, and the time of the extraction as
    measured on four clips. The exit status is 0 if all is well, else 1.

    Example: python cli.py doctor --set dataset.root=/data/diving48
    """
    _run_stage("doctor", params, overrides, debug)


@app.command()
def prepare(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Render or read the data set and write the checked clip index, outputs/clips.json.

    Example: python cli.py prepare --set dataset.render.num_train=240
    """
    _run_stage("prepare", params, overrides, debug)


@app.command()
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
        _run_stage("extract_dry_run", params, overrides, debug)
    else:
        options = {"engine": engine, "num_workers": num_workers}
        _run_stage("extract", params, overrides, debug, **options)


@app.command("train-head")
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
    _run_stage("train_head", params, overrides, debug)


@app.command()
def evaluate(
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Score every trained head on the test split and print the table of results.

    Writes outputs/evaluation/metrics.json and the predictions of each head.

    Example: python cli.py evaluate --set evaluate.num_bootstrap=10000
    """
    _run_stage("evaluate", params, overrides, debug)


@app.command()
def report(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Write outputs/report/report.html: figures, curves, confusion, routing, provenance.

    Example: python cli.py report && xdg-open outputs/report/report.html
    """
    _run_stage("report", params, overrides, debug)


@app.command()
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
    _run_stage("pretrain", params, overrides, debug)


@app.command()
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
    _run_stage("verify", params, overrides, debug, **options, json_file=json_file)


@app.command()
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
    _run_stage("stores", params, overrides, debug, prune=prune, yes=yes)


@app.command()
def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write, such as maps.h5.")],
    store: Annotated[str | None, typer.Option("--store", help="Folder, URL or HDF5 file.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.")] = None,
    format: Annotated[str, typer.Option("--format", help="hdf5 is the one there is.")] = "hdf5",
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Pack a feature store, or one split of it, into one HDF5 file.

    Example: python cli.py export train.h5 --split train
    """
    options = {"out": out, "store": store, "split": split, "format": format}
    _run_stage("export", params, overrides, debug, **options)


@app.command("import-features")
def import_features(
    source: Annotated[Path, typer.Argument(help="HDF5 file, or folder of .npy/.npz/.pt files.")],
    labels: Annotated[
        Path, typer.Option("--labels", metavar="CSV", help="Columns: id (or path), label, split.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="Name of the data set.")] = None,
    layout: Annotated[
        str | None, typer.Option("--layout", help="CTHW, TCHW, THWC, TC or C: order of the axes.")
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
    _run_stage("import_features", params, overrides, debug, **options, **datasets)


@app.command()
def results(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print the table of the last evaluation and where the report is; computes nothing.

    Example: python cli.py results
    """
    _run_stage("results", params, overrides, debug)


@app.command()
def show(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print all settings as YAML, defaults and --set included: a file for --params.

    Example: python cli.py show --set head.num_neurons=5 > five.yaml
    """
    _run_stage("show", params, overrides, debug)


def _run_stage(
    stage: str, params: Path, overrides: list[str], debug: bool, /, **options: Any
) -> None:
    """Load the settings and run `stages/<stage>.py` with them (and the command's own options)."""
    with _told_plainly(debug):
        from dsts_pipeline.base.settings import load_settings

        settings: Any = load_settings(params, overrides)
        import_module(f"stages.{stage}").run(settings, **options)


@contextmanager
def _told_plainly(debug: bool) -> Iterator[None]:
    """Turn problems that a user can act on into one or two lines and an exit status."""
    # Threads wait for each other by spinning; if for long, they keep a busy machine's cores from
    # the one that they wait for, if not at all, an idle machine sleeps. Read as torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("interrupted; the same command goes on from what is finished", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        if debug or error.errno not in (errno.ENOSPC, errno.EACCES, errno.EROFS):
            raise
        typer.echo(f"error: {error.filename or 'disk'}: {error.strerror}", err=True)
        raise typer.Exit(UserError.exit_status) from None


if __name__ == "__main__":
    app()
