"""docs/results-format.md names every field that is written, and its example runs."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.metrics import (
    Bootstrap,
    Denominators,
    HeadResult,
    assemble_metrics,
    assemble_routing,
    average_views,
    count_views,
    plot_tables,
)
from tests.metrics.examples import random_answers, sure_answers

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "results-format.md").read_text()
NAMED = set(re.findall(r"`([\w/]+)`", PAGE))
NAMES = {"baseline", "dsts", "takeoff", "class"}  # of heads and groupings, not of fields
BOUNDS = re.compile(r"_(low|high)$")


def written():
    """metrics.json and routing.json of heads with all that can be measured, two views a clip."""
    probabilities, labels = random_answers(0, 40, 4)
    ids = [f"c{clip}" for clip in range(40) for _ in range(2)]
    neurons = np.random.default_rng(0).integers(3, size=(80, 2))
    dsts = average_views(ids, labels.repeat(2), probabilities.repeat(2, axis=0), neurons)
    base = average_views(ids, labels.repeat(2), random_answers(1, 40, 4)[0].repeat(2, axis=0))
    shares = [[0.1, 0.5, 0.9]] * 2
    features = np.random.default_rng(1).standard_normal((40, 5))
    heads = {
        "baseline": HeadResult("base", base, 1),
        "dsts": HeadResult("DSTS", dsts, 2, 3, shares, features, base.probabilities),
    }
    shared = {
        "class_names": list("abcd"),
        "attribute_names": ["takeoff"],
        "attributes": [["x"], ["x"], ["y"], ["y"]],
        "bootstrap": Bootstrap(100),
    }
    views = count_views(ids, [{"id": "c0"}]).describe()
    metrics = assemble_metrics(
        heads, denominators=Denominators(40), split="test", store="s", views=views, **shared
    )
    return (
        heads,
        metrics,
        assemble_routing(
            heads, how=EvaluateSettings(num_permutations=20, temporal_need="shuffle"), **shared
        ),
    )


def fields(value):
    if isinstance(value, dict):
        return set(value).union(*map(fields, value.values()))
    return set().union(*map(fields, value)) if isinstance(value, list) else set()


def is_named(field):
    """A bound is where its figure is."""
    return field in NAMED or BOUNDS.sub("", field) in NAMED


@pytest.mark.parametrize("number", [1, 2], ids=["metrics.json", "routing.json"])
def test_every_field_is_explained(number):
    missing = {name for name in fields(written()[number]) - NAMES if not is_named(name)}
    assert not missing, "name them in docs/results-format.md"


def test_every_table_and_column_is_listed():
    heads, metrics, routing = written()
    tables = plot_tables(metrics, {n: head.predictions for n, head in heads.items()}, routing)
    for name, text in tables.items():
        listed = re.sub(r"/(baseline|dsts)\.csv", "/HEAD.csv", name)
        columns = text.split("\n", 1)[0].split(",")
        assert any(
            line.startswith(f"| `{listed}` |") and line.rstrip(" |").endswith(", ".join(columns))
            for line in PAGE.splitlines()
        ), f"{listed}: {columns}"


def test_the_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run, answers in (("a", [0, 1, 2, 2]), ("b", [0, 1, 0, 0])):
        file = Path(run, "outputs/evaluation/predictions/dsts.npz")
        sure_answers([0, 1, 2, 2], answers, 3).save(file)
    (source,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {}
    exec(source, names)
    assert names["found"]["top1"]["difference"] == 0.5 and names["found"]["mcnemar"]["p"] == 0.5
