"""The model card says what the bundle's records say, and of the rest that it is not recorded."""

from __future__ import annotations

import html
import re

import pytest

from dsts_pipeline.serve import load_bundle, save_bundle
from dsts_pipeline.serve.bundle import ABSENT, escape, model_card
from tests.serve.small_bundle import CLASSES, FINGERPRINT, make_bundle

FIGURES = {
    "split": "test",
    "evaluated": 1200,
    "failed": 3,
    "missing": 1,
    "interval": {"confidence": 0.95, "method": "percentile bootstrap by clip"},
    "head": {
        "top1": 0.7516,
        "top1_low": 0.7274,
        "top1_high": 0.775,
        "top5": 0.9958,
        "top5_low": 0.99,
        "top5_high": 1.0,
        "class_wise": 0.75,
    },
}


def render(text: str) -> str:
    import markdown

    return markdown.markdown(text, extensions=["tables", "fenced_code"])


def test_figures_come_with_interval_and_denominators():
    card = model_card(make_bundle(figures=FIGURES), weights_file=None)
    assert "On split test: 1200 clips evaluated, 3 failed to decode, 1 missing." in card
    assert "| top-1 | 75.2 | 72.7 to 77.5 |" in card
    assert f"| class-wise mean | 75.0 | {ABSENT} |" in card
    assert "confidence = 0.95" in card


def test_figures_that_so_few_clips_cant_bear_are_left_out():
    left_out = {
        "intervals": "6 test clips: too few for intervals",
        "top5": "3 classes: the right one is always among the first 5",
        "calibration": "6 test clips: too few",
    }
    card = model_card(make_bundle(figures=FIGURES | {"left_out": left_out}), weights_file=None)
    figures = card.split("## Figures")[1].split("##")[0]
    assert "| top-1 | 75.2 |\n| class-wise mean | 75.0 |\n" in figures
    assert "top-5" not in figures and "72.7" not in figures and "confidence" not in figures
    shown = html.unescape(figures)
    assert left_out["intervals"] in shown and left_out["top5"] in shown
    assert render(figures).count("<td") == 4


def test_what_is_absent_is_said_to_be(tmp_path):
    bundle = make_bundle(
        figures=None, provenance={}, head_record={"store": FINGERPRINT, "title": "a head"}
    )
    card = model_card(bundle, weights_file=None)
    for line in (
        f"Of an evaluation: {ABSENT}.",
        f"- Data set: {ABSENT}",
        f"- Who collected the videos, their licence, who is in them: {ABSENT}",
        f"- Head, commit of the code: {ABSENT}",
        "- The backbone's weights: not in this folder",
    ):
        assert line in card.splitlines()
    assert not re.search(r"\d+\.\d+ \|", card)  # no figure
    assert "None" not in card


def test_card_is_in_the_bundle_and_protected_by_its_digest(tmp_path):
    bundle = make_bundle(figures=FIGURES)
    folder = save_bundle(tmp_path / "bundle", bundle)
    card = (folder / "MODEL_CARD.md").read_text()
    assert card == model_card(bundle, weights_file="backbone.safetensors")
    assert str(bundle.weights_sha256) in card and f"Feature store: {FINGERPRINT}" in card
    load_bundle(folder)
    (folder / "MODEL_CARD.md").write_text(card.replace("75.2", "95.2"))
    with pytest.raises(Exception, match="MODEL_CARD.md"):
        load_bundle(folder)


HOSTILE = (
    "<script>alert(1)</script>",
    "[click](https://example.org)",
    "![x](https://example.org/x.png)",
    "a | b",
    "# heading\n\n- list",
    "`code` *bold* _it_ ~~no~~ \\",
    "https://example.org www.example.org me@example.org",
    "_a_ __b__ a_b_ _a_b c__d__e",
    "[x] (https://example.org)",
    "[x][1] ![y] {: #id .class}",
    "+ item",
    "javascript:alert(1) mailto:me@example.org",
)


def test_what_means_nothing_to_markdown_stays_as_it_is():
    text = "DSTS head (N = 10, L = 1), efficientnet_lite0, {'clip_len': 8, 'num_clips': 1}!"
    assert escape(text) == text


@pytest.mark.parametrize("text", HOSTILE)
def test_labels_are_shown_as_they_are(text):
    shown = render(f"| a | b |\n|---|---|\n| 0 | {escape(text)} |")
    assert shown.count("<td>") == 2 and "<script" not in shown
    assert not re.search(r"<(a|img|code|em|strong|h1|li|del)\b", shown)
    cell = re.findall(r"<td>(.*?)</td>", shown)[1]
    assert html.unescape(cell) == " ".join(text.split())


def test_hostile_labels_stay_in_their_cells():
    names = HOSTILE[: len(CLASSES)]
    card = model_card(make_bundle(class_names=names), weights_file=None)
    shown = render(card)
    assert "<script" not in shown and "<img" not in shown and "<a " not in shown
    assert shown.count("<h2>") == 8 and shown.count("<h1>") == 1
