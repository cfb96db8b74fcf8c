"""The parts of a bundle in memory, and the rule that they belong together.

Enters: a trained head, the backbone that made the maps that it was trained on, what decided these
maps, labels. Leaves: a `Bundle`, or a `BundleError` that names the two parts that differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.model_zoo import find_config, is_config_name, preset_names, zoo_names
from dsts_pipeline.extract.views import Views
from dsts_pipeline.extract.weights import KEY_MAPS, RANDOM, KeyMapName

_NAMED = (
    "a bundle names a preset, a config of mmaction2's model zoo by its name, or holds a folder of "
    "the transformers library; a config file is a program and is never read from a bundle"
)


@dataclass(frozen=True)
class BackboneSource:
    """How the backbone is built again: the arguments of `build_backbone`."""

    name: str
    weights: str
    tap: str
    num_frames: int | None = None
    size_px: int | None = None
    key_map: KeyMapName = "auto"

    def build(self, sha256: str | None = None) -> Backbone:
        """The backbone, frozen, its weights' digest compared with `sha256`."""
        arguments = asdict(self)
        taps = (arguments.pop("tap"),)
        return build_backbone(**arguments, taps=taps, weights_sha256=sha256)


def portable_name(source: BackboneSource, backbone: Backbone) -> str:
    """What a bundle calls the backbone: a name that means the same everywhere, and is no program.

    Raises:
        BundleError: It is built from a config file of one's own.
    """
    name = source.name
    if is_own_name(name):
        return name
    if (Path(name) / "config.json").is_file() and source.weights != RANDOM:
        return backbone.name  # of the transformers library: its folder is where the weights are
    path = find_config(name) if is_config_name(name) or Path(name).suffix == ".py" else None
    if path is not None and zoo_names().get(path.stem, Path()).resolve() == path.resolve():
        return path.stem
    raise BundleError(
        f"backbone.name is {name}: {_NAMED}; `predict` and `demo-app` without --bundle work with it"
    )


def require_portable(source: BackboneSource) -> None:
    """Refuse a bundle that names anything that could be read or run as a program.

    Raises:
        BundleError: Its backbone has no name of a preset or of a config of the model zoo, or a
            value of another type.
    """
    if not isinstance(source.name, str) or not is_own_name(source.name):
        raise BundleError(f"backbone {source.name!r}: {_NAMED}; export the bundle again")
    texts = source.weights, source.tap, source.key_map
    sizes = source.num_frames, source.size_px
    if not all(isinstance(text, str) for text in texts) or not all(
        size is None or type(size) is int for size in sizes
    ):
        raise BundleError("backbone: values of other types than expected; export the bundle again")
    if source.key_map not in ("auto", *KEY_MAPS):
        raise BundleError(
            f"backbone: key map {source.key_map!r}, expected one of {', '.join(KEY_MAPS)}; export "
            "the bundle again"
        )


def is_own_name(name: str) -> bool:
    """Whether it is exactly a preset's or a zoo config's; a path never is."""
    return name in preset_names() or name in zoo_names()


