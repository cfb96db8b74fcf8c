"""Neuron gallery: which clips, stored once, and what an unreadable one looks like."""

from __future__ import annotations

import re

import numpy as np

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.settings import ReportSettings
from dsts_pipeline.metrics import Predictions
from dsts_pipeline.report.examples import build_gallery, typical_rows
from dsts_pipeline.report.page import render_report
from dsts_pipeline.report.previews import Previews
from tests.report.report_example import make_frames, make_inputs


def _predictions():
    labels = np.array([0, 0, 0, 1, 1, 2])
    sureness = np.array([0.5, 0.9, 0.6, 0.8, 0.7, 0.95])
    rest = (1 - sureness) / 2
    probabilities = np.repeat(rest[:, None], 3, axis=1)
    probabilities[np.arange(6), labels] = sureness
    neurons = np.array([[0, 1]] * 5 + [[1, 1]])
    return Predictions(tuple("abcdef"), labels, probabilities, neurons)


def test_surest_clip_of_each_class_first_then_the_second_surest():
    answers = _predictions()
    chosen = answers.neurons[:, 0] == 0
    assert typical_rows(answers, chosen, 4) == [1, 3, 2, 4]
    assert typical_rows(answers, chosen, 99) == [1, 3, 2, 4, 0]
    assert typical_rows(answers, answers.neurons[:, 0] == 7, 4) == []


def test_a_clip_shown_twice_is_read_and_stored_once():
    read = []

    def frames_of(clip_id):
        read.append(clip_id)
        return make_frames(clip_id)

    previews = Previews("abcdef", frames_of, size_px=40)
    gallery = build_gallery(_predictions(), 2, previews, num_clips=2)
    assert len(read) == len(set(read)) == len(previews.strips)
    assert [[len(neuron.clips) for neuron in layer] for layer in gallery] == [[2, 1], [0, 2]]


def test_neurons_that_no_clip_chose_are_told_in_one_sentence():
    html = render_report(make_inputs(num_clips=60, num_classes=8), frames_of=make_frames).html
    gallery = html[html.index('id="gallery"') : html.index('id="reliability"')]
    assert gallery.count("No clip chose neuron") == gallery.count("<h3>Layer") == 3
    assert gallery.count('class="neuron"') < 30


def test_edges_say_right_and_wrong_and_classes_have_names():
    inputs = make_inputs(num_clips=60, num_classes=8, num_neurons=3, num_layers=2)
    html = render_report(inputs, ReportSettings(num_gallery_clips=20), frames_of=make_frames).html
    gallery = html[html.index('id="gallery"') : html.index('id="reliability"')]
    shown = re.findall(
        r'strip-\d+ (right|miss)" role="img" aria-label="([^"]*)".*?class="under">([^<]*)', gallery
    )
    assert {edge for edge, _, _ in shown} == {"right", "miss"}
    for edge, words, name in shown:
        assert (edge == "right") == words.endswith(", right")
        assert name.strip() in inputs.class_names


def test_an_unreadable_clip_is_shown_with_its_reason():
    def frames_of(clip_id):
        raise DataError(f"{clip_id}: truncated <b>")

    previews = Previews("abcdef", frames_of)
    gallery = build_gallery(_predictions(), 2, previews, num_clips=4)
    assert previews.strips == []
    assert gallery[0][1].clips[0].problem == "f: truncated <b>"
    small = {"num_clips": 30, "num_classes": 4, "num_neurons": 2, "num_layers": 1}
    html = render_report(make_inputs(**small), frames_of=frames_of).html
    assert "no preview, stick_" in html and "truncated &lt;b&gt;" in html
