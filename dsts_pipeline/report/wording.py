"""Sentences and cells: figures of metrics.json as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dsts_pipeline.metrics.accuracy import confusion_matrix, hardest_pairs, per_class_accuracy
from dsts_pipeline.metrics.tables import denominator_sentence
from dsts_pipeline.report.inputs import ReportInputs

MINUS = "\N{MINUS SIGN}"
PERCENT = "\N{NO-BREAK SPACE}%"


def percent(value: float) -> str:
    """A fraction as percent with one digit, without the sign."""
    return f"{100 * value:.1f}"


def signed_points(value: float) -> str:
    """A difference of fractions in percentage points, always with its sign."""
    return f"{round(100 * value, 1) + 0.0:+.1f}".replace("-", MINUS)


def p_value(value: float | None) -> str:
    """A p-value with three digits; a dash where there is none."""
    if value is None:
        return "–"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def bounds(figures: Mapping[str, Any], name: str) -> str:
    """Such as "68.6 to 73.8" for the interval of `name`."""
    return f"{percent(figures[f'{name}_low'])} to {percent(figures[f'{name}_high'])}"


def lead_sentences(inputs: ReportInputs) -> list[str]:
    """What the run found, in a few sentences that claim no more than the intervals carry."""
    metrics, name = inputs.metrics, inputs.main_head
    head = metrics["heads"][name]
    confidence = f"{100 * metrics.get('interval', {}).get('confidence', 0.95):.0f}{PERCENT}"
    sentences = [
        f"{head['title']} names the right class first for {percent(head['top1'])}{PERCENT} of the "
        f"{metrics['evaluated']:,} clips of the {metrics['split']} split ({confidence} interval "
        f"{bounds(head, 'top1')}), and among its first five for {percent(head['top5'])}{PERCENT}. "
        f"Averaged over classes it reaches {percent(head['class_wise'])}{PERCENT}."
    ]
    if head.get("versus_baseline") and inputs.baseline:
        sentences.append(_comparison(head["versus_baseline"], metrics["heads"][inputs.baseline]))
    sentences += [
        f"For comparison, {other['title']} reaches {percent(other['top1'])}{PERCENT} "
        f"({bounds(other, 'top1')})."
        for key, other in inputs.heads
        if key not in (name, inputs.baseline)
    ]
    if head.get("routing"):
        sentences.append(_routing(head["routing"]))
    sentences.append(denominator_sentence(metrics))
    return sentences


def _comparison(versus: Mapping[str, Any], base: Mapping[str, Any]) -> str:
    value, low, high = (versus[f"difference{end}"] for end in ("", "_low", "_high"))
    interval = f"paired interval {signed_points(low)} to {signed_points(high)}"
    change = f"{signed_points(value)} points"
    start = f"Against the baseline ({base['title']}) on the same clips that is {change}"
    if low <= 0 <= high:
        return f"{start} ({interval}): no more than the choice of test clips alone can explain."
    return f"{start} ({interval})."


def _routing(routing: Mapping[str, Any]) -> str:
    layers, num_neurons = routing["layers"], routing["num_neurons"]
    # exp(entropy): as many evenly used neurons would give the same entropy.
    busy = " / ".join(f"{np.exp(layer['entropy']):.1f}" for layer in layers)
    dead, total = sum(layer["dead"] for layer in layers), len(layers) * num_neurons
    idle = "every neuron is used" if dead == 0 else f"no clip chose {dead} of the {total}"
    return (
        f"Of its {num_neurons} neurons per layer, {busy} are effectively in use (exponential of "
        f"the entropy, layer by layer), and {idle}."
    )


def pair_rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    """The class pairs that the main head confuses most, beside the baseline's count."""
    confusion = _confusion(inputs, inputs.main_head)
    baseline = inputs.baseline
    other = None if baseline in (None, inputs.main_head) else _confusion(inputs, str(baseline))
    rows = []
    for pair in hardest_pairs(confusion, inputs.num_confused_pairs):
        i, j = pair.first, pair.second
        rows.append(
            {
                "first": inputs.class_names[i],
                "second": inputs.class_names[j],
                "differs": ", ".join(_differing(inputs, i, j)),
                "forth": pair.first_as_second,
                "back": pair.second_as_first,
                "share": percent(pair.share),
                "baseline": None if other is None else int(other[i, j] + other[j, i]),
            }
        )
    return rows


def _differing(inputs: ReportInputs, first: int, second: int) -> list[str]:
    if not inputs.attributes:
        return []
    values = zip(inputs.attributes[first], inputs.attributes[second], strict=True)
    return [
        f"{name} ({one} / {two})"
        for name, (one, two) in zip(inputs.attribute_names, values, strict=True)
        if one != two
    ]


def _confusion(inputs: ReportInputs, name: str) -> np.ndarray:
    predictions = inputs.predictions[name]
    return confusion_matrix(predictions.labels, predictions.predicted, predictions.num_classes)


def class_rows(inputs: ReportInputs) -> list[dict[str, Any]]:
    """Per class: number of clips and each head's accuracy, "" where the class has no clip."""
    num_classes = len(inputs.class_names)
    columns = []
    for name, _ in inputs.heads:
        predictions = inputs.predictions[name]
        hits = predictions.predicted == predictions.labels
        columns.append(per_class_accuracy(hits, predictions.labels, num_classes))
    counts = np.bincount(inputs.predictions[inputs.main_head].labels, minlength=num_classes)
    return [
        {
            "number": index + 1,
            "name": inputs.class_names[index],
            "count": int(counts[index]),
            "accuracies": ["" if np.isnan(c[index]) else percent(c[index]) for c in columns],
        }
        for index in range(num_classes)
    ]
