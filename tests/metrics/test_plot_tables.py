"""Tables for `dvc plots show`: the same figures as metrics.json, names quoted."""

from __future__ import annotations

import csv
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import vl_convert
from ruamel.yaml import YAML

from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    assemble_metrics,
    assemble_routing,
    plot_tables,
)
from tests.metrics.examples import sure_answers

ROOT = Path(__file__).resolve().parents[2]
LABELS, GIVEN = [0, 0, 1, 3], [0, 1, 1, 3]
CLASSES = ("a, with a comma", 'b "quoted"', "none", "<i>d</i>")


HARMFUL = ("=HYPERLINK(1)", "@b", "'c", "-d;=e")


def tables(class_names=CLASSES):
    neurons = np.array([[0, 1], [1, 1], [2, 1], [0, 1]])
    heads = {
        "linear_probe": HeadResult("probe", sure_answers(LABELS, [0, 0, 0, 0], 4), 1),
        "dsts": HeadResult("DSTS", sure_answers(LABELS, GIVEN, 4, neurons=neurons), 2, 3),
    }
    shared = {"class_names": class_names, "bootstrap": Bootstrap(100)}
    metrics = assemble_metrics(
        heads, denominators=Denominators(4), split="test", store="s", **shared
    )
    routing = assemble_routing(
        heads, how=EvaluateSettings(num_permutations=20, temporal_need="none"), **shared
    )
    texts = plot_tables(metrics, {n: h.predictions for n, h in heads.items()}, routing)
    return metrics, {name: list(csv.DictReader(io.StringIO(text))) for name, text in texts.items()}


def test_rows_hold_the_figures_of_metrics_json():
    metrics, found = tables()
    top1 = [row for row in found["heads.csv"] if row["figure"] == "top1"]
    assert [(row["head"], float(row["value"])) for row in top1] == [
        ("linear_probe", 0.5),
        ("dsts", 0.75),
    ]
    assert float(top1[1]["low"]) == metrics["heads"]["dsts"]["top1_low"]
    classes = [row for row in found["per_class.csv"] if row["head"] == "dsts"]
    assert [row["class"] for row in classes] == [CLASSES[0], CLASSES[1], CLASSES[3]]
    assert [(row["clips"], row["right"]) for row in classes] == [("2", "1"), ("1", "1"), ("1", "1")]
    assert len(found["confusion/dsts.csv"]) == 4
    assert found["confusion/dsts.csv"][1] == {"actual": CLASSES[0], "predicted": CLASSES[1]}
    cells = [row for row in found["confusion_by_head.csv"] if row["head"] == "linear_probe"]
    assert [row["clips"] for row in cells] == ["2", "1", "1"]
    assert sum(int(row["clips"]) for row in found["reliability.csv"] if row["head"] == "dsts") == 4
    second = [row for row in found["class_by_neuron.csv"] if row["layer"] == "2"]
    assert {row["neuron"] for row in second} == {"2"} and sum(int(r["views"]) for r in second) == 4


def plots():
    entries = YAML(typ="safe", pure=True).load((ROOT / "dvc.yaml").read_text())["plots"]
    return [
        (name, plot, Path(file).relative_to("outputs/evaluation/plots").as_posix(), column)
        for entry in entries
        for name, plot in entry.items()
        for file, column in plot["y"].items()
        if "evaluation" in file
    ]


@pytest.mark.parametrize(("name", "plot", "file", "column"), plots(), ids=lambda v: str(v)[:20])
def test_declared_plots_name_columns_that_are_written(name, plot, file, column):
    rows = tables()[1][file]
    assert {plot["x"], column} <= set(rows[0])
    template = ROOT / ".dvc/plots" / f"{plot['template']}.json"
    if template.exists():  # else one of DVC's own
        made = {"x", "y", "number", "rev"}
        assert fields_of(json.loads(template.read_text())) <= set(rows[0]) | made


def test_class_names_are_no_formulas_in_any_table():
    for name, rows in tables(HARMFUL)[1].items():
        for row in rows:
            for cell in row.values():
                assert cell[0] not in "=+@" and ";=" not in cell, (name, cell)
                assert cell[0] != "-" or float(cell)


@pytest.mark.parametrize(("name", "plot", "file", "column"), plots(), ids=lambda v: str(v)[:20])
def test_plots_show_the_names_as_they_are(name, plot, file, column):
    """Drawn as DVC does: rows and words put into the template."""
    template = json.loads((ROOT / ".dvc/plots" / f"{plot['template']}.json").read_text())
    template["data"]["values"] = [row | {"rev": "workspace"} for row in tables(HARMFUL)[1][file]]
    words = set(re.findall(r">([^<>]+)<", vl_convert.vegalite_to_svg(json.dumps(template))))
    shown = {html.unescape(word) for word in words}
    if column not in ("class", "actual"):
        return
    assert {*HARMFUL[:2], HARMFUL[3]} <= shown  # the third class has no clips
    assert not [word for word in shown if word.startswith(("'=", "'@", "'-"))]


def fields_of(spec):
    if isinstance(spec, dict):
        own = {spec["field"]} if isinstance(spec.get("field"), str) else set()
        return own.union(*map(fields_of, spec.values()))
    return set().union(*map(fields_of, spec)) if isinstance(spec, list) else set()
