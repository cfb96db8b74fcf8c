"""What a model answers on clips, straight from their videos, in all views that evaluation takes.

Enters: an `EndToEnd` model, clips, a plan of views. Leaves: class probabilities, a row per view.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dsts_pipeline.base.progress import track
from dsts_pipeline.extract.frames.decode_pool import DecodePool
from dsts_pipeline.extract.frames.views import Row, ViewPlan
from dsts_pipeline.learn.end_to_end.model import EndToEnd


@dataclass
class Answers:
    """Rows are views; those of a clip are neighbours.

    Attributes:
        clip_ids, labels: Of each row.
        probabilities: float32 `[n, K]`.
        failures: Clips that could not be decoded, with the reason.
    """

    clip_ids: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    probabilities: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))
    failures: dict[str, str] = field(default_factory=dict)


@torch.no_grad()
def answer_clips(
    model: EndToEnd,
    plan: ViewPlan,
    clips: Sequence[int],
    pool: DecodePool,
    *,
    batch_size: int,
    title: str = "score",
) -> Answers:
    """Run `model`, in evaluation mode, over the views of `clips`.

    Args:
        plan: Says how many views a clip of its split has, and which.
        clips: Numbers in the plan's index.
        batch_size: Views at a time, at most (one clip's views are never split).
    """
    was_training, device = model.training, model.backbone.device
    model.eval()
    found, parts = Answers(), []
    with track(title, len(clips)) as progress:
        for rows, frames in _batches(plan, clips, pool, batch_size, found):
            parts.append(model(frames.to(device)).float().softmax(dim=1).cpu().numpy())
            found.clip_ids += [plan.index.clips[row.clip].id for row in rows]
            found.labels += [row.label for row in rows]
            progress.advance(len({row.clip for row in rows}))
    model.train(was_training)
    if parts:
        found.probabilities = np.concatenate(parts)
    return found


def _batches(
    plan: ViewPlan, clips: Sequence[int], pool: DecodePool, batch_size: int, found: Answers
) -> Iterator[tuple[list[Row], Tensor]]:
    wanted = [
        [plan.row(n, view) for view in range(plan.views.count(plan.index.clips[n].split))]
        for n in clips
    ]
    rows: list[Row] = []
    frames: list[np.ndarray] = []
    answers = pool.run(plan.job(of_clip) for of_clip in wanted)
    for of_clip, answer in zip(wanted, answers, strict=True):
        if answer.frames is None:
            found.failures[plan.index.clips[of_clip[0].clip].id] = answer.reason
            continue
        if rows and len(rows) + len(of_clip) > batch_size:
            yield rows, torch.from_numpy(np.concatenate(frames))
            rows, frames = [], []
        rows += of_clip
        frames.append(answer.frames)
    if rows:
        yield rows, torch.from_numpy(np.concatenate(frames))
