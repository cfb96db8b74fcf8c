"""The parts of a bundle in memory, and the rule that they belong together.

Enters: a trained head, the backbone that made the maps that it was trained on, what decided these
maps, labels. Leaves: a `Bundle`, or a `BundleError` that names the two parts that differ.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from torch import nn

from dsts_pipeline.base.errors import BundleError
from dsts_pipeline.clips.decode import Decoder
from dsts_pipeline.extract.checkpoints.key_maps import KEY_MAPS, KeyMapName
from dsts_pipeline.extract.checkpoints.weights import RANDOM
from dsts_pipeline.extract.forward import Computing
from dsts_pipeline.extract.frames.views import Views
from dsts_pipeline.extract.models.backbones import Backbone, build_backbone
from dsts_pipeline.extract.models.model_zoo import find_config, is_config_name, zoo_names
from dsts_pipeline.extract.models.presets import preset_names

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
