"""Single clips that the page shows: right and wrong ones at its top, and those of each neuron, of
each wrong answer, of each cell of the confusion matrix.

Enters: `ReportInputs` and the page's previews. Leaves: plain records and lists for its templates
and its script.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dsts_pipeline.metrics.predictions import Predictions, align
from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.previews import Preview, Previews

# ---- the first pictures: clips answered right and wrong -----------------------------------------


@dataclass(frozen=True)
class Example:
    """A clip with its class and the answer; `route` are the neurons it went through, from 1."""

    preview: Preview
    truth: str
    answer: str
    probability: float
    route: tuple[int, ...]

    @property
    def right(self) -> bool:
        """Whether the answer is the clip's class."""
        return self.truth == self.answer


def pick_examples(inputs: ReportInputs, previews: Previews, num_clips: int) -> list[Example]:
    """Right and wrong answers in turn, `num_clips` of each: the surest, each of another class.

    Classes come a second time where there are fewer.
    """
    answers = inputs.answers
    is_right = answers.predicted == answers.labels
    right, wrong = (_surest_by_class(answers, np.flatnonzero(one)) for one in (is_right, ~is_right))
    picked = [
        row
        for place in range(num_clips)
        for row in (*right[place : place + 1], *wrong[place : place + 1])
    ]
    return [
        Example(
            preview=previews.large(row),
            truth=inputs.class_names[answers.labels[row]],
            answer=inputs.class_names[answers.predicted[row]],
            probability=float(answers.probabilities[row].max()),
            route=route_of(inputs, row),
        )
        for row in picked
    ]


def _surest_by_class(answers: Predictions, rows: np.ndarray) -> list[int]:
    """`rows`, the surest of each class first, then the second surest of each, and so on."""
    order = rows[np.argsort(-answers.probabilities[rows].max(axis=1), kind="stable")]
    seen: Counter[int] = Counter()
    turns = []
    for label in answers.labels[order].tolist():
        turns.append(seen[label])
        seen[label] += 1
    return [int(row) for row in order[np.argsort(turns, kind="stable")]]


def route_of(inputs: ReportInputs, row: int) -> tuple[int, ...]:
    """The main head's neurons for a clip's first view, from 1; empty where there is no choice."""
    neurons = inputs.answers.neurons if inputs.num_neurons else None
    return () if neurons is None else tuple(int(n) + 1 for n in neurons[row])


# ---- neuron gallery: previews of the clips that each neuron was chosen for ----------------------


@dataclass(frozen=True)
class Neuron:
    """A neuron, counted from 1, and clips that chose it."""

    number: int
    clips: tuple[Preview, ...]


Gallery = tuple[tuple[Neuron, ...], ...]  # by layer


