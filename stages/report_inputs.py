"""What a finished run left in its outputs folder, read for the report and for `compare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.files import read_signed
from dsts_pipeline.clips.decode import Decoder, decode_frames
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.sampling import uniform_frames
from dsts_pipeline.metrics import Predictions
from dsts_pipeline.report import NUM_FRAMES, Failure, ReportInputs
from stages import places


def read_run(outputs: Path, index: ClipIndex | None, origins: dict[str, Any]) -> ReportInputs:
    """The run whose files lie in `outputs`, as `evaluate` and `train-head` wrote them.

    Args:
        index: its clip index; None: classes are those that the metrics name.
        origins: provenance of earlier parts, by name.

    Raises:
        DataError: A file is missing or does not fit the others.
    """

    def at(place: Path) -> Path:
        return outputs / place.relative_to(places.OUTPUTS)

    metrics = read_signed(at(places.METRICS))
    names = list(metrics["heads"])
    histories = {name: at(places.HEADS) / name / "history.json" for name in names}
    ablation, routing = at(places.ABLATION) / "results.json", at(places.ROUTING)
    problems = index.problems if index else ()
    return ReportInputs(
        metrics=metrics,
        predictions={n: Predictions.load(at(places.PREDICTIONS) / f"{n}.npz") for n in names},
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


def frame_reader(index: ClipIndex, decoder: Decoder) -> Callable[[str], np.ndarray]:
    """A function that yields the frames of a clip's preview, uint8 `[T, H, W, 3]`."""
    clips = {clip.id: clip for clip in index.clips}

    def frames_of(clip_id: str) -> np.ndarray:
        clip = clips[clip_id]
        picked = uniform_frames(clip.end_frame - clip.start_frame, NUM_FRAMES)
        return decode_frames(
            Path(index.root) / clip.path,
            clip.start_frame + picked,
            decoder=decoder,
            info=clip.video_info,
        )

    return frames_of
