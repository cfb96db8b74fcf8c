"""One page about the run: tables, plots, provenance, and previews of clips."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dsts_pipeline.base.files import hold_alone, read_signed
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.report import Failure, PreviewOptions, render_report, write_report
from dsts_pipeline.report.explorer import worst_cell
from dsts_pipeline.report.screenshots import report_shots, take_screenshots
from stages import places
from stages.inputs import open_features
from stages.report_inputs import frame_reader, read_run


def run(settings: Settings, *, screenshots: Path | None = None) -> None:
    """Write outputs/report/report.html.

    Args:
        screenshots: Folder for pictures of the page, as README shows them; None: none are taken.

    Raises:
        BusyError: The heads are being trained or evaluated.
        DataError, StoreError: A result is missing or does not fit the others.
    """
    with hold_alone(places.HEADS, "report"):
        _report(settings, screenshots)


def _report(settings: Settings, screenshots: Path | None) -> None:
    chosen, index = settings.report, ClipIndex.load(places.CLIP_INDEX)
    features = open_features(settings.feed).manifest
    names = list(read_signed(places.METRICS)["heads"])
    origins = {
        "features": features["provenance"],
        "heads": read_signed(places.HEADS / names[-1] / "head.json")["extra"]["provenance"],
    }
    read = read_run(places.OUTPUTS, index, origins)
    lost = [Failure(c["id"], c["split"], "extract", c["reason"]) for c in features["failures"]]
    inputs = replace(
        read,
        failures=[*read.failures, *lost],
        title=chosen.title,
        num_confused_pairs=chosen.num_confused_pairs,
    )
    page = render_report(
        inputs,
        frames_of=frame_reader(index, settings.backbone.decoder),
        options=PreviewOptions(
            num_gallery_clips=chosen.num_gallery_clips,
            num_cell_clips=chosen.num_cell_clips,
            num_mistakes=chosen.num_mistakes,
            size_px=chosen.preview_size_px,
            max_bytes=int(chosen.max_preview_mb * 1e6),
        ),
    )
    write_report(page, places.REPORT, write_plots=chosen.write_plots)
    console.print(f"report: {places.REPORT.resolve()}", soft_wrap=True)
    if screenshots is not None:
        for path in take_screenshots(places.REPORT, screenshots, report_shots(worst_cell(inputs))):
            console.print(f"picture: {path}", soft_wrap=True)
