"""The page as text: whole, self-contained, escaped, and honest where data are missing."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import ReportSettings
from dsts_pipeline.report.examples import explorer_data, find_mistakes, pick_examples
from dsts_pipeline.report.inputs import Failure, ReportInputs, name_dataset
from dsts_pipeline.report.page import headline_numbers, render_report, write_report
from dsts_pipeline.report.previews import Previews
from tests.report.report_example import make_frames, make_inputs

SMALL = {"num_clips": 60, "num_classes": 8, "num_neurons": 3, "num_layers": 2}
VOID = {"meta", "link", "input", "br"}
HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(2)>&{{7*7}}"


class Outline(HTMLParser):
    """Checks that tags nest, and keeps headings, ids and what could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.headings, self.ids, self.loads, self.tags = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.stack.append(tag)
        if "id" in found:
            self.ids.append(found["id"])
        self.loads += [found[key] for key in ("src", "href", "action", "data") if key in found]

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        if self.stack and re.fullmatch("h[1-6]", self.stack[-1]):
            self.headings.append((int(self.stack[-1][1]), data.strip()))


def outline(html: str) -> Outline:
    parser = Outline()
    parser.feed(html)
    parser.close()
    assert parser.stack == []
    return parser


def without_scripts(html: str) -> str:
    return re.sub(r"<script>.*?</script>", "", html, flags=re.DOTALL)


@pytest.fixture(scope="module")
def page():
    return render_report(make_inputs(**SMALL), frames_of=make_frames)


def test_it_loads_nothing_and_links_only_to_itself(page):
    found = outline(page.html)
    targets = {link[1:] for link in found.loads if link.startswith("#")}
    assert targets <= set(found.ids)
    assert all(link.startswith("#") or link == "data:," for link in found.loads)
    assert not re.search(r"url\((?![\"']?(data:|#))", without_scripts(page.html))
    assert "default-src 'none'" in page.html


def test_headings_descend_one_level_at_a_time_and_ids_are_unique(page):
    found = outline(page.html)
    levels = [level for level, _ in found.headings]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    assert len(found.ids) == len(set(found.ids))


def test_every_table_has_a_caption_and_every_drawing_a_name(page):
    found = outline(page.html)
    kinds = [tag for tag, _ in found.tags]
    assert kinds.count("table") == kinds.count("caption") >= 8
    drawings = [a for _, a in found.tags if "chart" in a.get("class", "").split()]
    assert len(drawings) > 12
    assert all(drawing["aria-label"] and drawing["role"] == "img" for drawing in drawings)
    strips = [a for _, a in found.tags if "strip" in a.get("class", "").split()]
    assert len(strips) > 3 and all(strip["aria-label"] for strip in strips)


def test_figures_and_tables_are_numbered_anew_in_every_page(page):
    again = render_report(make_inputs(**SMALL), frames_of=make_frames)
    assert again.html == page.html
    numbers = [int(n) for n in re.findall(r"<figcaption><b>Figure (\d+)", page.html)]
    assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) == 11


def test_it_says_what_the_run_says():
    inputs = make_inputs(**SMALL)
    html = render_report(inputs).html
    dsts = inputs.metrics["heads"]["dsts"]
    assert f"{100 * dsts['top1']:.1f}" in html
    assert "60 of 65 clips evaluated; 4 failed to decode, 1 missing or unusable." in html
    assert "truncated: 3 of 16 frames" in html
    assert "95df6f5c0ffee0123456789abcdef0123456789ab" in html
    assert "gallery" not in outline(html).ids


@pytest.mark.slow
def test_names_with_markup_in_them_do_no_harm():
    inputs = make_inputs(**SMALL)
    metrics = inputs.metrics | {"split": HOSTILE, "store": HOSTILE}
    metrics["heads"]["dsts"]["title"] = HOSTILE
    metrics["provenance"]["settings"] = {HOSTILE: HOSTILE}
    ids = (HOSTILE, *inputs.predictions["dsts"].clip_ids[1:])
    predictions = {n: replace(p, clip_ids=ids) for n, p in inputs.predictions.items()}
    inputs = replace(
        inputs,
        metrics=metrics,
        predictions=predictions,
        class_names=[HOSTILE + str(i) for i in range(8)],
        failures=(Failure(HOSTILE, HOSTILE, HOSTILE, HOSTILE),),
        dataset=HOSTILE,
    )
    page = render_report(inputs, ReportSettings(title=HOSTILE), frames_of=make_frames)
    found = outline(page.html)
    assert [a for tag, a in found.tags if tag == "script"] == [
        {"type": "application/json", "id": "explorer-data"},
        {"type": "application/json", "id": "chart-data"},
        {},
        {},
    ]
    assert "img" not in {tag for tag, _ in found.tags}
    assert not any("onerror" in a for _, a in found.tags)
    assert "49" not in re.findall(r"&amp;(\d\d)", page.html)
    for drawing in page.plots.values():
        ElementTree.fromstring(drawing)


