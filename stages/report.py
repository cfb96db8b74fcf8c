"""What finished runs found: a page about one, a page about several, the table of the last one."""

from __future__ import annotations

import math
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from dsts_pipeline.base.errors import DataError, SettingsError
from dsts_pipeline.base.files import hold_alone, read_signed, sign, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.probe import probe
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.pipelines import cut_square, resize_frames
from dsts_pipeline.extract.views import (
    FrameRequest,
    FrameView,
    cut_of_first_view,
    preview_request,
)
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.joining import follow_head
from dsts_pipeline.feature_store.opening import open_features, read_features_record
from dsts_pipeline.head import attention_map, load_head
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    Predictions,
    align,
    assemble_metrics,
    print_results,
)
from dsts_pipeline.metrics.fusion import TWO_STREAMS, fuse_heads
from dsts_pipeline.report.comparison import Run, check_runs, render_comparison
from dsts_pipeline.report.examples import worst_cell
from dsts_pipeline.report.inputs import Failure, ReportInputs, name_dataset
from dsts_pipeline.report.page import render_report, write_report
from dsts_pipeline.report.previews import NUM_FRAMES, FramesOf, Seen, SeenOf
from dsts_pipeline.report.screenshots import report_shots, take_screenshots
from stages import common

# ---- report: tables, plots, provenance, and previews of clips ----------------------------------


def run(settings: Settings, *, screenshots: Path | None = None) -> None:
    """Write outputs/report/report.html.

    Args:
        screenshots: Folder for pictures of the page, as README shows them; None: none are taken.

    Raises:
        BusyError: The heads are being trained or evaluated.
        DataError, StoreError: A result is missing or does not fit the others.
    """
    with hold_alone(common.HEADS, "report"):
        _report(settings, screenshots)


def _report(settings: Settings, screenshots: Path | None) -> None:
    read_features_record(common.FEATURES)  # what is missing is told in the pipeline's order
    names = list(read_signed(common.METRICS)["heads"])
    trained = [name for name in names if (common.HEADS / name).exists()]  # fused heads are not
    of_head = read_signed(common.HEADS / trained[-1] / "head.json")["extra"]
    feed = follow_head(settings.feed, of_head)
    store = open_features(common.FEATURES, feed, settings.dataset)
    features = store.manifest
    # Imported features have no clip index: their store knows their classes.
    imported = "import" in features["made_of"]
    index = None if imported else ClipIndex.load(common.CLIP_INDEX)
    origins = {"features": features["provenance"], "heads": of_head["provenance"]}
    read = read_run(common.OUTPUTS, index, origins)
    lost_at = "import-features" if imported else "extract"
    lost = [Failure(c["id"], c["split"], lost_at, c["reason"]) for c in features["failures"]]
    firsts = store.views == 0
    inputs = replace(
        read,
        failures=[*read.failures, *lost],
        num_clips=Counter(store.splits[firsts].tolist()),
        adapted=of_head.get("adapted", ""),
    )
    frames_of: FramesOf | None = None
    if index is not None:
        frames_of = _frame_reader(index, settings.backbone.decoder)
    else:
        inputs = replace(
            inputs,
            attribute_names=store.attribute_names,
            attributes=store.attributes,
            dataset=features["made_of"].get("clips", {}).get("dataset", ""),
        )
        frames_of = _reader_of_named_videos(features["fingerprint"], settings.backbone.decoder)
        if frames_of is None:
            told = "the table of the imported features has no column `path` that leads to videos"
            console.print(f"left out: gallery and previews, since {told}", soft_wrap=True)
    seen_of = None
    if index is not None and store.frames is not None:
        seen_of = _attention_reader(inputs.main_head, store, index, settings.backbone.decoder)
    page = render_report(inputs, settings.report, frames_of=frames_of, seen_of=seen_of)
    write_report(page, common.REPORT, write_plots=settings.report.write_plots)
    console.print(f"report: {common.REPORT.resolve()}", soft_wrap=True)
    if screenshots is not None:
        shots = report_shots(worst_cell(inputs), with_neurons=inputs.num_neurons > 0)
        for path in take_screenshots(common.REPORT, screenshots, shots):
            console.print(f"picture: {path}", soft_wrap=True)


