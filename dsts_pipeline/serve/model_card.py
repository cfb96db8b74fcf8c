"""The model card of a bundle: what is known of it, for people, and what is not known.

Enters: a `Bundle`. Leaves: Markdown. Every value comes from the bundle's own records; what they do
not hold is said to be "not recorded". Text from data sets is shown as text, whatever it contains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dsts_pipeline.serve.bundle_parts import Bundle

CARD = "MODEL_CARD.md"
ABSENT = "not recorded"
_INTRODUCTION = (
    "Written by `python cli.py export` from the records of the run; what they do not hold is "
    f"marked {ABSENT}."
)
_FIGURES = {"top1": "top-1", "top5": "top-5", "class_wise": "class-wise mean"}
_MARKS = re.compile(r"[\\`*_{}\[\]()#+!|]")
# What Markdown's dialects read and not all of them let a backslash undo.
_ENTITIES = {sign: f"&#{ord(sign)};" for sign in "&<>~:@"}


def escape(value: object) -> str:
    """`value` as text that Markdown shows as it is: no markup, no link, no line of its own.

    Examples:
        >>> escape("<b>*pike*</b> | 5")
        '&#60;b&#62;\\\\*pike\\\\*&#60;/b&#62; \\\\| 5'
    """
    text = " ".join(str(value).split())
    text = _MARKS.sub(r"\\\g<0>", "".join(sign for sign in text if sign.isprintable()))
    text = "".join(_ENTITIES.get(sign, sign) for sign in text)
    return text.replace("www.", "www&#46;")


def model_card(bundle: Bundle, *, weights_file: str | None) -> str:
    """The card as Markdown.

    Args:
        weights_file: The backbone's weights in the bundle's folder; None: they are elsewhere.
    """
    parts = (
        [f"# {escape(bundle.title)}", "", _INTRODUCTION],
        _section("What it is", _model(bundle, weights_file)),
        _section("Data", _data(bundle)),
        _section("Figures", _figures(bundle.figures)),
        _section("Intended use and limits", _limits(bundle)),
        _section("How to load", _loading()),
        _section("Settings of the training", _settings(bundle)),
        _section("Where it comes from", _origin(bundle)),
        _section("Classes", _classes(bundle)),
    )
    return "\n".join(line for part in parts for line in part) + "\n"


def _section(title: str, lines: Iterator[str]) -> list[str]:
    return ["", f"## {title}", "", *lines]


def _item(name: str, value: object) -> str:
    return f"- {name}: {ABSENT if value is None or value == '' else escape(value)}"


def _model(bundle: Bundle, weights_file: str | None) -> Iterator[str]:
    config: Mapping[str, Any] = getattr(bundle.head, "config", {})
    made_of = bundle.made_of
    yield _item("Head", type(bundle.head).__name__)
    yield _item("Parameters of the head", f"{sum(p.numel() for p in bundle.head.parameters()):,}")
    yield _item("Options of the head", _pairs(config))
    yield _item("Backbone, frozen", f"{bundle.source.name}, map taken at {bundle.source.tap}")
    yield _item("Map", " x ".join(map(str, bundle.map_shape)) + " (C, T, H, W)")
    yield _item("SHA-256 of the backbone's weights", bundle.weights_sha256)
    where = f"in this folder, {weights_file}" if weights_file else "not in this folder"
    yield _item("The backbone's weights", where)
    size = bundle.backbone.size_px
    yield _item("Input", f"{bundle.backbone.num_frames} frames, RGB, {size} x {size} px")
    backbone = made_of.get("backbone", {})
    rule = made_of.get("input_pipeline") or backbone.get("frames")
    yield _item("Choice of frames", _pairs(rule) if isinstance(rule, Mapping) else rule)
    views = bundle.views
    yield _item(
        "Views of a video", f"{views.test_clips} clips x {views.test_crops} crops, averaged"
    )
    yield _item("Decoder", made_of.get("decoder"))
    yield _item("Precision of the backbone", bundle.computing.precision)
    yield _item("Stored type of the training's maps", bundle.store.get("stored_type"))


def _data(bundle: Bundle) -> Iterator[str]:
    clips = bundle.made_of.get("clips", {})
    yield _item("Data set", clips.get("dataset"))
    yield _item("SHA-256 of the clip index", clips.get("digest"))
    yield _item("Feature store", bundle.store.get("fingerprint"))
    yield _item("Classes", len(bundle.class_names))
    yield _item("Who collected the videos, their licence, who is in them", None)


def _figures(figures: Mapping[str, Any] | None) -> Iterator[str]:
    if not figures:
        yield f"Of an evaluation: {ABSENT}."
        return
    counts = [figures.get(name, ABSENT) for name in ("split", "evaluated", "failed", "missing")]
    split, evaluated, failed, missing = map(escape, counts)
    yield (
        f"On split {split}: {evaluated} clips evaluated, {failed} failed to decode, {missing} "
        "missing. Percent."
    )
    interval = figures.get("interval")
    told = _pairs(interval) if isinstance(interval, Mapping) else ABSENT
    yield f"Interval: {escape(told)}."
    yield ""
    yield "| figure | value | interval |"
    yield "|---|---|---|"
    head = figures.get("head", {})
    for key, name in _FIGURES.items():
        ends = [_percent(head.get(f"{key}_{end}")) for end in ("low", "high")]
        held = ABSENT if ABSENT in ends else " to ".join(ends)
        yield f"| {name} | {_percent(head.get(key))} | {held} |"


def _limits(bundle: Bundle) -> Iterator[str]:
    dataset = bundle.made_of.get("clips", {}).get("dataset")
    named = escape(dataset) if dataset else f"its data set ({ABSENT})"
    yield f"- For clips like those of {named}: other videos are outside of what it was trained on."
    yield (
        f"- It names one of its {len(bundle.class_names)} classes for any video, also for one that "
        "shows none of them."
    )
    yield "- The figures are of one training and one split; they say nothing of other data."
    yield f"- Whether settings were chosen with these figures in sight: {ABSENT}."
    yield f"- Tests on groups of people or conditions of recording: {ABSENT}."


def _loading() -> Iterator[str]:
    yield "```python"
    yield "from pathlib import Path"
    yield "from dsts_pipeline.serve import Predictor, load_bundle"
    yield ""
    yield 'with Predictor(load_bundle("this folder")) as predictor:'
    yield '    for answer in predictor.predict([Path("video.mp4")]):'
    yield "        print(answer)"
    yield "```"
    yield ""
    yield "or `python cli.py predict`, see docs/predict.md. Loading runs no code of the bundle."


def _settings(bundle: Bundle) -> Iterator[str]:
    settings = _of(bundle.head_record, "provenance", "settings")
    if not isinstance(settings, Mapping) or not settings:
        yield f"{ABSENT.capitalize()}."
        return
    for name in sorted(settings):
        section = settings[name]
        yield _item(escape(name), _pairs(section) if isinstance(section, Mapping) else section)


def _origin(bundle: Bundle) -> Iterator[str]:
    records = {"Head": _of(bundle.head_record, "provenance")}
    records |= {name.capitalize(): record for name, record in bundle.provenance.items()}
    for name, record in records.items():
        known = record if isinstance(record, Mapping) else {}
        changed = ", with changes" if known.get("code_changed") else ""
        commit = f"{known['commit']}{changed}" if known.get("commit") else None
        yield _item(f"{escape(name)}, commit of the code", commit)
        versions = known.get("versions")
        yield _item(f"{escape(name)}, packages", _pairs(versions) if versions else None)


def _classes(bundle: Bundle) -> Iterator[str]:
    headings = ["number", "name", *map(escape, bundle.attribute_names)]
    yield f"| {' | '.join(headings)} |"
    yield "|" + "---|" * len(headings)
    for number, name in enumerate(bundle.class_names):
        row: Sequence[str] = bundle.attributes[number] if bundle.attributes else ()
        yield f"| {number} | {' | '.join(map(escape, (name, *row)))} |"


def _of(record: Any, *keys: str) -> Any:
    for key in keys:
        record = record.get(key) if isinstance(record, Mapping) else None
    return record


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {values[name]}" for name in sorted(values))


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else ABSENT
