"""The pages of claims say what their result files say; other maps are never mixed in."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from benchmarks.claims.document import compare, measured, regime_table, render_paper, said
from benchmarks.claims.figures import Figures
from benchmarks.claims.picture import draw_differences
from benchmarks.claims.readme import END, README, with_table
from benchmarks.claims.regimes import BY_NAME, SEARCH
from benchmarks.claims.results import collect, result_file, right_clips
from benchmarks.claims.routes import describe_routes
from benchmarks.claims.search import Search, common_rate_table, steps, unchosen
from benchmarks.claims.verdicts import claims_table, verdict, verdicts_table
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.feed import FeatureFeed
from dsts_pipeline.head import DSTSHead, LinearProbe, save_head
from dsts_pipeline.metrics.predictions import Predictions
from tests.feature_store.small_store import make_plan, write_store
from tests.learn.small_feed import MemoryStore

REGIME = BY_NAME["diving_generic"]
LABELS = np.arange(40) % 4


def ablation(
    folder, seeds, *, store="s", wrong=3, epochs=2, other="without_udl", rate=2e-3, heldout=0.5
):
    """Outputs of an ablation: the variant is wrong on `wrong` clips fewer than the full model.

    `heldout` is the variant's accuracy there; the full model's is 0.5.
    """
    runs = {}
    for name, missed in (("full", 10), (other, 10 - wrong)):
        runs[name] = []
        for seed in seeds:
            answers = LABELS.copy()
            answers[seed : seed + missed] = (answers[seed : seed + missed] + 1) % 4
            path = f"runs/{name}-{seed}.npz"
            (folder / "outputs/ablation/runs").mkdir(parents=True, exist_ok=True)
            Predictions(
                tuple(f"clip{n}" for n in range(40)), LABELS, np.eye(4, dtype=np.float32)[answers]
            ).save(folder / "outputs/ablation" / path)
            row = {"seed": seed, "class_wise": 0.5, "epochs": epochs, "best_epoch": 1}
            row |= {"heldout_accuracy": heldout if name == other else 0.5}
            runs[name].append(row | {"train_seconds": 1.0, "layers": [], "predictions": path})
    settings = {"head": {}, "udl": {}, "train": {"learning_rate": rate}}
    content = {
        "store": store,
        "split": "test",
        "num_clips": 40,
        "provenance": {"commit": "c", "settings": settings, "versions": {"torch": "2.x"}},
        "variants": {
            name: {
                "title": name,
                "table": [5],
                "position": list(runs).index(name),
                "settings": {},
                "num_parameters": 7,
                "runs": found,
            }
            for name, found in runs.items()
        },
    }
    (folder / "outputs/ablation/results.json").write_text(json.dumps(content))
    maps = write_store(folder, make_plan(num_clips=40))
    record = {"store": str(maps.relative_to(folder))}
    (folder / "outputs/features.json").write_text(json.dumps(record))
    return folder


def test_a_result_file_gives_the_accuracies_that_the_answers_had(tmp_path):
    path = collect(REGIME, ablation(tmp_path / "run", [0, 1, 2]), tmp_path)
    figures = Figures.read(REGIME, tmp_path)
    assert figures.top1("full") == pytest.approx(75.0)
    assert figures.top1("without_udl") == pytest.approx(82.5)
    one = figures.differences["without_udl"]
    assert one.points == pytest.approx(7.5) and one.clips_low < 7.5 < one.clips_high
    assert one.low == pytest.approx(7.5), "every seed has the same difference"
    content = json.loads(path.read_text())
    right = right_clips(content["variants"]["full"]["runs"][1], 40)
    assert np.flatnonzero(~right).tolist() == list(range(1, 11))
    assert content["variants"]["full"]["runs"][1]["torch"] == "2.x"


def test_seeds_of_another_day_are_joined(tmp_path):
    collect(REGIME, ablation(tmp_path / "first", [0, 1]), tmp_path)
    collect(REGIME, ablation(tmp_path / "second", [1, 2]), tmp_path)
    assert list(Figures.read(REGIME, tmp_path).runs("full")) == [0, 1, 2]


def test_other_maps_are_never_mixed_in(tmp_path):
    path = collect(REGIME, ablation(tmp_path / "first", [0]), tmp_path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="is of other store"):
        collect(REGIME, ablation(tmp_path / "second", [1], store="t"), tmp_path)
    assert path.read_bytes() == before


def test_an_option_that_came_later_had_its_default_before(tmp_path):
    path = collect(REGIME, ablation(tmp_path / "first", [0]), tmp_path)
    content = json.loads(path.read_text())
    assert content["settings"]["train"].pop("final_noise") == 1.0
    path.write_text(json.dumps(content))
    collect(REGIME, ablation(tmp_path / "second", [1]), tmp_path)
    assert list(Figures.read(REGIME, tmp_path).runs("full")) == [0, 1]
    content["settings"]["train"]["final_noise"] = 0.5
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="is of other settings"):
        collect(REGIME, ablation(tmp_path / "second", [1]), tmp_path)


def test_the_table_has_the_papers_difference_beside_ours(tmp_path):
    collect(REGIME, ablation(tmp_path / "run", [0, 1]), tmp_path)
    row = next(r for r in regime_table(Figures.read(REGIME, tmp_path)).splitlines() if "udl" in r)
    assert "| +7.5 |" in row and row.endswith("| -1.0 |")


def test_the_page_says_what_its_result_files_say():
    assert any(result_file(regime).exists() for regime in BY_NAME.values())
    assert not compare(), "python -m benchmarks.claims document"


def test_the_page_opens_with_the_verdict_on_every_claim():
    opening = render_paper().partition("\n## ")[0]
    table = verdicts_table(measured())
    assert table in opening and len(opening.split()) < 400, "one screen"
    assert table.count("\n") == 9, "a head, its rule and eight claims"


@pytest.mark.slow
def test_a_changed_figure_is_seen(tmp_path):
    page = tmp_path / "claims.md"
    text = render_paper()
    page.write_text(text)
    assert not compare(paper=page)
    line = next(line for line in text.splitlines() if line.startswith("| N = 1 |"))
    changed = line.replace(".", ".9", 1)
    page.write_text(text.replace(line, changed))
    found = compare(paper=page)
    assert f"-{changed}" in found and f"+{line}" in found


def test_a_changed_figure_of_the_readme_is_seen(tmp_path):
    new = BY_NAME["heads_something"]
    made = ablation(tmp_path / "run", [0, 1], other="linear")
    collect(new, made, tmp_path)
    readme = tmp_path / "README.md"
    text = with_table(README.read_text(), [Figures.read(new, tmp_path)])
    assert "| stick something | 82.5 ± 0.0 | 75.0 ± 0.0 | 2 |" in text
    readme.write_text(text.replace("82.5", "82.6"))
    found = compare(readme=readme, results=tmp_path)
    assert [one[0] for one in found if one[1:].startswith("| stick") and "±" in one] == ["-", "+"]
    readme.write_text(text.replace(END, ""))
    with pytest.raises(ValueError, match="with its end"):
        compare(readme=readme, results=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "seeds", "expected"),
    [(3, [0, 1], "holds"), (-3, [0, 1], "opposite"), (0, [0, 1], "not seen"), (3, [0], "one seed")],
)
def test_a_claim_holds_where_both_intervals_are_above_zero(wrong, seeds, expected, tmp_path):
    collect(REGIME, ablation(tmp_path / "run", seeds, wrong=wrong, other="with_udl"), tmp_path)
    figures = Figures.read(REGIME, tmp_path)
    assert verdict(figures.versus("with_udl", "full")) == expected
    how = {"holds": "above", "opposite": "below"}.get(expected, "open")
    assert said(figures.versus("with_udl", "full"), how) == f"{100 * wrong / 40:+.1f}"
    with pytest.raises(ValueError, match=f"intervals say {how}"):
        said(figures.versus("with_udl", "full"), "below" if how == "above" else "above")
    row = next(r for r in claims_table([figures]).splitlines() if "UDL helps" in r)
    assert row.endswith(f" {expected} |") and f"| {100 * wrong / 40:+.1f} (" in row
    assert "| +1.0 |" in row, "the paper's difference, from its Table 5"
    short = next(r for r in verdicts_table([figures]).splitlines() if "UDL helps" in r)
    assert short == f"| UDL helps | +1.0 | {expected} {100 * wrong / 40:+.1f} |"


def searched(folder, *, of_rates, store="s", seeds=(0,)):
    """A search in which the variant has (clips fewer wrong, held-out accuracy) at each rate.

    `seeds` are those at the other rates than 2e-3.
    """
    for rate, (wrong, heldout) in of_rates.items():
        regime = REGIME if rate == 2e-3 else REGIME.at(rate)
        is_other = rate != 2e-3
        made = ablation(
            folder / regime.name,
            seeds if is_other else [0, 1],
            store=store if is_other else "s",
            wrong=wrong,
            other="with_udl",
            rate=rate,
            heldout=heldout,
        )
        collect(regime, made, folder)
    return Search(Figures.read(REGIME, folder), folder)


def test_the_rate_is_chosen_on_heldout_clips_alone(tmp_path):
    search = searched(tmp_path, of_rates={8e-3: (-8, 0.6), 2e-3: (3, 0.5), 4e-3: (9, 0.4)})
    assert search.heldout("with_udl") == pytest.approx({2e-3: 50, 4e-3: 40, 8e-3: 60})
    assert search.rate("with_udl") == 8e-3, "the worst on test clips"
    assert search.rate("full") == 2e-3, "the lowest of equals"
    found = search.figures.versus("with_udl")
    assert found.points == pytest.approx(-20) and found.clips_low < -20 < found.clips_high < 0
    assert found.low is None, "they have one seed in common"
    assert unchosen(REGIME.at(8e-3), tmp_path) == []
    assert unchosen(REGIME.at(4e-3), tmp_path) == ["with_udl"]
    with pytest.raises(DataError, match="no step of the search"):
        unchosen(REGIME, tmp_path)
    assert "| with_udl | 82.5, +7.5 (+7.5 to +7.5; " in common_rate_table([search])
    row = next(r for r in regime_table(measured(tmp_path)[0]).splitlines() if "with_udl" in r)
    assert row.startswith("| with_udl | 8e-3 | 55.0 | 1 | -20.0 |")


def test_verdicts_that_are_others_at_the_common_rate_are_listed(tmp_path):
    settings = {8e-3: (-8, 0.6), 2e-3: (3, 0.5), 4e-3: (9, 0.4)}
    search = searched(tmp_path, of_rates=settings, seeds=[0, 1])
    ((comparison, before, now),) = search.changed()
    assert comparison.what == "with UDL - ordinary steps"
    assert (verdict(before), verdict(now)) == ("holds", "opposite")


def test_verdicts_that_the_search_bears_out_are_not_listed(tmp_path):
    settings = {8e-3: (1, 0.4), 2e-3: (3, 0.5), 4e-3: (6, 0.6)}
    search = searched(tmp_path, of_rates=settings, seeds=[0, 1])
    assert search.rate("with_udl") == 4e-3 and not search.changed()


def test_everything_ends_with_the_seeds_at_the_chosen_rates():
    everything, others = steps(None, chosen=False), steps(None, chosen=True)
    assert [regime for regime, _ in everything[: len(BY_NAME)]] == list(BY_NAME.values())
    assert not any(only_chosen for _, only_chosen in everything[: len(BY_NAME)])
    assert everything[len(BY_NAME) :] == others and others == [(one, True) for one in SEARCH]
    assert steps([REGIME.name], chosen=False) == [(REGIME, False)]


def test_a_search_takes_all_rates_on_the_same_maps(tmp_path):
    collect(REGIME, ablation(tmp_path / "run", [0]), tmp_path)
    assert not Search.exists(REGIME, tmp_path)
    with pytest.raises(DataError, match="of another store"):
        searched(tmp_path, of_rates={8e-3: (1, 0.4), 4e-3: (6, 0.6)}, store="t")
    assert Search.exists(REGIME, tmp_path)


def test_routes_tell_specialists_from_chance(tmp_path):
    labels = np.arange(200) % 4
    maps = np.random.default_rng(0).standard_normal((200, 6, 4, 3, 3)).astype(np.float32)
    maps[:, 0] += np.where(labels < 2, 1.0, -1.0)[:, None, None, None]
    store = MemoryStore(maps, labels, 4)
    store.fingerprint = "f" * 32

    def described(channel):
        """Of a head that routes by the sign of a channel's mean."""
        head = DSTSHead.paper(6, 4, num_neurons=2, num_layers=1, impulse="mean")
        with torch.no_grad():
            kernel = head.layers[0].scoring_kernel.zero_()
            kernel[0].view(-1)[channel], kernel[1].view(-1)[channel] = 1.0, -1.0
            head.layers[0].gate_logits.copy_(torch.tensor([[1.0] * 6, [-1.0] * 6]))
        save_head(tmp_path / str(channel), head, {"store": "f" * 32, "title": "a head"})
        return describe_routes(tmp_path / str(channel), FeatureFeed(store))

    specialist, chance = described(0)["layers"][0], described(1)["layers"][0]
    assert specialist["adjusted"] == pytest.approx(0.5**0.5, abs=0.01), "of four classes two each"
    assert abs(chance["adjusted"]) < 0.03
    assert specialist["temporal_share"] == 0.5 and specialist["dead"] == 0
    assert specialist["need"] is None, "two neurons give no rank correlation"
    save_head(tmp_path / "probe", LinearProbe(6, 4), {"store": "f" * 32, "title": "a probe"})
    assert describe_routes(tmp_path / "probe", FeatureFeed(store)) is None


def test_the_picture_of_the_same_figures_is_the_same(tmp_path):
    collect(REGIME, ablation(tmp_path / "run", [0, 1]), tmp_path)
    pictures = [tmp_path / "a.svg", tmp_path / "b.svg"]
    for path in pictures:
        draw_differences([Figures.read(REGIME, tmp_path)], path, "full")
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