def test_plots_and_tables_lie_beside_the_page(tmp_path, page):
    written = write_report(page, tmp_path / "report.html")
    names = {path.relative_to(tmp_path).as_posix() for path in written}
    assert {"report.html", "plots/accuracy.svg", "plots/accuracy.png"} <= names
    assert {f"tables/results.{kind}" for kind in ("md", "tex")} <= names
    for path in written:
        if path.suffix == ".svg":
            text = path.read_text()
            ElementTree.fromstring(text)
            assert "var(" not in text and "light-dark" not in text
        if path.suffix == ".png":
            with Image.open(path) as picture:
                assert min(picture.size) > 100
    alone = write_report(page, tmp_path / "alone" / "report.html", write_plots=False)
    assert alone == list((tmp_path / "alone").iterdir())


def test_tabs_name_the_parts_that_the_run_has(page):
    found = outline(page.html)
    tabs = [a["href"][1:] for tag, a in found.tags if tag == "a" and a.get("id", "")[:4] == "tab-"]
    sections = [a["id"] for tag, a in found.tags if tag == "section"]
    assert tabs == sections and len(tabs) == 8


def test_a_lone_neuron_is_no_choice_and_nothing_is_told_of_it():
    inputs = make_inputs(**SMALL | {"num_neurons": 1})
    page = render_report(inputs, frames_of=make_frames)
    sections = [a["id"] for tag, a in outline(page.html).tags if tag == "section"]
    assert "routing" in sections and "gallery" not in sections
    assert "Time and pairs" in page.html and "Need of time" in page.html
    assert 'class="route' not in page.html and "effectively in use" not in page.html
    assert not {"neurons", "class_by_neuron", "need"} & set(page.figures)
    assert not {"information", "similarity", "view_changes"} & set(page.tables)
    told = explorer_data(inputs, Previews(inputs.answers.clip_ids, make_frames))
    assert all(head["neurons"] is None for head in told["heads"])


def test_the_policy_allows_the_two_scripts_of_the_page_and_no_other(page):
    scripts = re.findall(r"<script>(.*?)</script>", page.html, re.DOTALL)
    digests = [
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts
    ]
    policy = re.search(r"script-src ([^;]*);", page.html)[1]
    assert len(scripts) == 2 and policy.split() == [f"'sha256-{digest}'" for digest in digests]


def test_a_mistake_says_what_was_answered_and_by_which_route():
    inputs = make_inputs(**SMALL)
    answers = inputs.predictions["dsts"]
    found = find_mistakes(inputs, Previews(answers.clip_ids, None), 3)
    wrong = np.flatnonzero(answers.predicted != answers.labels)
    surest = wrong[answers.probabilities[wrong].max(axis=1).argmax()]
    first = found[0]
    assert len(found) == 3 and first.preview.row == surest
    assert first.truth == inputs.class_names[answers.labels[surest]]
    assert first.candidates[0].name == first.answer and not first.candidates[0].is_true
    said = [candidate.probability for candidate in first.candidates]
    assert said == sorted(answers.probabilities[surest], reverse=True)[:5]
    assert [step.neuron - 1 for step in first.route] == answers.neurons[surest].tolist()
    same = (answers.labels == answers.labels[surest]) & (
        answers.neurons[:, 0] == answers.neurons[surest, 0]
    )
    of_class = (answers.labels == answers.labels[surest]).sum()
    assert first.route[0].of_truth == pytest.approx(same.sum() / of_class)
    assert dict(first.nearest).get(first.answer, 0) <= first.same


def test_a_run_without_routing_attributes_or_baseline_still_has_a_page():
    inputs = make_inputs(**SMALL)
    probe = inputs.metrics["heads"]["linear_probe"] | {"attributes": None, "versus_baseline": None}
    inputs = ReportInputs(
        metrics=inputs.metrics
        | {"heads": {"linear_probe": probe}, "baseline": None, "failed": 0, "missing": 0},
        predictions={"linear_probe": inputs.predictions["linear_probe"]},
        histories={},
        class_names=inputs.class_names,
    )
    page = render_report(inputs, frames_of=make_frames)
    assert set(page.plots) == {"accuracy", "confusion_linear_probe", "reliability"}
    ids = outline(page.html).ids
    assert "routing" not in ids and "curves" not in ids and "gallery" not in ids
    assert "None: every annotated clip was found" in page.html