def build_gallery(
    predictions: Predictions, num_neurons: int, previews: Previews, *, num_clips: int
) -> Gallery:
    """Previews of `num_clips` clips per neuron and layer.

    A clip that can't be read is shown with the reason, not left out.
    """
    assert predictions.neurons is not None
    return tuple(
        tuple(
            Neuron(
                neuron + 1,
                tuple(
                    previews.of(row)
                    for row in typical_rows(predictions, column == neuron, num_clips)
                ),
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


# ---- wrong answers one by one -------------------------------------------------------------------
#
# What in its routing speaks for the head's answer can be read off, but is no explanation of the
# network: which neurons the clip went through, which classes these serve, and how often the two
# classes are confused anyway.

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
    """One clip that was taken for another class.

    Args:
        rank: of the true class among all, from 1.
        candidates: the likeliest classes.
        route, neurons: empty where the head does not route.
        nearest: (class, clips) that the true class is most often taken for.
        same, reverse: clips of this confusion, and of that the other way round.
        baseline: the class that the baseline names; empty without one.
    """

    preview: Preview
    truth: str
    answer: str
    rank: int
    candidates: tuple[Candidate, ...]
    route: tuple[Step, ...]
    neurons: tuple[int, ...]
    nearest: tuple[tuple[str, int], ...]
    same: int
    reverse: int
    baseline: str


def find_mistakes(inputs: ReportInputs, previews: Previews, limit: int) -> list[Mistake]:
    """The `limit` surest of the main head's wrong answers, surest first."""
    answers = inputs.answers
    names = inputs.class_names
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    order = np.argsort(-answers.probabilities[wrong].max(axis=1), kind="stable")
    counts = inputs.confusion(inputs.main_head)
    clips = inputs.neuron_counts()
    shares = None if clips is None else clips / np.maximum(clips.sum(axis=2, keepdims=True), 1)
    other = None
    if inputs.baseline not in (None, inputs.main_head):
        other = align(answers, inputs.predictions[str(inputs.baseline)])
    mistakes = []
    for row in (int(row) for row in wrong[order][:limit]):
        truth = int(answers.labels[row])
        answer = int(answers.predicted[row])
        probabilities = answers.probabilities[row]
        said = np.argsort(-probabilities, kind="stable")
        nearest = [k for k in np.argsort(-counts[truth], kind="stable") if k != truth]
        mistakes.append(
            Mistake(
                preview=previews.large(row),
                truth=names[truth],
                answer=names[answer],
                rank=int(np.flatnonzero(said == truth)[0]) + 1,
                candidates=tuple(
                    Candidate(names[k], float(probabilities[k]), int(k) == truth)
                    for k in said[:TOP]
                ),
                route=() if shares is None else _route(inputs, row, shares),
                neurons=route_of(inputs, row),
                nearest=tuple(
                    (names[k], int(counts[truth, k]))
                    for k in nearest[:NUM_NEAREST]
                    if counts[truth, k]
                ),
                same=int(counts[truth, answer]),
                reverse=int(counts[answer, truth]),
                baseline="" if other is None else names[other.predicted[row]],
            )
        )
    return mistakes


def _route(inputs: ReportInputs, row: int, shares: np.ndarray) -> tuple[Step, ...]:
    """`shares`: of each class's clips per neuron, `[L, K, N]`."""
    answers = inputs.answers
    assert answers.neurons is not None
    steps = []
    for layer, neuron in enumerate(answers.neurons[row]):
        of_truth = float(shares[layer, answers.labels[row], neuron])
        of_answer = float(shares[layer, answers.predicted[row], neuron])
        gates = inputs.main["routing"]["layers"][layer].get("temporal_share")
        steps.append(
            Step(int(neuron) + 1, of_truth, of_answer, None if gates is None else gates[neuron])
        )
    return tuple(steps)


# ---- confusion explorer: every clip with each head's answer, some with a preview ----------------


def explorer_data(inputs: ReportInputs, previews: Previews) -> dict[str, Any]:
    """Plain lists for the page's script; `strips` has the number of a preview by clip."""
    heads = [_answers(inputs, name) for name, _ in inputs.heads]
    if all(head["clips"] == heads[0]["clips"] for head in heads):
        for head in heads[1:]:  # the usual case: say the clips once
            head["clips"] = None
            head["labels"] = None
    return {
        "classes": list(inputs.class_names),
        "heads": heads,
        "strips": previews.strip_numbers(),
    }


def _answers(inputs: ReportInputs, name: str) -> dict[str, Any]:
    answers = inputs.predictions[name]
    neurons = answers.neurons if inputs.chooses(name) else None
    sureness = answers.probabilities.max(axis=1)
    return {
        "clips": list(answers.clip_ids),
        "labels": answers.labels.tolist(),
        "predicted": answers.predicted.tolist(),
        "sureness": [round(float(value), 3) for value in sureness],
        "neurons": None if neurons is None else (neurons + 1).tolist(),
    }


def preview_cells(answers: Predictions, previews: Previews, num_clips: int) -> None:
    """Render previews of each cell's `num_clips` surest clips, wrong answers first."""
    sureness = answers.probabilities.max(axis=1)
    right = answers.predicted == answers.labels
    used: Counter[tuple[int, int]] = Counter()
    for row in np.lexsort((-sureness, right)):
        if previews.full:
            return
        cell = (int(answers.labels[row]), int(answers.predicted[row]))
        used[cell] += 1
        if used[cell] <= num_clips:
            previews.of(int(row))


def worst_cell(inputs: ReportInputs) -> tuple[int, int]:
    """Row and column of the main head's most frequent confusion; (0, 0) where there is none."""
    counts = inputs.confusion(inputs.main_head)
    np.fill_diagonal(counts, 0)
    row, column = np.unravel_index(counts.argmax(), counts.shape)
    return int(row), int(column)