# ---- frames of clips: spread over the clip, or those that the model saw -------------------------


def _frame_reader(index: ClipIndex, decoder: Decoder) -> FramesOf:
    """A function that yields the frames of a clip's preview, uint8 `[T, H, W, 3]`."""
    clips = {clip.id: clip for clip in index.clips}

    def frames_of(clip_id: str) -> np.ndarray:
        request = preview_request(index, clips[clip_id], NUM_FRAMES, decoder=decoder)
        return decode_clip(request)[0]

    return frames_of


def _reader_of_named_videos(fingerprint: str, decoder: Decoder) -> FramesOf | None:
    """The same for imported features whose table named videos; None where it named none."""
    if not common.NAMED_VIDEOS.exists():
        return None
    named = read_signed(common.NAMED_VIDEOS)
    if named["store"] != fingerprint:  # of an earlier import
        return None
    root = Path(named["root"])

    def frames_of(clip_id: str) -> np.ndarray:
        if clip_id not in named["paths"]:
            raise DataError("the table names no video of it")
        path = root / named["paths"][clip_id]
        info = probe(path)
        view = FrameView(tuple(uniform_frames(info.num_frames, NUM_FRAMES).tolist()))
        request = FrameRequest(str(path), decoder, views=(view,), size_px=None, info=info)
        return decode_clip(request)[0]

    return frames_of


def _attention_reader(
    head_name: str, store: FeatureStore, index: ClipIndex, decoder: Decoder
) -> SeenOf | None:
    """A function that yields what the head saw of a clip's first view, and what it attended to.

    None where the head averages positions, or is several that were fused.
    """
    if not (common.HEADS / head_name).exists():
        return None
    head, _ = load_head(common.HEADS / head_name)
    if attention_map(head, torch.zeros(1, *store.map_shape)) is None:
        return None
    assert store.frames is not None
    frames = store.frames
    clips = {clip.id: clip for clip in index.clips}
    pairs = zip(store.video_ids, store.views.tolist(), strict=True)
    rows = {clip_id: row for row, (clip_id, view) in enumerate(pairs) if view == 0}
    cut = cut_of_first_view(store.manifest["made_of"])

    def seen_of(clip_id: str) -> Seen:
        row = rows[clip_id]
        numbers = tuple(int(number) for number in frames[row] if number >= 0)
        clip = clips[clip_id]
        request = FrameRequest(
            str(Path(index.root) / clip.path),
            decoder,
            views=(FrameView(numbers),),
            size_px=None,
            info=clip.video_info,
        )
        whole = decode_clip(request)[0]
        if cut.squeezes:
            whole = resize_frames(whole, *[min(whole.shape[1:3])] * 2)
        side = round(cut.share * min(whole.shape[1:3]))
        maps = torch.from_numpy(store.read([row]).astype(np.float32))
        attention = attention_map(head, maps)
        assert attention is not None
        return Seen(cut_square(whole, side, cut.crop), attention[0].numpy())

    return seen_of


# ---- results: the table alone ------------------------------------------------------------------


def show_results(settings: Settings) -> None:
    """Print the table of metrics.json and where the report is.

    Raises:
        DataError: Nothing was evaluated yet.
    """
    if not common.METRICS.exists():
        run = "`dvc repro`"
        record = read_features_record(common.FEATURES) if common.FEATURES.exists() else {}
        if "import" in record.get("made_of", ()):  # which `dvc repro` would replace
            run = "`python cli.py train-head`, then `python cli.py evaluate`"
        raise DataError(f"{common.METRICS}: no results yet; run {run}")
    metrics = read_signed(common.METRICS)
    console = print_results(metrics)
    if common.FEATURES.exists():
        now = read_features_record(common.FEATURES).get("fingerprint")
        if now not in (None, metrics["store"]):  # a record by hand names a store and no more
            console.print(
                f"{common.FEATURES} names other maps by now ({now}) than these results are of "
                f"({metrics['store']}): run `dvc repro`, or `train-head` and `evaluate`",
                soft_wrap=True,
                highlight=False,
            )
    if common.REPORT.exists():
        console.print(f"report: {common.REPORT.resolve()}", soft_wrap=True, highlight=False)
    else:
        console.print("no report yet: run `python cli.py report`", highlight=False)


