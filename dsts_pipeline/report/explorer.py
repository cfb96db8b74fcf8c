"""What the confusion explorer lists: every clip with each head's answer, some with a preview."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from dsts_pipeline.metrics.confusion import confusion_matrix
from dsts_pipeline.metrics.predictions import Predictions
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.previews import Previews


def explorer_data(inputs: ReportInputs, previews: Previews) -> dict[str, Any]:
    """Plain lists for the page's script; `strips` belongs to the main head's clips."""
    main = inputs.main_head
    names = [name for name, _ in inputs.heads]
    heads = [_answers(inputs.predictions[name]) for name in names]
    if all(head["clips"] == heads[0]["clips"] for head in heads):
        for head in heads[1:]:  # the usual case: say the clips once
            head["clips"], head["labels"] = None, None
    return {
        "classes": list(inputs.class_names),
        "heads": heads,
        "clips": list(inputs.predictions[main].clip_ids),
        "strips": previews.strip_numbers(),
    }


def preview_cells(answers: Predictions, previews: Previews, num_clips: int) -> None:
    """Render previews of each cell's `num_clips` surest clips, wrong answers first."""
    sureness = answers.probabilities.max(axis=1)
    right = answers.predicted == answers.labels
    used: Counter[tuple[int, int]] = Counter()
    for row in np.lexsort((-sureness, right)):
        cell = (int(answers.labels[row]), int(answers.predicted[row]))
        used[cell] += 1
        if used[cell] <= num_clips and not previews.full:
            previews.of(int(row))


def worst_cell(inputs: ReportInputs) -> tuple[int, int]:
    """Row and column of the main head's most frequent confusion; (0, 0) where there is none."""
    answers = inputs.predictions[inputs.main_head]
    counts = confusion_matrix(answers.labels, answers.predicted, answers.num_classes)
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return (int(row), int(column)) if counts.any() else (0, 0)


def _answers(answers: Predictions) -> dict[str, Any]:
    sureness = answers.probabilities.max(axis=1)
    return {
        "clips": list(answers.clip_ids),
        "labels": answers.labels.tolist(),
        "predicted": answers.predicted.tolist(),
        "sureness": [round(float(value), 3) for value in sureness],
        "neurons": None if answers.neurons is None else (answers.neurons + 1).tolist(),
    }
