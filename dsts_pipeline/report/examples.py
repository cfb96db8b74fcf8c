"""Neuron gallery: previews of the clips that each neuron was chosen for.

Enters: predictions with routing, and the page's previews.
Leaves: per layer and neuron a few previews.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.metrics.accuracy import confusion_matrix
from dsts_pipeline.metrics.predictions import Predictions, align
from dsts_pipeline.metrics.routing import class_by_neuron
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.previews import Preview, Previews

Gallery = tuple[tuple[tuple[Preview, ...], ...], ...]  # [layer][neuron] -> previews


def build_gallery(
    predictions: Predictions, num_neurons: int, previews: Previews, *, num_clips: int = 4
) -> Gallery:
    """Previews of `num_clips` clips per neuron and layer.

    A clip that can't be read is shown with the reason, not left out.
    """
    assert predictions.neurons is not None
    return tuple(
        tuple(
            tuple(
                previews.of(row) for row in typical_rows(predictions, column == neuron, num_clips)
            )
            for neuron in range(num_neurons)
        )
        for column in predictions.neurons.T
    )


def typical_rows(predictions: Predictions, chosen: np.ndarray, limit: int) -> Sequence[int]:
    """Rows of the surest clip of each class that a neuron serves, its most frequent class first.

    When the classes are fewer than `limit`, their second surest clips follow, and so on.
    """
    rows = np.flatnonzero(chosen)
    sureness = predictions.probabilities[rows].max(axis=1)
    order = rows[np.argsort(-sureness, kind="stable")]
    labels = predictions.labels[order]
    counts = np.bincount(labels, minlength=predictions.num_classes)
    turn = np.zeros(len(order), np.int64)
    for label in np.unique(labels):
        turn[labels == label] = np.arange(counts[label])
    return [int(row) for row in order[np.lexsort((labels, -counts[labels], turn))][:limit]]


# ---- ------------------------------------------------------------------------------------------
# Wrong answers one by one: what the head said, and what in its routing speaks for that answer.
#
# Enters: the main head's predictions (and the baseline's). Leaves: one `Mistake` a clip, plain
# texts and fractions. "Why" is what can be read off, not an explanation of the network: which
# neurons the clip went through, which classes these serve, and how often the two classes are
# confused anyway.

TOP = 5
NUM_NEAREST = 3


@dataclass(frozen=True)
class Candidate:
    """One of the five likeliest classes."""

    name: str
    probability: float
    is_true: bool


@dataclass(frozen=True)
class Step:
    """One layer of a clip's route.

    `of_truth` and `of_answer` are the shares of these classes' clips that take the same neuron;
    `temporal_share` is that of its channels, None where there are no gates.
    """

    neuron: int
    of_truth: float
    of_answer: float
    temporal_share: float | None


@dataclass(frozen=True)
class Mistake:
    """One clip that was taken for another class."""

    preview: Preview
    truth: str
    answer: str
    rank: int
    candidates: tuple[Candidate, ...]
    route: tuple[Step, ...]
    nearest: tuple[tuple[str, int], ...]
    same: int
    reverse: int
    baseline: str


def find_mistakes(inputs: ReportInputs, previews: Previews, limit: int) -> list[Mistake]:
    """The `limit` surest of the main head's wrong answers, surest first."""
    answers = inputs.predictions[inputs.main_head]
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    order = np.argsort(-answers.probabilities[wrong].max(axis=1), kind="stable")
    counts = confusion_matrix(answers.labels, answers.predicted, answers.num_classes)
    shares, other = _shares(inputs, answers), _baseline(inputs, answers)
    mistakes = []
    for row in (int(row) for row in wrong[order][:limit]):
        truth, answer = int(answers.labels[row]), int(answers.predicted[row])
        said = np.argsort(-answers.probabilities[row], kind="stable")
        mistakes.append(
            Mistake(
                preview=previews.of(row),
                truth=inputs.class_names[truth],
                answer=inputs.class_names[answer],
                rank=int(np.flatnonzero(said == truth)[0]) + 1,
                candidates=_candidates(inputs, answers.probabilities[row], said[:TOP], truth),
                route=_route(inputs, answers, row, shares),
                nearest=_nearest(inputs, counts[truth], truth),
                same=int(counts[truth, answer]),
                reverse=int(counts[answer, truth]),
                baseline="" if other is None else inputs.class_names[other.predicted[row]],
            )
        )
    return mistakes


def _candidates(
    inputs: ReportInputs, probabilities: np.ndarray, order: np.ndarray, truth: int
) -> tuple[Candidate, ...]:
    return tuple(
        Candidate(inputs.class_names[k], float(probabilities[k]), int(k) == truth) for k in order
    )


def _nearest(inputs: ReportInputs, row: np.ndarray, truth: int) -> tuple[tuple[str, int], ...]:
    others = [k for k in np.argsort(-row, kind="stable") if k != truth and row[k]]
    return tuple((inputs.class_names[k], int(row[k])) for k in others[:NUM_NEAREST])


def _shares(inputs: ReportInputs, answers: Predictions) -> np.ndarray | None:
    """Share of each class's clips per neuron, `[L, K, N]`; None where the head does not route."""
    routing = _routing(inputs)
    if not routing or answers.neurons is None:
        return None
    counts = class_by_neuron(*answers.routes(), answers.num_classes, routing["num_neurons"])
    return counts / np.maximum(counts.sum(axis=2, keepdims=True), 1)


def _routing(inputs: ReportInputs) -> Mapping[str, Any] | None:
    return inputs.metrics["heads"][inputs.main_head].get("routing")


def _route(
    inputs: ReportInputs, answers: Predictions, row: int, shares: np.ndarray | None
) -> tuple[Step, ...]:
    routing = _routing(inputs)
    if shares is None or answers.neurons is None or not routing:
        return ()
    truth, answer = answers.labels[row], answers.predicted[row]
    steps = []
    for layer, neuron in enumerate(answers.neurons[row]):
        gates = routing["layers"][layer].get("temporal_share")
        steps.append(
            Step(
                int(neuron) + 1,
                float(shares[layer, truth, neuron]),
                float(shares[layer, answer, neuron]),
                None if gates is None else float(gates[neuron]),
            )
        )
    return tuple(steps)


def _baseline(inputs: ReportInputs, answers: Predictions) -> Predictions | None:
    if inputs.baseline in (None, inputs.main_head):
        return None
    return align(answers, inputs.predictions[str(inputs.baseline)])


# ---- What the confusion explorer lists: every clip with each head's answer, some with a preview.


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