@dataclass(frozen=True)
class Bundle:
    """All that an answer to a video depends on.

    Attributes:
        head: In evaluation mode.
        head_record: What the head's file says of its making: "store", "title", "provenance".
        backbone: Frozen, with one tap.
        source: How the backbone is built again.
        made_of: What decided the maps that the head was trained on, as in the store's manifest:
            backbone, decoder, sampling, views, precision.
        store: The store's "fingerprint" and "stored_type".
        class_names, attribute_names, attributes: As in the clip index.
        provenance: Of the features and of the bundle.
        figures: Of the evaluation, if there was one.
        notes: Differences to where it was made that may change an answer's last digits.

    Raises:
        BundleError: Parts do not belong together.
    """

    head: nn.Module
    head_record: Mapping[str, Any]
    backbone: Backbone
    source: BackboneSource
    made_of: Mapping[str, Any]
    store: Mapping[str, str]
    class_names: tuple[str, ...]
    attribute_names: tuple[str, ...] = ()
    attributes: tuple[tuple[str, ...], ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_parts(self)

    @property
    def title(self) -> str:
        """The head's name for people."""
        return str(self.head_record.get("title", type(self.head).__name__))

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of what goes from the backbone to the head."""
        return self.backbone.map_shape

    @property
    def views(self) -> Views:
        """The views that a clip's answer is the mean of."""
        views = self.made_of.get("views", {})
        chosen = {name: views[name] for name in ("test_clips", "test_crops") if name in views}
        return Views(**chosen)

    @property
    def decoder(self) -> Decoder:
        """The decoder that made the maps, and where that is decord, whatever else reads a video."""
        named = self.made_of["decoder"].split()[0]
        return "auto" if named == "decord" else cast(Decoder, named)

    @property
    def decoder_fallback(self) -> Decoder | None:
        """The one that was tried where it failed."""
        named = self.made_of.get("decoder_fallback")
        return None if named is None else cast(Decoder, named.split()[0])

    @property
    def computing(self) -> Computing:
        """How the backbone was run."""
        made_of = self.made_of
        return Computing(
            precision=made_of.get("precision", "float32"),
            compile=made_of.get("compiled", False),
            channels_last=made_of.get("channels_last", False),
        )

    @property
    def weights_sha256(self) -> str | None:
        """Digest of the backbone's weights; None for random ones."""
        return self.made_of["backbone"]["weights"].get("sha256")


def check_extracted(made_of: Mapping[str, Any]) -> None:
    """Refuse maps that were made elsewhere.

    Raises:
        BundleError: The features were imported.
    """
    if "import" in made_of or "backbone" not in made_of:
        raise BundleError(
            "the features were imported, so nothing says how the map of a new video is made; "
            "a bundle needs features of `python cli.py extract`"
        )


def check_parts(bundle: Bundle) -> None:
    """Refuse a bundle whose parts do not belong together.

    Raises:
        BundleError: Naming the two that differ.
    """
    made_of = bundle.made_of
    check_extracted(made_of)
    trained_on, fingerprint = bundle.head_record.get("store"), bundle.store["fingerprint"]
    if trained_on != fingerprint:
        raise BundleError(
            f"head: trained on store {trained_on}, the bundle is of store {fingerprint}; run "
            "`python cli.py train-head` on these features and export again"
        )
    config = cast(dict[str, Any], bundle.head.config)
    shape, names = bundle.backbone.map_shape, bundle.class_names
    if config["in_channels"] != shape[0]:
        raise BundleError(
            f"head: expects maps of {config['in_channels']} channels, the backbone "
            f"{bundle.source.name} gives {shape[0]} ({' x '.join(map(str, shape))}); export a head "
            "that was trained on this backbone's maps"
        )
    if config["num_classes"] != len(names):
        raise BundleError(
            f"labels: {len(names)} names for the head's {config['num_classes']} classes; export "
            "again with the labels that the head was trained on"
        )
    if bundle.attributes and len(bundle.attributes) != len(names):
        raise BundleError(
            f"labels: attributes of {len(bundle.attributes)} classes, {len(names)} have names; "
            "export again"
        )
    _compare_backbones(bundle.backbone.describe(), made_of["backbone"], bundle.source.name)


def _compare_backbones(found: dict[str, Any], expected: Mapping[str, Any], name: str) -> None:
    """Versions aside: another release of torch may change last bits, no more."""
    for part in sorted((found.keys() | expected.keys()) - {"versions"}):
        if found.get(part) != expected.get(part):
            raise BundleError(
                f"backbone {name}: its {part} is {_show(found.get(part))}, the head was trained on "
                f"maps of {_show(expected.get(part))}; give the backbone that made the features "
                "(settings of `backbone`, or --weights), or extract and train again"
            )


def _show(value: object) -> str:
    text = str(value)
    return text if len(text) <= 90 else f"{text[:87]}..."


# ---- The model card of a bundle: what is known of it, for people, and what is not known. --------
#
# Enters: a `Bundle`. Leaves: Markdown. Every value comes from the bundle's own records; what they
# do not hold is said to be "not recorded". Text from data sets is shown as text, whatever it
# contains.

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
