"""What finished runs found: a page about one, a page about several, the table of the last one."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import hold_alone, read_signed
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.decode_pool import decode_clip
from dsts_pipeline.extract.views import preview_request
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.metrics import Bootstrap, Predictions, print_results
from dsts_pipeline.report.comparison import Run, render_comparison
from dsts_pipeline.report.examples import worst_cell
from dsts_pipeline.report.inputs import Failure, ReportInputs
from dsts_pipeline.report.page import render_report, write_report
from dsts_pipeline.report.previews import NUM_FRAMES
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
    store = open_features(common.FEATURES, settings.feed, settings.dataset)
    features = store.manifest
    # Imported features have neither videos nor a clip index: their store knows their classes.
    imported = "import" in features["made_of"]
    index = None if imported else ClipIndex.load(common.CLIP_INDEX)
    names = list(read_signed(common.METRICS)["heads"])
    origins = {
        "features": features["provenance"],
        "heads": read_signed(common.HEADS / names[-1] / "head.json")["extra"]["provenance"],
    }
    read = read_run(common.OUTPUTS, index, origins)
    lost_at = "import-features" if imported else "extract"
    lost = [Failure(c["id"], c["split"], lost_at, c["reason"]) for c in features["failures"]]
    inputs = replace(read, failures=[*read.failures, *lost])
    frames_of = None
    if index is not None:
        frames_of = _frame_reader(index, settings.backbone.decoder)
    else:
        inputs = replace(
            inputs,
            attribute_names=store.attribute_names,
            attributes=store.attributes,
            dataset=features["made_of"].get("clips", {}).get("dataset", ""),
        )
        console.print("left out: gallery and previews, since imported features have no videos")
    page = render_report(inputs, settings.report, frames_of=frames_of)
    write_report(page, common.REPORT, write_plots=settings.report.write_plots)
    console.print(f"report: {common.REPORT.resolve()}", soft_wrap=True)
    if screenshots is not None:
        shots = report_shots(worst_cell(inputs))
        for path in take_screenshots(common.REPORT, screenshots, shots):
            console.print(f"picture: {path}", soft_wrap=True)


def _frame_reader(index: ClipIndex, decoder: Decoder) -> Callable[[str], np.ndarray]:
    """A function that yields the frames of a clip's preview, uint8 `[T, H, W, 3]`."""
    clips = {clip.id: clip for clip in index.clips}

    def frames_of(clip_id: str) -> np.ndarray:
        request = preview_request(index, clips[clip_id], NUM_FRAMES, decoder=decoder)
        return decode_clip(request)[0]

    return frames_of


# ---- results: the table alone ------------------------------------------------------------------


def show_results(settings: Settings) -> None:
    """Print the table of metrics.json and where the report is.

    Raises:
        DataError: Nothing was evaluated yet.
    """
    if not common.METRICS.exists():
        raise DataError(f"{common.METRICS}: no results yet; run `make demo` or `dvc repro`")
    console = print_results(read_signed(common.METRICS))
    if common.REPORT.exists():
        console.print(f"report: {common.REPORT.resolve()}", soft_wrap=True, highlight=False)
    else:
        console.print("no report yet: run `python cli.py report`", highlight=False)


# ---- compare: one page about several finished runs on the same clips ---------------------------


def compare(settings: Settings, *, runs: Sequence[str], out: Path) -> None:
    """Write the page to `out`, its plots and tables beside it.

    Raises:
        DataError: A run is not there, or not evaluated on the clips of the first.
    """
    chosen = settings.evaluate
    with TemporaryDirectory() as scratch:
        found = [_read_named(name, outputs_of(name, Path(scratch))) for name in runs]
    bootstrap = Bootstrap(chosen.num_bootstrap, chosen.confidence, settings.seed)
    page = render_comparison(found, bootstrap)
    write_report(page, out, write_plots=settings.report.write_plots)
    console.print(f"comparison: {out.resolve()}", soft_wrap=True)


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
        dataset=index.dataset if index else "",
        routing=read_signed(routing) if routing.exists() else None,
        ablation=read_signed(ablation) if ablation.exists() else None,
    )


def _at(outputs: Path, place: Path) -> Path:
    """Where a place of common.py is in the outputs folder of another run."""
    return outputs / place.relative_to(common.OUTPUTS)
