"""A bundle: head, backbone, input and labels, all that an answer to a video depends on.

Enters: what a run left: a trained head, the store that it was trained on, the backbone that made
the store's maps. Leaves: a `Bundle` and its model card, or a `BundleError` that names the two parts
that do not belong together. `bundle_folder` writes and reads bundles.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jinja2 import Environment, StrictUndefined
from torch import nn

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.base.files import read_signed
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import BackboneSettings, FeedSettings
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.extract.backbones import Backbone
from dsts_pipeline.extract.build import build_backbone
from dsts_pipeline.extract.flow import Modality
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.views import Views
from dsts_pipeline.extract.weights import KeyMapName
from dsts_pipeline.feature_store import FeatureStore
from dsts_pipeline.feature_store.joining import follow_head
from dsts_pipeline.feature_store.opening import open_features
from dsts_pipeline.head import load_head


@dataclass(frozen=True)
class BackboneSource:
    """How the backbone is built again: the arguments of `build_backbone`."""

    name: str
    weights: str
    tap: str
    num_frames: int | None = None
    size_px: int | None = None
    frame_interval: int | None = None
    key_map: KeyMapName = "auto"
    input: Modality = "rgb"

    def build(self, sha256: str | None = None) -> Backbone:
        """The backbone, frozen, its weights' digest compared with `sha256`."""
        arguments = asdict(self)
        taps = (arguments.pop("tap"),)
        return build_backbone(**arguments, taps=taps, weights_sha256=sha256)


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
        check_extracted(self.made_of)
        trained_on = self.head_record.get("store")
        fingerprint = self.store["fingerprint"]
        if trained_on != fingerprint:
            raise BundleError(
                f"head: trained on store {trained_on}, the bundle is of store {fingerprint}; run "
                "`python cli.py train-head` on these features and export again"
            )
        if self.num_joined not in (1, self.views.segments):
            raise BundleError(
                f"head: trained on joined maps of {self.num_joined} views, the bundle's clips have "
                f"{self.views.segments} segments; run `python cli.py train-head` and export again"
            )
        config = cast(dict[str, Any], self.head.config)
        num_names = len(self.class_names)
        if config["in_channels"] != self.map_shape[0]:
            raise BundleError(
                f"head: expects maps of {config['in_channels']} channels, the backbone "
                f"{self.source.name} gives {self.map_shape[0]} "
                f"({' x '.join(map(str, self.map_shape))}); export a head that was trained on this "
                "backbone's maps"
            )
        if config["num_classes"] != num_names:
            raise BundleError(
                f"labels: {num_names} names for the head's {config['num_classes']} classes; export "
                "again with the labels that the head was trained on"
            )
        if self.attributes and len(self.attributes) != num_names:
            raise BundleError(
                f"labels: attributes of {len(self.attributes)} classes, {num_names} have names; "
                "export again"
            )
        _compare_backbones(self.backbone.describe(), self.made_of["backbone"], self.source.name)

    @property
    def title(self) -> str:
        """The head's name for people."""
        return str(self.head_record.get("title", type(self.head).__name__))

    @property
    def map_shape(self) -> tuple[int, int, int, int]:
        """(C, T, H, W) of what comes from the backbone."""
        return self.backbone.map_shape

    @property
    def views(self) -> Views:
        """The views that a clip's answer is the mean of, where none are joined."""
        views = self.made_of.get("views", {})
        names = ("test_clips", "test_crops", "segments")
        return Views(**{name: views[name] for name in names if name in views})

    @property
    def num_joined(self) -> int:
        """Views whose maps are one map for the head, one after another in time; 1: one."""
        return int(self.head_record.get("joined_views", 1))

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


# ---- what a run left ---------------------------------------------------------------------------


def bundle_of_run(
    head_folder: Path,
    features: Path,
    metrics: Path,
    *,
    backbone: BackboneSettings,
    feed: FeedSettings,
) -> Bundle:
    """What a run left: a head, the store that it was trained on, and the backbone of the settings.

    Args:
        head_folder: The head's.
        features: The record of the store, outputs/features.json.
        metrics: Of the last evaluation, which need not exist.

    Raises:
        BundleError: They do not belong together.
        CheckpointError, DataError, StoreError: The run has no finished head or features.
    """
    head, head_record = load_head(head_folder)
    store = open_features(features, follow_head(feed, head_record))
    made_of = store.manifest["made_of"]
    check_extracted(made_of)
    if backbone.weights is None:
        raise BundleError("backbone.weights is null; name the weights that the maps were made with")
    taps = backbone.taps or (made_of["backbone"].get("tap", "backbone"),)
    source = BackboneSource(
        name=backbone.name,
        weights=backbone.weights,
        num_frames=backbone.num_frames,
        size_px=backbone.size_px,
        frame_interval=backbone.frame_interval,
        tap=taps[0],
        key_map=backbone.key_map,
        input=backbone.input,
    )
    return Bundle(
        head=head,
        head_record=head_record,
        backbone=source.build(backbone.weights_sha256),
        source=source,
        made_of=made_of,
        store={"fingerprint": store.fingerprint, "stored_type": store.stored_type},
        class_names=store.class_names,
        attribute_names=store.attribute_names,
        attributes=store.attributes,
        provenance={
            "features": store.manifest["provenance"],
            "bundle": collect_provenance({"backbone": backbone.model_dump(mode="json")}),
        },
        figures=_read_figures(metrics, head_folder.name, store),
    )


