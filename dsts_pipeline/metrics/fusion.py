"""Late fusion: the scores of heads of several runs averaged, clip by clip.

Enters: answers of heads that saw the same clips in another form, such as frames and optical flow.
Leaves: the answers of both together, as of a head of its own.

Source: two-stream networks, https://arxiv.org/abs/1406.2199, section 2 (average of class scores),
and TSM's test_models.py, whose streams have coefficients of 1 each unless told otherwise.
Choice: class probabilities are averaged, which TSM's script does with --softmax (else it takes
scores before the softmax), as views of a clip are here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_signed
from dsts_pipeline.metrics.predictions import HeadResult, Predictions, align

# Names of heads in metrics.json.
SECOND_STREAM = "second_stream"
TWO_STREAMS = "two_streams"


def fuse(parts: Sequence[Predictions], weights: Sequence[float] = ()) -> Predictions:
    """p(clip) = sum_s w_s p_s(clip) / sum_s w_s, in the order of the first, without routes.

    Args:
        parts: On the same clips, in any order.
        weights: w, positive; none: all are equal.

    Raises:
        DataError: They are of different clips, labels or numbers of classes.
        ValueError: Weights are not as many as parts, or not positive.
    """
    shares = np.asarray(weights or [1.0] * len(parts), np.float64)
    if len(shares) != len(parts) or not len(parts) or (shares <= 0).any():
        raise ValueError(f"{len(parts)} streams with weights {weights}; expected a positive each")
    first = parts[0]
    if any(part.num_classes != first.num_classes for part in parts):
        raise DataError(
            f"streams have {', '.join(str(part.num_classes) for part in parts)} classes; fuse runs "
            "of the same data set"
        )
    stacked = np.stack([align(first, part).probabilities for part in parts]).astype(np.float64)
    mean = np.tensordot(shares / shares.sum(), stacked, axes=1)
    return Predictions(first.clip_ids, first.labels, mean.astype(np.float32))


def fuse_heads(heads: Sequence[HeadResult], weights: Sequence[float] = ()) -> HeadResult:
    """The heads as one, of all their parameters.

    Raises:
        DataError: They are of different clips, labels or numbers of classes.
    """
    return HeadResult(
        title=f"{len(heads)} streams, fused late",
        predictions=fuse([head.predictions for head in heads], weights),
        num_parameters=sum(head.num_parameters for head in heads),
    )


def read_stream(evaluation: Path, head: str, split: str) -> tuple[HeadResult, dict[str, Any]]:
    """A head of an evaluated run, without its routes, and the content of its metrics.json.

    Args:
        evaluation: The folder that `evaluate` wrote.
        split: That it must be of.

    Raises:
        DataError: There is no such run or head, or it was evaluated on another split.
    """
    if not (evaluation / "metrics.json").is_file():
        raise DataError(f"{evaluation}: holds no evaluated run; run `python cli.py evaluate` there")
    metrics = read_signed(evaluation / "metrics.json")
    if head not in metrics["heads"]:
        raise DataError(f"{evaluation}: no head {head!r}, expected one of {list(metrics['heads'])}")
    if metrics["split"] != split:
        raise DataError(
            f"{evaluation}: evaluated on {metrics['split']}, expected {split}; evaluate both runs "
            "on the same split"
        )
    found = metrics["heads"][head]
    answers = Predictions.load(evaluation / "predictions" / f"{head}.npz")
    plain = Predictions(answers.clip_ids, answers.labels, answers.probabilities)
    return HeadResult(found["title"], plain, found["num_parameters"]), metrics
