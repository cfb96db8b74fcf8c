"""A prediction as plain values for the page, which puts them in as text, never as HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.report.previews import NUM_FRAMES, strip_uri
from dsts_pipeline.serve.neighbours import Neighbours
from dsts_pipeline.serve.predictor import Prediction, Predictor, Refusal

STRIP_PX = 128


def answer_video(path: Path, predictor: Predictor, neighbours: Neighbours | None) -> dict[str, Any]:
    """The answer for the video at `path`, or {"error": the reason}."""
    (answer,) = predictor.predict([path])
    if isinstance(answer, Refusal):
        return {"error": f"This file cannot be used: {answer.reason}."}
    names, info = predictor.bundle.class_names, answer.info
    return {
        "top": [{"name": names[number], "probability": p} for number, p in answer.top()],
        "layers": _layers(answer, predictor),
        "num_views": len(answer.logits),
        "strip": strip_uri(answer.frames[0], STRIP_PX),
        "strip_frames": NUM_FRAMES,
        "video": {
            "num_frames": info.num_frames,
            "fps": info.fps,
            "width_px": info.width,
            "height_px": info.height,
        },
        "neighbours": None if neighbours is None else _near(answer, predictor, neighbours),
        "seconds": answer.seconds,
    }


def _layers(answer: Prediction, predictor: Predictor) -> list[dict[str, Any]]:
    """Per layer: how many neurons, which one each view went to, their shares of gates."""
    if answer.neurons is None:
        return []
    shares = predictor.temporal_shares
    return [
        {
            "num_neurons": predictor.num_neurons,
            "chosen": answer.neurons[:, layer].tolist(),
            "temporal_shares": shares[layer],
        }
        for layer in range(answer.neurons.shape[1])
    ]


def _near(answer: Prediction, predictor: Predictor, neighbours: Neighbours) -> list[dict[str, Any]]:
    names = predictor.bundle.class_names
    found = neighbours.find(answer.pooled)
    strips = neighbours.previews([clip.clip_id for clip in found], predictor)
    return [
        {
            "id": clip.clip_id,
            "name": names[clip.label],
            "similarity": clip.similarity,
            "strip": strip,
        }
        for clip, strip in zip(found, strips, strict=True)
    ]