def _read_figures(path: Path, head_name: str, store: FeatureStore) -> dict[str, Any] | None:
    """Of the last evaluation, if it was of these features, read in this way."""
    if not path.exists():
        return None
    metrics = read_signed(path)
    num_joined = (metrics.get("views") or {}).get("joined", 1)
    is_same = (metrics["store"], num_joined) == (store.fingerprint, store.num_joined)
    if not is_same or head_name not in metrics["heads"]:
        return None
    names = ("split", "evaluated", "failed", "missing", "interval")
    left_out = {"left_out": metrics.get("left_out", {})}
    return (
        {name: metrics[name] for name in names} | left_out | {"head": metrics["heads"][head_name]}
    )


# ---- the model card: what is known of a bundle, for people, and what is not known --------------
#
# Every value comes from the bundle's own records; what these do not hold is None and shown as "not
# recorded". Text from data sets is shown as text, whatever it contains.

ABSENT = "not recorded"
_FIGURES = {"top1": "top-1", "top5": "top-5", "class_wise": "class-wise mean"}
# Underscores within a word, brackets without square ones before them, and the like mean nothing.
_MARKS = re.compile(r"[\\`*\[\]#|]|^\+|(?<![^\W_])_|_(?![^\W_])")
# What Markdown's dialects read and not all of them let a backslash undo; a colon before a space
# makes no address.
_ENTITIES = re.compile(r"[&<>~@]|:(?=\S)")


def model_card(bundle: Bundle, *, weights_file: str | None) -> str:
    """The card as Markdown.

    Args:
        weights_file: The backbone's weights in the bundle's folder; None: they are elsewhere.
    """
    environment = Environment(
        undefined=StrictUndefined,
        finalize=lambda value: ABSENT if value is None else escape(value),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["pairs"] = _pairs
    template = files("dsts_pipeline.serve").joinpath("model_card.md.j2").read_text("utf-8")
    figures = (bundle.figures or {}).get("head", {})
    left_out = (bundle.figures or {}).get("left_out") or {}
    training = _mapping(bundle.head_record.get("provenance"))
    origins = {"Head": training}
    origins |= {name.capitalize(): _mapping(made) for name, made in bundle.provenance.items()}
    return environment.from_string(template).render(
        bundle=bundle,
        weights_file=weights_file,
        head_type=type(bundle.head).__name__,
        num_parameters=f"{sum(p.numel() for p in bundle.head.parameters()):,}",
        frame_rule=bundle.made_of.get("input_pipeline") or bundle.made_of["backbone"].get("frames"),
        clips=bundle.made_of.get("clips", {}),
        figures=bundle.figures,
        bounded="intervals" not in left_out,
        left_out=[left_out[name] for name in ("intervals", "top5") if name in left_out],
        rows=[
            (name, *(_percent(figures.get(f"{key}{end}")) for end in ("", "_low", "_high")))
            for key, name in _FIGURES.items()
            if key not in left_out
        ],
        settings=sorted(_mapping(training.get("settings")).items()),
        origins=origins.items(),
    )


def escape(value: object) -> str:
    """`value` as text that Markdown shows as it is: no markup, no link, no line of its own.

    Examples:
        >>> escape("<b>*pike*</b> | 5")
        '&#60;b&#62;\\\\*pike\\\\*&#60;/b&#62; \\\\| 5'
    """
    text = " ".join(str(value).split())
    text = _MARKS.sub(r"\\\g<0>", "".join(sign for sign in text if sign.isprintable()))
    text = _ENTITIES.sub(lambda found: f"&#{ord(found[0])};", text)
    return text.replace("www.", "www&#46;")


def _mapping(record: Any) -> Mapping[str, Any]:
    return record if isinstance(record, Mapping) else {}


def _pairs(values: Any) -> Any:
    """A mapping's entries that have a value as text, None if there are none; what is no mapping
    stays."""
    if not isinstance(values, Mapping):
        return values
    known = sorted(name for name, value in values.items() if value is not None)
    return ", ".join(f"{name} = {values[name]}" for name in known) or None


def _percent(value: Any) -> str | None:
    return f"{100 * value:.1f}" if isinstance(value, int | float) else None
