"""Answers for videos: a table, lines of JSON, annotated copies; or a local page that gives them."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
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
from dsts_pipeline.extract.views import choose_fallback, preview_request
from dsts_pipeline.feature_store.joining import follow_head
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.serve import Bundle, Prediction, Predictor, bundle_of_run
from dsts_pipeline.serve.answers import Outputs, answers_table, table_row, tell_latency
from dsts_pipeline.serve.hub import open_bundle
from dsts_pipeline.serve.video_jobs import list_videos
from stages import common

if TYPE_CHECKING:
    from dsts_pipeline.serve.app import Example
    from dsts_pipeline.serve.neighbours import Neighbours

MIN_COLUMNS = 100
NUM_EXAMPLES = 8
NUM_EXAMPLE_FRAMES = 16
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


def _start_predictor(
    bundle: Bundle, chosen: BackboneSettings, *, with_attention: bool = False
) -> Predictor:
    """Decode processes and models; what decides an answer is in the bundle."""
    return Predictor(
        bundle,
        device=choose_device(chosen.device),
        num_decode_workers=chosen.num_decode_workers,
        clip_timeout_seconds=chosen.clip_timeout_seconds,
        prefetch_bytes=chosen.prefetch_bytes,
        batch_size=chosen.batch_size,
        decoder_fallback=choose_fallback(chosen),
        with_attention=with_attention,
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
    screenshots: Path | None = None,
) -> None:
    """Serve the page on `host` and `port`.

    Args:
        screenshots: Folder for a picture of the page with an example's answer, after which it ends;
            None: it is served until interrupted.

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
    chosen = settings.backbone.model_copy(update=changes)
    use = None if screenshots is None else partial(_take_picture, folder=screenshots)
    with _start_predictor(held, chosen, with_attention=True) as predictor:
        predictor.warm_up()
        near, examples = _find_clips(settings, predictor)
        where: dict[str, Any] = {"host": host, "port": 0 if use else port, "is_open": is_open}
        try:
            serve(predictor, near, **where, limits=limits, examples=examples, use=use)
        except OSError as error:
            raise SettingsError(
                f"{host}:{port} cannot be listened on ({error.strerror}); choose another --port"
            ) from None


def _find_clips(
    settings: Settings, predictor: Predictor
) -> tuple[Neighbours | None, list[Example]]:
    """Training and test clips of this run, if the head was trained on its features."""
    from dsts_pipeline.serve.neighbours import Neighbours  # imports plots, which predict needn't

    try:
        feed = follow_head(settings.feed, predictor.bundle.head_record)
        store = open_features(common.FEATURES, feed)
        if store.fingerprint != predictor.bundle.store["fingerprint"]:
            raise StoreError("the features of this folder are others than the head's")
        index = ClipIndex.load(common.CLIP_INDEX)
        return Neighbours(store, index), _find_examples(index, predictor)
    except (DataError, StoreError) as error:
        console.print(f"no nearest clips and no examples: {error}", soft_wrap=True)
        return None, []


def _find_examples(index: ClipIndex, predictor: Predictor) -> list[Example]:
    """Up to `NUM_EXAMPLES` test clips that are whole videos, of classes spread over all."""
    from dsts_pipeline.report.previews import strip_uri
    from dsts_pipeline.serve.app import STRIP_PX, Example

    whole = [c for c in index.of_split("test") if (c.start_frame, c.end_frame) == (0, c.num_frames)]
    first_of_class = {clip.label: clip for clip in reversed(whole)}
    labels = sorted(first_of_class)
    if len(labels) > NUM_EXAMPLES:
        places = np.linspace(0, len(labels) - 1, NUM_EXAMPLES).round().astype(int)
        labels = [labels[place] for place in places]
    clips = [first_of_class[label] for label in labels]
    how: dict[str, Any] = {"decoder": predictor.bundle.decoder, "fallback": "pyav"}
    requests = [
        preview_request(index, clip, NUM_EXAMPLE_FRAMES, size_px=STRIP_PX, **how) for clip in clips
    ]
    return [
        Example(
            name=clip.id,
            class_name=index.class_names[clip.label],
            path=Path(index.root) / clip.path,
            strip=strip_uri(frames, STRIP_PX),
        )
        for clip, frames in zip(clips, predictor.preview(requests), strict=True)
        if frames is not None
    ]


def _take_picture(address: str, folder: Path) -> None:
    from dsts_pipeline.report.screenshots import Shot, take_screenshots

    shot = Shot("demo-app.png", "/?example=1", width_px=1100, height_px=1700)
    for path in take_screenshots(address, folder, [shot]):
        console.print(f"picture: {path}", soft_wrap=True)