def test_a_perfect_head_and_one_neuron_and_one_epoch_do_not_break_it():
    inputs = make_inputs(num_clips=20, num_classes=4, num_neurons=2, num_layers=1)
    dsts = inputs.predictions["dsts"]
    perfect = replace(dsts, probabilities=np.eye(4)[dsts.labels], neurons=dsts.neurons * 0)
    metrics = inputs.metrics
    metrics["heads"]["dsts"]["routing"] = {
        "num_neurons": 1,
        "layers": [{"usage": [1.0], "entropy": 0.0, "dead": 0, "temporal_share": None}],
    }
    row = dict(inputs.histories["dsts"][0])
    row["layers"] = [{"usage": None, "entropy": 0.0, "dead": 0, "temporal_share": None}]
    row["heldout_loss"] = row["heldout_accuracy"] = None
    inputs = replace(
        inputs,
        metrics=metrics,
        predictions=inputs.predictions | {"dsts": perfect},
        histories={"dsts": [row]},
    )
    html = render_report(inputs, frames_of=make_frames).html
    outline(html)
    assert "No clip was taken for another class." in html
    assert "Learning curves on the training clips" in html
    words = re.sub(r"data:image[^\"]*", "", without_scripts(html))
    assert not re.search(r"\bnan\b", words, re.IGNORECASE)


def test_inputs_that_do_not_fit_are_refused():
    inputs = make_inputs(**SMALL)
    with pytest.raises(DataError, match="'dsts' is in the metrics but has no predictions"):
        replace(inputs, predictions={k: v for k, v in inputs.predictions.items() if k != "dsts"})
    with pytest.raises(DataError, match="for 8 classes, the clip index names 7"):
        replace(inputs, class_names=inputs.class_names[:7], attributes=())
    with pytest.raises(DataError, match="no heads"):
        replace(inputs, metrics={})


@pytest.mark.long
def test_size_of_ssv2_stays_readable_and_small():
    page = render_report(make_inputs(num_clips=6000, num_classes=174))
    assert len(page.html) < 10e6
    outline(page.html)


# ---- what stands on the first screen, and what stands elsewhere ---------------------------------


def test_the_papers_tables_stand_beside_the_papers_data_alone():
    own = render_report(make_inputs(**SMALL, dataset="fights"))
    assert "The paper’s Table" not in own.html and "paper" not in outline(own.html).ids
    assert not [name for name in own.tables if name.startswith(("table_", "beside"))]
    papers = render_report(make_inputs(**SMALL, dataset="diving48"))
    assert [f"table_{n}" for n in range(1, 8)] == [n for n in papers.tables if n[:6] == "table_"]
    assert "beside" in papers.tables and "arXiv 2209.01425" in papers.html


def test_on_other_data_the_papers_rows_stand_beside_what_ablate_measured_there():
    figure = {"mean": 0.7, "low": 0.6, "high": 0.8}
    variant = {"title": "a", "num_parameters": 1, "top1": figure, "class_wise": figure}
    ablation = {"split": "test", "seeds": [0], "variants": {"full": variant, "layers_1": variant}}
    page = render_report(make_inputs(**SMALL, ablation=ablation))
    assert [name for name in page.tables if name[:6] == "table_"] == ["table_7"]
    assert "The data are not the paper’s" in page.html


def test_a_preset_s_word_gives_way_to_the_folder_s_name():
    assert name_dataset("folder", "data/fights") == "fights"
    assert name_dataset("csv", "/data/my clips/") == "my clips"
    assert name_dataset("stick_diving", "data/elsewhere") == "stick_diving"
    page = render_report(make_inputs(**SMALL, dataset="fights"))
    assert (1, "fights") in outline(page.html).headings and "<title>fights</title>" in page.html


def test_three_numbers_with_their_intervals_and_no_more():
    inputs = make_inputs(**SMALL)
    numbers = headline_numbers(inputs)
    dsts = inputs.metrics["heads"]["dsts"]
    assert numbers[0].value.startswith(f"{100 * dsts['top1']:.1f}")
    assert numbers[0].interval == f"{100 * dsts['top1_low']:.1f} to {100 * dsts['top1_high']:.1f}"
    assert "Backbone's own classifier" in numbers[2].about and len(numbers) == 3
    alone = replace(inputs, metrics=inputs.metrics | {"heads": {"dsts": dsts}, "baseline": None})
    dsts["versus_baseline"] = None
    assert len(headline_numbers(alone)) == 2


def test_examples_are_right_and_wrong_in_turn_each_of_another_class():
    inputs = make_inputs(**SMALL)
    answers = inputs.answers
    found = pick_examples(inputs, Previews(answers.clip_ids, make_frames), 3)
    assert [one.right for one in found] == [True, False] * 3
    assert len({one.truth for one in found if one.right}) == 3
    surest = answers.probabilities[answers.predicted == answers.labels].max()
    assert found[0].probability == surest and len(found[0].route) == 2