# ---- compare: one page about several finished runs on the same clips ---------------------------

FUSED = "fused"


def compare(
    settings: Settings, *, runs: Sequence[str], out: Path, fuse: bool = False, weights: str = ""
) -> None:
    """Write the page to `out`, its plots and tables beside it.

    Args:
        fuse: The runs' main heads are fused late, too: into an outputs folder "fused" beside
            `out`, which comes first on the page.
        weights: Of the runs' scores, with commas; empty: all are equal.

    Raises:
        DataError: A run is not there, not evaluated on the clips of the first, or fused already.
        SettingsError: Weights are no positive numbers, one a run.
    """
    chosen = settings.evaluate
    shares = read_weights(weights, len(runs)) if fuse else []
    with TemporaryDirectory() as scratch:
        found = [_read_named(name, outputs_of(name, Path(scratch))) for name in runs]
    bootstrap = Bootstrap(chosen.num_bootstrap, chosen.confidence, settings.seed)
    if fuse:
        found = [_fuse(found, shares, bootstrap, out.parent / FUSED), *found]
    page = render_comparison(found, bootstrap)
    write_report(page, out, write_plots=settings.report.write_plots)
    console.print(f"comparison: {out.resolve()}", soft_wrap=True)


def read_weights(text: str, num_runs: int) -> list[float]:
    """Such as [1.0, 1.5] of "1,1.5"; empty: ones.

    Raises:
        SettingsError: They are no positive numbers, one a run.
    """
    if not text:
        return [1.0] * num_runs
    try:
        weights = [float(part) for part in text.split(",")]
    except ValueError:
        weights = []
    if len(weights) != num_runs or not all(0 < weight < math.inf for weight in weights):
        raise SettingsError(
            f"--weights {text}: expected {num_runs} positive numbers with commas between them, "
            "one a run, such as 1,1.5"
        )
    return weights


def _fuse(
    runs: Sequence[Run], weights: Sequence[float], bootstrap: Bootstrap, outputs: Path
) -> Run:
    """Average the runs' main heads; written to `outputs` as an evaluated run."""
    check_runs(runs)
    for run in runs:
        if run.inputs.main_head == TWO_STREAMS:
            raise DataError(
                f"{run.name}: its main head is fused already; name the runs that it was made of, "
                "or evaluate it with evaluate.fuse.run=null"
            )
    streams = {f"stream_{number}": run for number, run in enumerate(runs, start=1)}
    heads = {}
    for name, run in streams.items():
        answers = align(runs[0].inputs.answers, run.inputs.answers)
        plain = Predictions(answers.clip_ids, answers.labels, answers.probabilities)
        title = f"{run.inputs.main['title']}, {run.name}"
        heads[name] = HeadResult(title, plain, run.inputs.main["num_parameters"])
    heads[TWO_STREAMS] = fuse_heads(list(heads.values()), weights)
    first = runs[0].inputs
    metrics = assemble_metrics(
        heads,
        bootstrap=bootstrap,
        attribute_names=first.attribute_names,
        attributes=first.attributes,
        class_names=first.class_names,
        denominators=Denominators(*(first.metrics[k] for k in ("evaluated", "failed", "missing"))),
        split=first.metrics["split"],
        store=" + ".join(run.inputs.metrics["store"] for run in runs),
        provenance=collect_provenance(
            {"fused": [run.name for run in runs], "weights": list(weights)}
        ),
    )
    for name, head in heads.items():
        head.predictions.save(_at(outputs, common.PREDICTIONS) / f"{name}.npz")
    write_json(_at(outputs, common.METRICS), sign(metrics))
    print_results(metrics)
    console.print(f"fused: {outputs.resolve()}", soft_wrap=True)
    return Run(FUSED, replace(read_run(outputs, None, {}), dataset=first.dataset))


