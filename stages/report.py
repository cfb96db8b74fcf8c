"""One page about the run: tables, plots, provenance, and clips that each neuron was chosen for."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.decode import decode_frames
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.feature_store.manifest import load_manifest
from dsts_pipeline.metrics import Predictions
from dsts_pipeline.report import Failure, ReportInputs, render_report, write_report
from stages import places

NUM_PREVIEW_FRAMES = 16


def run(settings: Settings) -> None:
    """Write outputs/report/report.html.

    Raises:
        DataError, StoreError: A result is missing or does not fit the others.
    """
    chosen, index = settings.report, ClipIndex.load(places.CLIP_INDEX)
    metrics, features = read_json(places.METRICS), read_json(places.FEATURES)
    names = list(metrics["heads"])
    failures = [Failure(p.clip_id, p.split, "prepare", p.reason) for p in index.problems]
    failures += [
        Failure(clip["id"], clip["split"], "extract", clip["reason"])
        for clip in features["failures"]
    ]
    inputs = ReportInputs(
        metrics=metrics,
        predictions={name: Predictions.load(places.PREDICTIONS / f"{name}.npz") for name in names},
        histories={n: read_json(places.HEADS / n / "history.json")["epochs"] for n in names},
        class_names=index.class_names,
        attribute_names=index.attribute_names,
        attributes=index.attributes,
        failures=failures,
        origins={
            "features": load_manifest(features["store"])["provenance"],
            "heads": read_json(places.HEADS / names[-1] / "head.json")["extra"]["provenance"],
        },
        dataset=index.dataset,
        title=chosen.title,
        num_confused_pairs=chosen.num_confused_pairs,
    )
    clips = {clip.id: clip for clip in index.clips}

    def frames_of(clip_id: str) -> np.ndarray:
        clip = clips[clip_id]
        picked = uniform_frames(clip.end_frame - clip.start_frame, NUM_PREVIEW_FRAMES)
        return decode_frames(
            Path(index.root) / clip.path,
            clip.start_frame + picked,
            decoder=settings.backbone.decoder,
        )

    page = render_report(
        inputs,
        frames_of=frames_of,
        num_gallery_clips=chosen.num_gallery_clips,
        gallery_size_px=chosen.gallery_size_px,
    )
    write_report(page, places.REPORT, write_plots=chosen.write_plots)
    console.print(f"report: {places.REPORT.resolve()}", soft_wrap=True)
