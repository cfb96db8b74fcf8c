"""Which head for new classes: figures of a cross-validation, and the tables made of them."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.claims.document import not_trained
from benchmarks.claims.figures import BOOTSTRAP, Figures
from benchmarks.claims.heads import (
    answer_of_curve,
    best_probe,
    end_to_end_table,
    goal_of_heads,
    heads_table,
    num_comparisons,
    others_above,
    pilots_table,
    tell_narrowest,
    tell_steady,
    ten_against_one,
    trained_deep,
    udl_table,
    verdict_of_head,
    versus_table,
)
from benchmarks.claims.picture import draw_curve
from benchmarks.claims.readme import summary_table
from benchmarks.claims.regimes import BY_NAME, CURVE
from benchmarks.claims.results import as_bits, collect
from dsts_pipeline.base.files import sign, write_json
from dsts_pipeline.metrics.intervals import over_groups, paired_over_folds
from dsts_pipeline.metrics.predictions import Predictions
from tests.feature_store.small_store import FAILURES, make_plan, write_store

NUM_CLIPS, NUM_FOLDS, SEEDS = 47, 3, (0, 1)
KEPT = [position for position in range(NUM_CLIPS) if position not in FAILURES]
GROUPS = [f"player {position % 6}" for position in range(NUM_CLIPS)]
WRONG = {"full": 2, "linear": 9, "attentive": 5, "attentive_positions": 3}
"""Of each fold, how many clips a head gets wrong."""


def crossed(folder):
    """The outputs of a cross-validation whose heads are wrong on the first clips of each fold."""
    store = write_store(folder, make_plan(num_clips=NUM_CLIPS, groups=GROUPS))
    write_json(folder / "outputs/features.json", {"store": str(store.relative_to(folder))})
    variants = {}
    for position, (name, wrong) in enumerate(WRONG.items()):
        runs = []
        for seed in SEEDS:
            parts = []
            for fold in range(NUM_FOLDS):
                rows = [n for n in KEPT if n % 6 % NUM_FOLDS == fold]
                labels = np.zeros(len(rows), np.int64)
                answers = (np.arange(len(rows)) < wrong + seed).astype(np.int64)
                path = f"runs/{name}-{seed}-{fold}.npz"
                (folder / "outputs/ablation/runs").mkdir(parents=True, exist_ok=True)
                Predictions(
                    tuple(f"clip-{n}" for n in rows), labels, np.eye(3, dtype=np.float32)[answers]
                ).save(folder / "outputs/ablation" / path)
                parts.append({"fold": fold, "predictions": path})
                rates = [0.001, 0.002, 0.003]
                parts[-1]["chosen"] = {"train.learning_rate": rates[fold]}
                parts[-1]["tried"] = [
                    {"settings": {"train.learning_rate": rate}, "accuracy": 0.5} for rate in rates
                ]
            row = {"seed": seed, "class_wise": 0.5, "epochs": 1, "best_epoch": 1, "layers": []}
            row |= {"heldout_accuracy": 0.5, "train_seconds": 1.0, "predictions": None}
            runs.append(row | {"folds": parts})
        variants[name] = {"title": name, "table": [], "position": position, "settings": {}}
        variants[name] |= {"num_parameters": 7, "runs": runs}
    settings = {"head": {}, "udl": {}, "train": {}}
    settings["ablate"] = {"variants": [{"name": name} for name in ("other", *WRONG)]}
    content = {"store": "s", "split": "test", "num_clips": len(KEPT), "variants": variants}
    content["provenance"] = {"commit": "c", "settings": settings, "versions": {"torch": "2.x"}}
    content["folds"] = {"num_folds": NUM_FOLDS}
    write_json(folder / "outputs/ablation/results.json", sign(content))
    return folder


@pytest.fixture
def figures(tmp_path):
    regime = BY_NAME["thetis"]
    collect(regime, crossed(tmp_path / "run"), tmp_path)
    return Figures.read(regime, tmp_path)


def test_a_cross_validation_is_compared_clip_by_clip_over_folds_and_groups(figures):
    assert figures.is_cross_validation
    folds, groups = (np.array(figures.content["clips"][key]) for key in ("folds", "groups"))
    sizes = np.bincount(folds)
    assert sizes.tolist() == [14, 16, 15] and set(groups[folds == 0]) == {0, 3}
    found = figures.versus("full", "linear")
    places = np.concatenate([np.arange(size) for size in sizes])
    gained = np.mean([(places < 9 + s) * 1.0 - (places < 2 + s) for s in SEEDS], axis=0)
    by_fold = paired_over_folds(gained, np.full(45, 1 / 45), folds)
    by_group = over_groups(gained, groups, BOOTSTRAP)
    assert found.points == pytest.approx(100 * 21 / 45)
    assert (found.low, found.high) == pytest.approx((100 * by_fold["low"], 100 * by_fold["high"]))
    assert found.clips_low == pytest.approx(100 * by_group["low"])
    assert figures.top1("full") == pytest.approx(100 * (1 - 7.5 / 45))


def test_the_tables_say_who_is_ahead(figures):
    assert best_probe(figures) == "attentive_positions"
    assert best_probe(figures, ("linear", "attentive", "attentive_4")) == "attentive"
    assert verdict_of_head(figures, "linear") == "ahead"
    lines = versus_table(figures).splitlines()
    assert lines[0].endswith("| ours minus it | over folds | over groups |")
    assert "| 1 | 0.001* (1); 0.002 (1); 0.003* (1) | +46.7 |" in lines[3]
    assert heads_table([figures]).splitlines()[2].startswith("| full | 83.3 ± ")
    assert figures.variants["full"]["position"] == 1  # of those that the experiment lists
    assert others_above([figures]).endswith("by more than a point: none.")
    assert trained_deep([figures]) == "was trained nowhere" and num_comparisons([figures]) == 3
    assert tell_steady([figures]) == ""
    swapped = {"linear": "attentive_steady"}
    variants = {swapped.get(name, name): v for name, v in figures.variants.items()}
    steady = Figures(figures.regime, {**figures.content, "variants": variants})
    assert "it has 36.7 ± 4.7, ours minus it +46.7 (" in tell_steady([steady])
    assert "76.7 ± 4.7 (at 0.01: 36.7 ± 4.7)" in summary_table([steady])


def test_repeated_folds_leave_the_variance_of_shared_clips(figures):
    folds = np.arange(len(KEPT)) // 5 % NUM_FOLDS  # 15 clips each, whose differences differ
    clips = {**figures.content["clips"], "folds": folds.tolist()}
    mixed = Figures(figures.regime, {**figures.content, "clips": clips})
    full, other = (
        np.mean(list(mixed.hits[name].values()), axis=0) for name in ("full", "attentive")
    )
    of_folds = [100 * float((full - other)[folds == fold].mean()) for fold in range(NUM_FOLDS)]
    width = 2 * 1.959964 * np.std(of_folds, ddof=1) / np.sqrt(NUM_FOLDS - 1)
    assert width > 1
    assert tell_narrowest([mixed], "attentive") == f"{figures.regime.brief} {width:.1f}"
    drawn = {"groups": figures.content["clips"]["groups"]}
    by_groups = Figures(BY_NAME["heads_something_groups"], {**figures.content, "clips": drawn})
    assert tell_narrowest([by_groups]) == tell_narrowest([mixed], "of no table") == ""


def test_clips_of_drawn_sets_with_groups_are_resampled_by_group(figures):
    clips = {"groups": figures.content["clips"]["groups"]}
    drawn = Figures(BY_NAME["heads_something_groups"], {**figures.content, "clips": clips})
    assert drawn.has_groups and not drawn.is_cross_validation
    found, crossed = (one.versus("full", "linear") for one in (drawn, figures))
    assert (found.clips_low, found.clips_high) == (crossed.clips_low, crossed.clips_high)
    assert found.points == pytest.approx(crossed.points)
    assert (found.low, found.high) == pytest.approx((found.points, found.points))  # of two seeds
    assert versus_table(drawn).splitlines()[0].endswith("| over seeds | over groups |")


def test_the_curve_is_the_same_for_the_same_figures(figures, tmp_path):
    content = {key: value for key, value in figures.content.items() if key != "clips"}
    found = [Figures(regime, content) for regime in CURVE]
    for name in ("a.svg", "b.svg"):
        draw_curve(found, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_the_curve_is_answered_at_every_number_of_clips(figures):
    content = {key: value for key, value in figures.content.items() if key != "clips"}

    def at(regime, swapped):
        variants = {swapped.get(name, name): v for name, v in figures.variants.items()}
        return Figures(regime, content | {"variants": variants})

    behind = at(CURVE[0], {"attentive_positions": "neurons_10"})
    told = answer_of_curve([behind])
    assert "1,000 clips: ahead +6.7 (" in told
    assert told.endswith("Not trained yet: 4,000 clips, 16,000 clips, 64,000 clips.")
    ahead = at(CURVE[1], {"full": "neurons_10", "attentive_positions": "full"})
    told = ten_against_one([figures, behind, ahead])
    assert told.startswith("Of 2 tables with ten neurons")
    assert told.endswith("ten are ahead in 1 (4,000 clips), behind in 1 (1,000 clips).")


def test_end_to_end_is_told_beside_cached_maps():
    right = {"full": [1, 1, 1, 0], "linear": [1, 0, 0, 0]}
    variants = {
        name: {
            "title": name,
            "position": position,
            "runs": [
                {
                    "seed": seed,
                    "right": as_bits(np.array(right[name], bool)),
                    "cached_right": as_bits(np.array([1, 0, 0, 0], bool)),
                }
                for seed in (0, 1)
            ],
        }
        for position, name in enumerate(("linear", "full"))
    }
    lines = end_to_end_table({"num_clips": 4, "variants": variants}).splitlines()
    assert lines[2].startswith("| linear | 25.0 ± 0.0 | 25.0 ± 0.0 | +50.0 | +50.0 to +50.0 |")
    assert lines[3].startswith("| full | 25.0 ± 0.0 | 75.0 ± 0.0 |")


def test_what_udl_adds_is_told_against_plain_steps(figures):
    swapped = {"linear": "gated_10", "attentive": "gated_10_udl"}
    variants = {swapped.get(name, name): v for name, v in figures.variants.items()}
    lines = udl_table(Figures(figures.regime, {**figures.content, "variants": variants})).split(
        "\n"
    )
    assert lines[3].startswith("| linear | 36.7 ± 4.7 | 1 |  |")
    assert lines[4].startswith("| attentive | 63.3 ± 4.7 | 1 | +26.7 | ")


def test_the_goal_counts_regimes_where_every_probe_is_behind_and_names_those_where_one_is_ahead(
    figures,
):
    assert figures.top1("full") - figures.top1("attentive_positions") == pytest.approx(100 * 3 / 45)
    told = goal_of_heads([figures])
    assert "in 1 of 1 (THETIS): short of the goal, 3. Nowhere is a probe's mean" in told
    swapped = {"full": "attentive_positions", "attentive_positions": "full"}
    variants = {swapped.get(name, name): v for name, v in figures.variants.items()}
    worse = Figures(figures.regime, {**figures.content, "variants": variants})
    told = goal_of_heads([worse])
    assert "in 0 of 1: short of the goal" in told and told.endswith("above its on THETIS (6.7).")
    swapped = {"full": "linear", "linear": "full", "attentive": "block"}
    variants = {swapped.get(name, name): v for name, v in figures.variants.items()}
    beaten = Figures(figures.regime, {**figures.content, "variants": variants})
    assert others_above([beaten]).endswith("by more than a point: attentive on THETIS (by 26.7).")


def test_the_page_tells_which_rows_of_an_experiment_were_not_trained(figures):
    assert not_trained(figures.regime, {}) == "all"
    missing = not_trained(figures.regime, {"thetis": figures}).split(", ")
    assert {"attentive_4", "block", "gated_10_udl_group"} <= set(missing)
    assert not {*WRONG, "layers_3", "averaged"} & set(missing)


def test_ideas_stand_by_their_gain_within_their_maps():
    known = {"maps": "a", "against": "ours", "reference": [60.0, 62.0]}
    trials = [known | {"idea": "worse", "found": [58.0, 61.0]}]
    trials += [known | {"idea": "better", "found": [63.0, 64.0]}]
    trials += [known | {"idea": "elsewhere", "maps": "b", "found": [99.0]}]
    lines = pilots_table({"maps": {"a": "maps A", "b": "maps B"}, "trials": trials}).splitlines()
    assert lines[2] == "| maps A | better | 63.5 | ours | 61.0 | +2.5 | 2 |"
    assert [line.split(" | ")[1] for line in lines[2:]] == ["better", "worse", "elsewhere"]