def outputs_of(run: str, scratch: Path) -> Path:
    """The outputs folder of `run`.

    Args:
        run: an outputs folder, a folder that holds one, or a git revision whose results DVC's
            cache has (the name of a `dvc exp run`, too).
        scratch: where a revision's results are put.

    Raises:
        DataError: It is neither, or the results of the revision are not in the cache.
    """
    for folder in (Path(run), Path(run) / common.OUTPUTS):
        if _at(folder, common.METRICS).is_file():
            return folder
    if Path(run).is_dir():
        raise DataError(f"{run}: holds no evaluated run; run `python cli.py evaluate` there")
    if not _is_revision(run):
        raise DataError(f"{run}: neither a folder nor a git revision; name one of these")
    return _take_out(run, scratch)


def _is_revision(run: str) -> bool:
    asked = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{run}^{{commit}}"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def _take_out(revision: str, scratch: Path) -> Path:
    """Put evaluation and heads of `revision` into a folder below `scratch`, from DVC's cache."""
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    target = scratch / revision.replace("/", "_")
    try:
        cached = DVCFileSystem(".", rev=revision)
        for place in (common.EVALUATION, common.HEADS):
            cached.get(place.as_posix(), (target / place.name).as_posix(), recursive=True)
    except (DvcException, OSError) as error:
        raise DataError(
            f"{revision}: its results are not at hand ({error}); `git checkout {revision}` and "
            "`dvc repro` make them again, `dvc pull` fetches them from a remote"
        ) from None
    return target


def _read_named(name: str, outputs: Path) -> Run:
    index = _at(outputs, common.CLIP_INDEX)
    origins = {
        f"head {path.parent.name}": read_signed(path)["extra"].get("provenance", {})
        for path in sorted(_at(outputs, common.HEADS).glob("*/head.json"))
    }
    # A revision's clip index is not in the cache: its classes are named in its metrics.
    clips = ClipIndex.load(index) if index.exists() else None
    return Run(name.rstrip("/"), read_run(outputs, clips, origins))


# ---- what a finished run left, for both pages --------------------------------------------------


def read_run(outputs: Path, index: ClipIndex | None, origins: dict[str, Any]) -> ReportInputs:
    """The run whose files lie in `outputs`, as `evaluate` and `train-head` wrote them.

    Args:
        index: its clip index; None: classes are those that the metrics name.
        origins: provenance of earlier parts, by name.

    Raises:
        DataError: A file is missing or does not fit the others.
    """
    metrics = read_signed(_at(outputs, common.METRICS))
    names = list(metrics["heads"])
    answers = _at(outputs, common.PREDICTIONS)
    histories = {name: _at(outputs, common.HEADS) / name / "history.json" for name in names}
    ablation = _at(outputs, common.ABLATION) / "results.json"
    routing = _at(outputs, common.ROUTING)
    problems = index.problems if index else ()
    return ReportInputs(
        metrics=metrics,
        predictions={name: Predictions.load(answers / f"{name}.npz") for name in names},
        histories={n: read_signed(p)["epochs"] if p.exists() else [] for n, p in histories.items()},
        class_names=index.class_names if index else metrics["classes"],
        attribute_names=index.attribute_names if index else (),
        attributes=index.attributes if index else (),
        failures=[Failure(p.clip_id, p.split, "prepare", p.reason) for p in problems],
        origins=origins,
        dataset=name_dataset(index.dataset, index.root) if index else "",
        routing=read_signed(routing) if routing.exists() else None,
        ablation=read_signed(ablation) if ablation.exists() else None,
    )


def _at(outputs: Path, place: Path) -> Path:
    """Where a place of common.py is in the outputs folder of another run."""
    return outputs / place.relative_to(common.OUTPUTS)