def test_a_class_s_bar_is_the_difference_of_its_right_clips():
    inputs = make_inputs(num_clips=300, num_classes=8, num_neurons=3, num_layers=2)
    label = render_report(inputs).figures["gains"].panels[0].label
    main, other = (inputs.predictions[name] for name in ("dsts", "baseline"))
    for k, name in enumerate(inputs.class_names):
        rows = main.labels == k
        right, wrong = (int((one.predicted == k)[rows].sum()) for one in (main, other))
        assert f"{name}: {right} of {rows.sum()} clips right, {wrong} by Backbone" in label


def test_what_is_left_out_says_why_in_its_place():
    why = {
        "pairs": "6 test clips: too few <for> pairs",
        "top5": "Top-5 of 3 classes is always 100 %",
    }
    inputs = make_inputs(**SMALL)
    page = render_report(replace(inputs, metrics=inputs.metrics | {"left_out": why}))
    assert "pairs" not in page.tables
    place = page.html.index("6 test clips: too few &lt;for&gt; pairs")
    assert page.html.index('id="confusion"') < place < page.html.index('id="mistakes"')
    assert page.html.index("Top-5 of 3 classes") < page.html.index('id="curves"')


def test_too_few_clips_have_sentences_where_others_have_figures():
    names = ("intervals", "calibration", "information", "temporal_need", "top5")
    inputs = make_inputs(**SMALL)
    why = {name: f"6 test clips: no {name}" for name in names}
    inputs = replace(inputs, metrics=inputs.metrics | {"left_out": why})
    page = render_report(inputs, frames_of=make_frames)
    outline(page.html)
    assert all(page.html.count(sentence) == 1 for sentence in why.values())
    assert not {"calibration", "information", "gates"} & set(page.tables)
    assert not {"reliability", "class_need", "need"} & set(page.figures)
    assert [number.interval for number in headline_numbers(inputs)] == [""] * 3
    inputs.metrics["heads"]["dsts"]["versus_baseline"] = None  # then of the pairs of heads
    assert [number.interval for number in headline_numbers(inputs)] == [""] * 3
    for name in ("results", "pairs_separated", "pairs_merged"):
        assert not any(cell.detail for row in page.tables[name].rows for cell in row.cells)
    for name in ("similarity", "pairs_separated", "pairs_merged"):
        assert not {"p", "p (Holm)"} & set(page.tables[name].columns)
    summary = page.html[page.html.index('id="summary"') :].split("</section>")[0]
    assert "intervals" not in summary.replace(why["intervals"], "")
    assert "mutual information" not in page.html


def test_a_head_without_gates_has_no_word_of_them():
    inputs = make_inputs(**SMALL)
    assert "gate is saturated" in render_report(inputs).html
    for row in inputs.histories["dsts"]:
        for layer in row["layers"]:
            layer["saturated_share"] = None  # as of fixed halves
    page = render_report(inputs)
    body = without_scripts(page.html).split("</style>")[1]
    assert not re.search(r"\bgates?\b|temporal operator", body) and "gates" not in page.tables
    assert "need" not in page.figures


def test_of_few_classes_there_is_no_top_5_and_a_missing_one_does_no_harm():
    inputs = make_inputs(num_clips=6, num_classes=3, num_neurons=2, num_layers=1)
    for head in inputs.metrics["heads"].values():
        for end in ("", "_low", "_high"):
            head.pop(f"top5{end}", None)
        head["calibration"] = None
    for layer in inputs.routing["heads"]["dsts"]["layers"]:
        layer["information"] = layer["similarity"] = None
    page = render_report(inputs, frames_of=make_frames)
    outline(page.html)
    assert "top-5" not in page.html and "first five" not in page.html
    assert "information" not in page.tables


def test_axes_that_start_at_zero_are_not_said_not_to():
    few = render_report(make_inputs(num_clips=6, num_classes=3, num_neurons=2, num_layers=1))
    assert few.figures["accuracy"].from_zero
    summary = few.html[few.html.index('id="summary"') : few.html.index('id="curves"')]
    assert "not start at zero" not in summary
    many = render_report(make_inputs())
    assert not many.figures["accuracy"].from_zero
    assert "The axes do not start at zero." in many.html


def test_settings_that_differ_come_first_and_all_are_folded_away(page):
    changed = page.html[page.html.index("Settings that differ") :]
    first, rest = changed.split("<details>")[:2]
    assert "head.num_neurons" in first and "(default 10)" in first
    assert "train.learning_rate" not in first and "train.learning_rate" in rest
