"""Answers for videos: a table, lines of JSON, annotated copies; or a local page that gives them."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dsts_pipeline.base.children import exit_on_sigterm
from dsts_pipeline.base.errors import (
    DataError,
    SettingsError,
    StoreError,
    UserError,
    explain_missing,
)
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import BackboneSettings, Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.forward import choose_device
from dsts_pipeline.extract.views import choose_fallback
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.serve import Bundle, Prediction, Predictor, bundle_of_run
from dsts_pipeline.serve.answers import Outputs, answers_table, table_row, tell_latency
from dsts_pipeline.serve.hub import open_bundle
from dsts_pipeline.serve.video_jobs import list_videos
from stages import common

if TYPE_CHECKING:
    from dsts_pipeline.serve.neighbours import Neighbours

MIN_COLUMNS = 100
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class SomeRefused(UserError):
    """At least one video has no answer; the others do."""

    exit_status = 1


def run(
    settings: Settings,
    *,
    videos: list[Path],
    bundle: str | None = None,
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
    started = time.monotonic()
    listed = list_videos(videos)
    held = _open_bundle(settings, bundle, weights)
    for note in held.notes:
        console.print(f"note: {note}", soft_wrap=True)
    rows = []
    totals = Counter[str]()
    with (
        exit_on_sigterm(),
        _start_predictor(held, settings.backbone) as predictor,
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
    wide = Console(width=max(MIN_COLUMNS, Console().width), highlight=False, markup=False)
    wide.print(answers_table(rows))
    wide.print(f"{held.title}; {tell_latency(totals, len(rows) - refused)}; start-up {ready:.1f} s")
    if listed.num_left_out:
        wide.print(f"{listed.num_left_out} files of the folders are no videos by their names")
    if refused:
        raise SomeRefused(f"{refused} of {len(rows)} videos have no answer; the table says why")


def _open_bundle(settings: Settings, place: str | None, weights: str | None) -> Bundle:
    """The bundle in the folder `place` or on the hub, or without one that of this run's head.

    Raises:
        BundleError: Its parts are damaged or do not belong together.
        CheckpointError, DataError, StoreError: The run has no finished head or features.
    """
    if place is not None:
        return open_bundle(place, weights=weights)
    return bundle_of_run(
        common.HEADS / "dsts",
        common.FEATURES,
        common.METRICS,
        backbone=settings.backbone,
        feed=settings.feed,
    )


def _start_predictor(bundle: Bundle, chosen: BackboneSettings) -> Predictor:
    """Decode processes and models; what decides an answer is in the bundle."""
    return Predictor(
        bundle,
        device=choose_device(chosen.device),
        num_decode_workers=chosen.num_decode_workers,
        clip_timeout_seconds=chosen.clip_timeout_seconds,
        prefetch_bytes=chosen.prefetch_bytes,
        batch_size=chosen.batch_size,
        decoder_fallback=choose_fallback(chosen),
    )


# ---- demo-app: the page, with this run's features beside it, until interrupted -----------------


def demo_app(
    settings: Settings,
    *,
    bundle: str | None = None,
    weights: str | None = None,
    host: str = "127.0.0.1",
    port: int = 8765,
    max_upload_mib: float = 64.0,
    timeout_seconds: float = 30.0,
) -> None:
    """Serve the page on `host` and `port`.

    Raises:
        BundleError: The bundle is damaged, or its parts don't belong together.
        UserError: FastAPI or uvicorn is not installed, or the address is taken.
    """
    try:
        from dsts_pipeline.serve.app import Limits, serve
    except ModuleNotFoundError as error:
        raise explain_missing(error, "demo-app") from None
    is_open = host not in LOOPBACK
    limits = Limits(upload_bytes=int(max_upload_mib * 2**20))
    if is_open:
        console.print(
            f"warning: with --host {host} everyone who reaches this machine can send it videos; "
            "there is no password and no encryption",
            soft_wrap=True,
        )
    held = _open_bundle(settings, bundle, weights)
    changes = {"clip_timeout_seconds": timeout_seconds, "num_decode_workers": limits.num_at_once}
    with _start_predictor(held, settings.backbone.model_copy(update=changes)) as predictor:
        predictor.warm_up()
        near = _find_neighbours(settings, held)
        try:
            serve(predictor, near, host=host, port=port, is_open=is_open, limits=limits)
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port"
            ) from None


def _find_neighbours(settings: Settings, bundle: Bundle) -> Neighbours | None:
    """Training clips of this run, if its features are those that the head was trained on."""
    from dsts_pipeline.serve.neighbours import Neighbours  # imports plots, which predict needn't

    try:
        store = open_features(common.FEATURES, settings.feed)
        if store.fingerprint != bundle.store["fingerprint"]:
            raise StoreError("the features of this folder are others than the head's")
        return Neighbours(store, ClipIndex.load(common.CLIP_INDEX))
    except (DataError, StoreError) as error:
        console.print(f"no nearest clips: {error}", soft_wrap=True)
        return None
