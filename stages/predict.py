"""Answers for videos: a table, lines of JSON, annotated copies."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from rich.console import Console

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.stopping import exit_on_sigterm
from dsts_pipeline.serve.answers import answers_table, table_row, tell_latency
from dsts_pipeline.serve.output import Outputs
from dsts_pipeline.serve.predictor import Prediction, Predictor
from dsts_pipeline.serve.video_list import list_videos
from stages.bundles import open_bundle
from stages.predict_options import predictor_options

MIN_COLUMNS = 100


class SomeRefused(UserError):
    """At least one video has no answer; the others do."""

    exit_status = 1


def run(
    settings: Settings,
    *,
    videos: list[Path],
    bundle: Path | None = None,
    weights: str | None = None,
    json_file: Path | None = None,
    annotate: Path | None = None,
    gif: bool = False,
) -> None:
    """Print what the head says of every video.

    Raises:
        BundleError: The bundle is damaged, or its parts don't belong together.
        DataError: There is no such file, or no video.
        SomeRefused: A video can't be used; the reasons are in the table.
    """
    started, listed = time.monotonic(), list_videos(videos)
    held = open_bundle(settings, bundle, weights)
    for note in held.notes:
        console.print(f"note: {note}", soft_wrap=True)
    rows, totals = [], Counter[str]()
    with (
        exit_on_sigterm(),
        Predictor(held, **predictor_options(settings)) as predictor,
        Outputs(predictor, listed.paths, json_file, annotate, ".gif" if gif else ".mp4") as outputs,
        track("Predicting", len(listed.paths), "videos") as progress,
    ):
        predictor.warm_up()
        ready = time.monotonic() - started
        for answer in predictor.predict(listed.paths):
            answer = outputs.add(answer)
            rows.append(table_row(answer, held.class_names, predictor.temporal_shares))
            totals.update(answer.seconds if isinstance(answer, Prediction) else {"refused": 1.0})
            progress.advance()
    refused = int(totals.pop("refused", 0))
    wide = Console(width=max(MIN_COLUMNS, Console().width), highlight=False)
    wide.print(answers_table(rows))
    wide.print(f"{held.title}; {tell_latency(totals, len(rows) - refused)}; start-up {ready:.1f} s")
    if listed.num_left_out:
        wide.print(f"{listed.num_left_out} files of the folders are no videos by their names")
    if refused:
        raise SomeRefused(f"{refused} of {len(rows)} videos have no answer; the table says why")
