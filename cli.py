"""The command line: every command with its options, in the order of --help; dvc.yaml runs these.

Enters: a command's options and the settings. Leaves: the command's function in stages/ has run, or
an error of one or two lines and an exit status: 0 done, 1 done but for what the message names, 2 a
problem that the message explains, 99 saved on SIGTERM, 130 interrupted.

What takes long to import, stages/ first of all, is imported when a command runs, so that --help
answers at once.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dsts_pipeline.base.errors import MissingExtraError, UserError, explain_missing

app = typer.Typer(
    help="Fine-grained action recognition with Dynamic Spatio-Temporal Specialization.\n\n"
    "The stages, in order: prepare, weights, extract, train-head, evaluate, report. `dvc repro` "
    "runs those of them whose inputs or settings changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    # The other modes keep a docstring's line breaks, or take `[app]` for markup.
    rich_markup_mode="markdown",
)

# ---- options that several commands have --------------------------------------------------------

PARAMS_FILE = Path("params.yaml")
Params = Annotated[Path, typer.Option("--params", metavar="FILE", help="Settings file (YAML).")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace one setting for this call; repeatable."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Bundle = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        metavar="DIR",
        help="An exported bundle, or hub:USER/NAME@REVISION; else this run's head.",
    ),
]
Weights = Annotated[
    str | None,
    typer.Option("--weights", help="The backbone's weights, where the bundle holds none."),
]
Devices = Annotated[int, typer.Option(help="Processes; 0: as finetune.devices says.")]


# ---- a new project -----------------------------------------------------------------------------

START = "To begin with"


@app.command(rich_help_panel=START)
def new(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="The project to make.")],
    videos: Annotated[
        Path | None,
        typer.Option("--videos", metavar="FOLDER", help="Your videos: its settings are for them."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", help="As `dsts use backbone=NAME`.")
    ] = None,
    git: Annotated[
        bool, typer.Option("--git", help="Begin a git repository there, for `dvc exp`.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Make a project: a folder with this command line, settings and the DVC pipeline.

    With --videos it looks at how they lie (folders of classes, tables, published data sets), writes
    the settings that read them, and says what it was not sure of.

    Example: dsts new my_project --videos /data/my_videos
    """
    with told_plainly(debug):
        options = {"videos": videos, "backbone": backbone, "git": git, "choose": choose_in}
        import_module("stages.new").run(folder, **options)


def choose_in(folder: Path, choices: list[str]) -> None:
    """`dsts use` in another folder; without choices the defaults."""
    with chdir(folder):
        import_module("stages.use").run(choices, PARAMS_FILE, reset=not choices)


@app.command(rich_help_panel=START)
def use(
    choices: Annotated[
        list[str] | None,
        typer.Argument(metavar="[GROUP=OPTION | KEY=VALUE]...", help="As `dvc exp run -S` has it."),
    ] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Forget all choices.")] = False,
    params: Params = PARAMS_FILE,
    debug: Debug = False,
) -> None:
    """Keep your choices, such as your data set, as what every later run starts from.

    They are written to configs/experiment/mine.yaml, and params.yaml is composed anew;
    `dvc exp run -S ...` adds to them. Later calls add or replace. Without a choice: shows them.

    Example: python cli.py use dataset=folder dataset.root=/data/mine backbone=swin_t
    """
    with told_plainly(debug):
        import_module("stages.use").run(choices or [], params, reset=reset)


# ---- the stages of a run -----------------------------------------------------------------------

STAGES = "The stages of a run"


