"""What is shown of many trainings, and how they are shared out to processes."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.learn import ablation as display
from dsts_pipeline.learn.ablation import (
    Display,
    RunPlan,
    cost_of,
    describe,
    live_table,
    share_out,
    show_ablation,
)
from dsts_pipeline.learn.together import Status
from tests.learn.recipes import recipe

HEAD = {"num_neurons": 3, "num_layers": 3}


def status(name="full", seed=0, done=0.5, **values):
    given = {"epoch": 2, "num_epochs": 4, "loss": 1.5, "accuracy": 0.25, "heldout_accuracy": 0.5}
    return Status(name=name, seed=seed, done=done, **{**given, **values})


def plan(name="full", seed=0, kind="dsts", udl=True, **head):
    chosen = recipe(num_epochs=2, seed=seed, udl=udl)
    return RunPlan(name, kind, HeadSettings(**HEAD | head), chosen)


def test_means_over_seeds_in_words():
    text = describe("full", [status(loss=1.0), status(seed=1, loss=2.0, heldout_accuracy=0.7)])
    assert text == "full loss 1.50 acc 25 % held-out 60 %"
    failed = [status(), status(seed=1, loss=9.0, failure="diverged: x")]
    assert describe("a", failed) == "a loss 1.50 acc 25 % held-out 50 % (1 diverged)"


def test_live_table_has_a_row_per_variant():
    shown = Display(4, lambda shown: None)
    shown.tell([status(), status(seed=1), status("other", done=0.0, heldout_accuracy=None)])
    shown.tell([status("failed", failure="diverged: x")])
    assert shown.done == pytest.approx((0.5 + 0.5 + 0.0 + 1.0) / 4)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(live_table(shown))
    text = console.export_text()
    row = next(line for line in text.splitlines() if "│ full" in line)
    assert "2/4" in row and "1.500" in row and "25.0 %" in row and "50.0 %" in row
    assert "1 diverged" in text and "50 %" in text.splitlines()[-2]


def test_time_left_counts_this_run_only(monkeypatch):
    clock = iter([0.0, 60.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    shown = Display(1, lambda shown: None)
    shown.tell([status(done=0.6)])
    shown.tell([status(done=0.7)])
    assert shown.time_left() == "3 min left"


def test_time_left_is_known_from_the_first_word_on(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    estimates = {("full", 0): 300.0, ("full", 1): 300.0, ("plain", 0): 100.0}
    shown = Display(3, lambda shown: None, estimates, num_jobs=2)
    told = "about 6 min of training by 2 processes: full 2 x 5 min; plain 1 x 2 min"
    assert shown.describe_estimates() == told
    shown.tell([status(done=0.0), status(seed=1, done=0.0), status("plain", done=0.0)])
    assert shown.time_left() == "6 min left"  # 700 s by two processes
    assert (shown.left_of("full"), shown.left_of("plain")) == ("5 min", "50 s")
    now[0] = 360.0  # twice as slow as was expected
    shown.tell([status(done=0.5), status(seed=1, done=0.5), status("plain", done=0.6)])
    assert shown.done == pytest.approx(0.514, abs=1e-3)
    assert shown.time_left() == "6 min left" and shown.seconds_left() > 325


def test_work_of_before_counts_in_no_pace(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    shown = Display(1, lambda shown: None, {("full", 0): 2000.0})
    shown.tell([status(done=0.5)])
    assert shown.seconds_left() == pytest.approx(1000.0)
    now[0] = 200.0
    shown.tell([status(done=0.6)])
    assert shown.seconds_left() == pytest.approx(800.0)


def test_a_line_soon_then_one_a_minute_and_one_at_the_end(monkeypatch):
    told = Console(width=200, record=True, file=io.StringIO())
    now = [0.0]
    monkeypatch.setattr(display, "console", told)
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    with show_ablation(1) as shown:
        for second in range(0, 130, 10):
            now[0] = float(second)
            shown.tell([status(done=second / 200)])
        for _ in range(3):
            shown.tell([status(done=1.0, finished=True)])
    lines = told.export_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("ablate: 5 % of 1 trainings, 3 min left; full loss 1.50")
    assert lines[1].startswith("ablate: 35 % of 1 trainings, 2 min left")
    assert lines[2].startswith("ablate: 100 %")


def test_work_is_shared_out_evenly_and_once():
    plans = [plan(seed=seed, udl=udl) for seed in range(3) for udl in (True, False)]
    plans += [
        plan("all", synapse=False),
        plan("deep", num_layers=5),
        plan("probe", 0, "linear_probe"),
    ]
    shares = share_out(plans, 2)
    assert sorted(map(repr, plans)) == sorted(repr(p) for share in shares for p in share)
    loads = [sum(map(cost_of, share)) for share in shares]
    assert max(loads) < 1.3 * min(loads)
    assert cost_of(plan("all", synapse=False)) > cost_of(plan()) > cost_of(plan(udl=False))
    assert len(share_out(plans[:1], 4)) == 1


def test_of_many_variants_the_longest_are_named():
    estimates = {(name, 0): 10.0 * place for place, name in enumerate("abcdef", start=1)}
    told = Display(6, lambda shown: None, estimates).describe_estimates()
    named = "f 1 x 60 s; e 1 x 50 s; d 1 x 40 s; c 1 x 30 s"
    assert told == f"about 4 min of training: {named}; 2 more, 30 s together"
