"""Tables of the routing analysis: what neurons serve beside chance, need of time, hard pairs.

Enters: the content of routing.json (docs/results-format.md). Leaves: tables of the main head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsts_pipeline.report.inputs import ReportInputs
from dsts_pipeline.report.tables.results import difference
from dsts_pipeline.report.tables.table import Cell, Row, Table, cells
from dsts_pipeline.report.wording import MINUS, p_value, percent


def routing_tables(inputs: ReportInputs) -> dict[str, Table]:
    """Tables by name; none where routing.json has nothing about the main head."""
    head = inputs.routing_of_main
    if head is None:
        return {}
    tables = [_information(head), _similarity(head), _gates(head), _views(head)]
    pairs = head.get("hard_pairs")
    if pairs:
        tables += [_pairs(inputs, pairs, "separated"), _pairs(inputs, pairs, "merged")]
    return {table.name: table for table in tables if table.rows}


def _information(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                group,
                f"{found['nmi']:.3f}",
                Cell(f"{found['nmi_null']:.3f}", f"up to {found['nmi_null_high']:.3f}"),
                f"{found['adjusted']:.3f}",
                p_value(found["p"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        for group, found in sorted(
            layer["information"].items(), key=lambda item: item[0] != "class"
        )
    ]
    return Table(
        name="information",
        caption="What the choice of neuron tells of class and attributes: normalised mutual "
        "information (0: nothing, 1: each tells the other), the same for routes dealt to clips at "
        "random (mean, 95 % point), the information adjusted for chance (0 on average for random "
        "routes), and p by permutation.",
        columns=("layer", "of", "NMI", "by chance", "adjusted", "p"),
        rows=tuple(rows),
        num_names=2,
        kind="dense",
    )


def _similarity(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                _cosine(found["within"]),
                _cosine(found["across"]),
                Cell(_cosine(found["within_null"]), f"up to {_cosine(found['within_null_high'])}"),
                p_value(found["p"]),
                " / ".join(_cosine(value, 2) for value in found["per_neuron"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        if (found := layer.get("similarity"))
    ]
    return Table(
        name="similarity",
        caption="How alike the clips of one neuron are: mean cosine of their centred, pooled "
        "feature maps, within neurons and across them, for routes dealt at random (mean, 95 % "
        "point), and neuron by neuron.",
        columns=("layer", "within", "across", "by chance", "p", "neuron by neuron"),
        rows=tuple(rows),
        kind="dense",
    )


def _cosine(value: float | None, num_digits: int = 3) -> str:
    """A dash where there is none: one neuron has no clips across, one clip none within."""
    return "–" if value is None else f"{value:.{num_digits}f}"


def _gates(head: Mapping[str, Any]) -> Table:
    rows = []
    for number, layer in enumerate(head["layers"], start=1):
        gates = layer.get("gates")
        if not gates or gates.get("class_need") is None:
            continue
        found = _signed(gates["rank_correlation"])
        rows.append(Row(cells(f"layer {number}", found, p_value(gates["p"]))))
    return Table(
        name="gates",
        caption="Do gates open to time where the classes need it? Rank correlation, over the "
        "neurons of a layer, of the temporal share of a neuron’s channels with the mean need of "
        "time of the classes that it serves. Need: how much probability of the true class is lost "
        "when a clip’s time steps are put in random order or averaged.",
        columns=("layer", "rank correlation", "p"),
        rows=tuple(rows),
    )


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}".replace("-", MINUS)


def _views(head: Mapping[str, Any]) -> Table:
    rows = [
        Row(
            cells(
                f"layer {number}",
                f"{found['clips']:,}",
                percent(found["changed"]),
                percent(found["pairs_apart"]),
                percent(found["pairs_apart_null"]),
            )
        )
        for number, layer in enumerate(head["layers"], start=1)
        if (found := layer.get("view_changes"))
    ]
    return Table(
        name="view_changes",
        caption="How often the choice changes between views of one clip, percent: clips whose "
        "views do not all take the same neuron, pairs of views that differ, and the same for "
        "views routed without regard to their clip.",
        columns=("layer", "clips", "changed", "pairs apart", "by chance"),
        rows=tuple(rows),
    )


def _pairs(inputs: ReportInputs, found: Mapping[str, Any], kind: str) -> Table:
    base = (inputs.routing or {}).get("baseline")
    name = inputs.metrics["heads"].get(base, {}).get("title", base)
    what = "apart better" if kind == "separated" else "apart worse"
    return Table(
        name=f"pairs_{kind}",
        caption=f"Pairs of classes that the head keeps {what} than {name}: clips of the two that "
        "each confuses, the difference of the shares in percentage points (paired interval), and "
        f"exact McNemar p, corrected by Holm for the {found['num_tested']} pairs that could "
        "differ. Intervals are not adjusted for having picked the most striking pairs.",
        columns=("first", "second", "clips", "baseline", "head", "difference", "p", "p (Holm)"),
        rows=tuple(
            Row(
                cells(
                    *pair["names"],
                    str(pair["clips"]),
                    str(pair["baseline_confused"]),
                    str(pair["head_confused"]),
                    difference(pair),
                    p_value(pair["p"]),
                    p_value(pair["p_holm"]),
                )
            )
            for pair in found[kind][: inputs.num_confused_pairs]
        ),
        num_names=2,
        kind="dense",
    )