@app.command(rich_help_panel=STAGES)
def prepare(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Render or read the data set and write the checked clip index, outputs/clips.json.

    Example: python cli.py prepare --set dataset.render.num_train=240
    """
    run_stage("prepare", params, overrides, debug)


@app.command(rich_help_panel=STAGES)
def weights(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Find the backbone's weights, download them where an address is given, write their digest.

    Writes outputs/weights.json, by which DVC knows whether extract and train-head have to run
    again. DVC runs this every time; it reads a file again only where that changed.

    Example: python cli.py weights --set backbone.weights=random
    """
    run_stage("weights", params, overrides, debug)


@app.command(rich_help_panel=STAGES)
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
        run_stage("extract.dry_run", params, overrides, debug, began=time.monotonic())
    else:
        run_stage("extract", params, overrides, debug, engine=engine, num_workers=num_workers)


@app.command(rich_help_panel=STAGES)
def train_head(
    devices: Annotated[int, typer.Option(help="Processes; 0: as train.devices says.")] = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train the DSTS head and its opponents on the cached maps, into outputs/heads/.

    Goes on from its checkpoints in outputs/checkpoints when it was stopped. SIGTERM saves and
    exits with train.requeue_status (99), on which a scheduler may start it again.

    Example: python cli.py train-head --set head.num_neurons=5 --set train.num_epochs=4
    """
    given = override("train", devices=devices or None)
    run_stage("train_head", params, [*overrides, *given], debug)


@app.command(rich_help_panel=STAGES)
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


@app.command(rich_help_panel=STAGES)
def report(
    screenshots: Annotated[
        Path | None,
        typer.Option(
            "--screenshots",
            metavar="FOLDER",
            help="Also take pictures of its parts, as README and docs show them, into this folder.",
        ),
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


# ---- answers -----------------------------------------------------------------------------------

ANSWERS = "Answers"


@app.command(rich_help_panel=ANSWERS)
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
    """Say what videos show: top-5, the neurons that were chosen where there are several, times.

    Input, views and decoder are those that the head's features were made with. Broken files are
    listed with their reason, the others answered: exit status 0 if all were, 1 if not, 2 for wrong
    use.

    Example: python cli.py predict clip.mp4 more_clips/ --bundle my_bundle --json answers.jsonl
    """
    options = {"videos": videos, "bundle": bundle, "weights": weights}
    outputs = {"json_file": json_file, "annotate": annotate, "gif": gif}
    run_stage("predict", params, overrides, debug, **options, **outputs)


@app.command(rich_help_panel=ANSWERS)
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
    screenshots: Annotated[
        Path | None,
        typer.Option("--screenshots", metavar="FOLDER", help="Put a picture there and end."),
    ] = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Open a page on this machine: drop a video, see the answer, its route, its neighbours.

    Needs the extra `app`: pip install "dsts-pipeline[app]". Only this machine can reach the page
    unless --host says otherwise; see docs/predict.md.

    Example: python cli.py demo-app --bundle my_bundle
    """
    options = {"bundle": bundle, "weights": weights, "host": host, "port": port}
    limits = {"max_upload_mib": max_upload_mib, "timeout_seconds": timeout_seconds}
    pictures = {"screenshots": screenshots}
    run_stage("predict.demo_app", params, overrides, debug, **options, **limits, **pictures)


# ---- many trainings ----------------------------------------------------------------------------

TRAININGS = "Many trainings"
Minutes = Annotated[
    float | None,
    typer.Option("--minutes", help="Stop between epochs by then; the same command goes on."),
]


@app.command(rich_help_panel=TRAININGS)
def ablate(
    experiment: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Settings of configs/experiment/NAME.yaml first."),
    ] = None,
    grid: Annotated[
        list[str],
        typer.Option(metavar="KEY=VALUE,VALUE", help="Every combination is a variant; repeatable."),
    ] = [],
    search: Annotated[
        list[str],
        typer.Option(
            metavar="KEY=VALUE,VALUE", help="Tried by every variant; held-out clips choose."
        ),
    ] = [],
    seeds: Annotated[int | None, typer.Option(min=1, help="Trainings of each variant.")] = None,
    folds: Annotated[
        bool, typer.Option("--folds", help="Cross-validate: all of dataset.num_folds.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Processes that share the trainings.")
    ] = None,
    minutes: Minutes = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train many variants in one pass over the cached maps and compare them, seed by seed.

    Each result is the one that training the variant alone gives. Finished trainings are kept in
    outputs/ablation/runs and never repeated: variants, values and seeds may be added later; a
    stopped command goes on. Writes outputs/ablation/results.json and results.csv. With --folds
    every clip is answered by a head that did not learn from its group; see docs/groups.md.

    Example: python cli.py ablate --experiment paper_tables --jobs 2
    """
    with told_plainly(debug):
        from dsts_pipeline.base.params import overrides_of

        first = overrides_of(experiment) if experiment else []
    varied = json.dumps(grid) if grid else None
    tried = json.dumps(search) if search else None
    given = override(
        "ablate",
        num_seeds=seeds,
        jobs=jobs,
        grid=varied,
        search=tried,
        folds=folds or None,
        minutes=minutes,
    )
    run_stage("ablate", params, [*first, *overrides, *given], debug)


@app.command(rich_help_panel=TRAININGS)
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
    minutes: Minutes = None,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Search settings of head, udl and train by clips held out of train; test is never read.

    Goes on where it was stopped. Bad trials end early. Leaves outputs/search/best_params.yaml, a
    file for --params, and trials.json. See docs/search.md.

    Example: python cli.py search --space train.learning_rate=1e-4:1e-2:log --space head.width=16,32
    """
    given = override(
        "search",
        num_trials=num_trials,
        minutes=minutes,
        space=json.dumps(space) if space else None,
    )
    run_stage("search", params, [*overrides, *given], debug)


# ---- feature stores ----------------------------------------------------------------------------

STORES = "Feature stores"


@app.command(rich_help_panel=STORES)
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

    def extract_again(settings: Any, **options: Any) -> None:
        import_module("stages.extract").run(settings, **options)  # takes long, is seldom needed

    options = {"store": store, "fast": fast, "repair": repair, "strict": strict}
    outputs = {"json_file": json_file, "extract": extract_again}
    run_stage("stores.verify", params, overrides, debug, **options, **outputs)


@app.command(rich_help_panel=STORES)
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


@app.command(rich_help_panel=STORES)
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


@app.command(rich_help_panel=STORES)
def push(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that export made.")],
    repository: Annotated[str, typer.Argument(metavar="USER/NAME", help="On the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="If it is new: for you alone.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Else main.")
    ] = None,
    license: Annotated[
        str | None, typer.Option("--license", help="On the card, such as apache-2.0; else none.")
    ] = None,
    weights: Weights = None,
    out: Annotated[
        Path | None, typer.Option("--to", metavar="FOLDER", help="Write the files there instead.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the files and stop.")] = False,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Send an exported bundle to the Hugging Face hub, for `predict --bundle hub:USER/NAME`.

    It is checked as a whole first. Its card becomes the repository's page. Needs the extra `hub`
    and a login (`hf auth login`).

    Example: python cli.py push my_bundle me/dives --private
    """
    options = {"bundle": bundle, "repository": repository, "private": private}
    options |= {"revision": revision, "license": license, "weights": weights}
    run_stage("push", params, overrides, debug, **options, out=out, dry_run=dry_run)


@app.command(rich_help_panel=STORES)
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


# ---- backbone and head together ----------------------------------------------------------------

TOGETHER = "Backbone and head together"


@app.command(rich_help_panel=TOGETHER)
def finetune(
    devices: Devices = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train backbone and head together on the videos, from outputs/heads/dsts.

    Writes outputs/finetuned: backbone.safetensors, head/, history.json, metrics.json. Goes on from
    its checkpoints when it was stopped; SIGTERM saves and exits with finetune.requeue_status (99).

    Example: python cli.py finetune --set finetune.num_epochs=4 --set finetune.recompute=true
    """
    given = override("finetune", devices=devices or None)
    run_stage("finetune", params, [*overrides, *given], debug)


@app.command(rich_help_panel=TOGETHER)
def pretrain_backbone(
    devices: Devices = 0,
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train a backbone on the classes with a plain linear head, by the settings of finetune.

    The paper's order: this command, then extract with the new weights, train-head, finetune.
    Writes outputs/pretrained_backbone. (The embedded backbone itself is made by pretrain.)

    Example: python cli.py pretrain-backbone --set finetune.optimizer=sgd
    """
    given = override("finetune", devices=devices or None)
    run_stage("finetune.pretrain_backbone", params, [*overrides, *given], debug)


# ---- around a run ------------------------------------------------------------------------------

AROUND = "Around a run"


@app.command(rich_help_panel=AROUND)
def doctor(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Look whether this machine can run the settings: one line per check, ok or what to do.

    Versions, decoder, devices, data, weights, free space, and the time of the extraction as
    measured on four clips. The exit status is 0 if all is well, else 1.

    Example: python cli.py doctor --set dataset.root=/data/diving48
    """
    run_stage("doctor", params, overrides, debug)


@app.command(rich_help_panel=AROUND)
def results(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print the table of the last evaluation and where the report is; computes nothing.

    Example: python cli.py results
    """
    run_stage("report.show_results", params, overrides, debug)


@app.command(rich_help_panel=AROUND)
def compare(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Outputs folders or git revisions.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page to write.")] = Path(
        "outputs/compare/compare.html"
    ),
    fuse: Annotated[
        bool, typer.Option("--fuse", help="Also average the runs' scores, as a run of its own.")
    ] = False,
    weights: Annotated[
        str, typer.Option(metavar="W,W...", help="Of the runs in --fuse; equal by default.")
    ] = "",
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Write one page about several evaluated runs: figures, paired differences, curves, routing.

    A RUN is an outputs folder, a folder that holds one, or a git revision whose results DVC's
    cache has. Differences are to the first one, clip by clip: all must be evaluated on the same
    clips. With --fuse the scores of their main heads are averaged (late fusion, such as of frames
    and optical flow) into the folder `fused` beside the page, which is then the first of the runs.

    Example: python cli.py compare outputs ../other/outputs HEAD~1
    """
    how = {"runs": runs, "out": out, "fuse": fuse, "weights": weights}
    run_stage("report.compare", params, overrides, debug, **how)


@app.command(rich_help_panel=AROUND)
def show(params: Params = PARAMS_FILE, overrides: Overrides = [], debug: Debug = False) -> None:
    """Print all settings as YAML, defaults and --set included: a file for --params.

    Example: python cli.py show --set head.num_neurons=5 > five.yaml
    """
    run_stage("doctor.show", params, overrides, debug)


@app.command(rich_help_panel=AROUND)
def pretrain(
    params: Params = PARAMS_FILE,
    overrides: Overrides = [],
    debug: Debug = False,
) -> None:
    """Train the embedded backbone on freshly rendered clips (a quarter of an hour on 2 cores).

    It learns the data set that the settings render. The weights of the embedded one, which learned
    dives, are in the repository; a file that is there is never replaced. The model card lies beside
    the weights.

    Example: python cli.py pretrain --set backbone.weights=weights/mine.safetensors
    """
    run_stage("pretrain", params, overrides, debug)


# ---- with mmaction2's own tools ----------------------------------------------------------------

MMACTION = "With mmaction2's own tools"


@app.command(rich_help_panel=MMACTION)
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


@app.command(rich_help_panel=MMACTION)
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


# ---- running a command -------------------------------------------------------------------------


def override(section: str, **values: object) -> list[str]:
    """A command's own options as --set has them; those that are None were not given."""
    return [f"{section}.{name}={value}" for name, value in values.items() if value is not None]


def run_stage(
    stage: str, params: Path, overrides: list[str], debug: bool, /, **options: Any
) -> None:
    """Load the settings and run a stage with them (and the command's own options).

    Args:
        stage: "file" of stages/, whose function `run` it is, or "file.function".
    """
    with told_plainly(debug):
        from dsts_pipeline.base.params import load_settings
        from dsts_pipeline.base.project import require_release

        require_release(Path.cwd())
        # What a bundle or a store says of itself is enough to ask it, wherever one stands.
        is_needed = params != PARAMS_FILE or params.exists() or not _names_its_source(options)
        settings: Any = load_settings(params if is_needed else None, overrides)
        file, _, function = stage.partition(".")
        getattr(import_module(f"stages.{file}"), function or "run")(settings, **options)


def _names_its_source(options: dict[str, Any]) -> bool:
    return options.get("bundle") is not None or options.get("store") is not None


@contextmanager
def told_plainly(debug: bool) -> Iterator[None]:
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
    except ModuleNotFoundError as error:
        explained = explain_missing(error, "this command")
        if debug or not isinstance(explained, MissingExtraError):
            raise
        typer.echo(f"error: {explained}", err=True)
        raise typer.Exit(explained.exit_status) from None
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("interrupted; the same command goes on from what is finished", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        refusal = _tell_refusal(error)
        if debug or refusal is None:
            raise
        typer.echo(f"error: {refusal}", err=True)
        raise typer.Exit(UserError.exit_status) from None


def _tell_refusal(error: OSError) -> str | None:
    """What the disk refuses, with the file where it is known; None for errors of other kinds."""
    from dsts_pipeline.base.files import NO_ROOM, explain_refusal, tell_free

    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR) and error.filename:
        return f"{error.filename}: {error.strerror}: something else is in its place; move it away"
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return f"{error.filename or 'disk'}: {error.strerror}; write elsewhere, or ask for access"
    if error.errno not in NO_ROOM:
        return None
    cure = "free space, then run the same command again: it goes on from what is finished"
    if error.filename is not None:
        told = explain_refusal(error, error.filename)
        return f"{told.filename}: {told.strerror}; {cure}"
    # Libraries that write by themselves name no file.
    places = [Path.cwd(), Path(tempfile.gettempdir())]
    free = ", ".join(f"{place}: {tell_free(place)}" for place in places)
    return f"{error.strerror} (of {free}); {cure}"


if __name__ == "__main__":
    app()
