"""A bundle: head, backbone, input and labels, which belong together, in a folder of plain files.

Enters: a trained head, the store that it was trained on, the backbone that made the store's maps.
Leaves: `bundle.json` (what decides an answer, where it comes from), `head.json` and
`head.safetensors`, a model card, and by choice the backbone's weights. What does not belong
together is refused, when a bundle is made and when it is loaded.

Nothing in it can run code: a config of mmaction2 is a program (a .json may name one as its base),
so a bundle names a preset, a config of the model zoo that this machine's mmaction2 ships, or holds
a folder of the transformers library, of which the config's plain values and safetensors are read.
Any other name, and any file that bundle.json does not list, is refused before it is read.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

from dsts_pipeline.base.errors import BundleError, UserError
from dsts_pipeline.base.files import read_signed, write_atomic
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings.data import BackboneSettings
from dsts_pipeline.base.settings.features import FeedSettings
from dsts_pipeline.clips.decode import Decoder, name_decoder
from dsts_pipeline.extract.checkpoints.downloads import (
    digest_of_weights,
    is_address,
    locate_weights,
)
from dsts_pipeline.extract.checkpoints.weights import RANDOM
from dsts_pipeline.extract.models.backbones import Backbone
from dsts_pipeline.feature_store.recorded import open_features
from dsts_pipeline.head import load_head, save_head
from dsts_pipeline.serve.bundle_files import (
    BACKBONE_FOLDER,
    FOLDER_FILES,
    RECORD,
    is_known_name,
    new_folder,
    read_record,
    write_record,
)
from dsts_pipeline.serve.bundle_parts import (
    BackboneSource,
    Bundle,
    check_extracted,
    portable_name,
    require_portable,
)
from dsts_pipeline.serve.model_card import CARD, model_card

__all__ = ["BackboneSource", "Bundle", "bundle_of_run", "load_bundle", "save_bundle"]

# Weights up to this size are copied into a bundle unless the caller says otherwise.
COPIED_BYTES = 16 * 2**20
# Where a bundle may have its weights fetched from. Others of fsspec's open files inside others,
# or hold templates that are run.
_FETCHED = ("https", "http", "s3", "gs", "hf")


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
    store = open_features(features, feed)
    made_of = store.manifest["made_of"]
    check_extracted(made_of)
    taps = backbone.taps or (made_of["backbone"].get("tap", "backbone"),)
    values = backbone.model_dump(include={"name", "weights", "num_frames", "size_px", "key_map"})
    source = BackboneSource(tap=taps[0], **values)
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
        figures=_read_figures(metrics, head_folder.name, store.fingerprint),
    )


def _read_figures(path: Path, head_name: str, fingerprint: str) -> dict[str, Any] | None:
    """Of the last evaluation, if it was of these features."""
    if not path.exists():
        return None
    metrics = read_signed(path)
    if metrics["store"] != fingerprint or head_name not in metrics["heads"]:
        return None
    names = ("split", "evaluated", "failed", "missing", "interval")
    return {name: metrics[name] for name in names} | {"head": metrics["heads"][head_name]}


def save_bundle(out: str | Path, bundle: Bundle, *, with_backbone: bool | None = None) -> Path:
    """Write `bundle` as the folder `out`, which appears when it is complete.

    Args:
        with_backbone: Whether the backbone's weights are copied in; None: files up to
            `COPIED_BYTES` are, which takes in the embedded one. Otherwise the bundle holds their
            path or address, and their digest.

    Raises:
        BundleError: `out` exists, or the backbone is a config file of one's own, which is a program
            and has no place in a bundle.
    """
    out, content = Path(out), _describe(bundle)
    with new_folder(out) as folder:
        save_head(folder, bundle.head, dict(bundle.head_record))
        if (source := _what_to_copy(bundle.source.weights, with_backbone)) is not None:
            copy = _copy_weights(source, folder)
            if digest_of_weights(copy) != bundle.weights_sha256:
                raise BundleError(f"{source}: changed since it was loaded; export again")
            content["backbone"]["file"] = copy.name
        card = model_card(bundle, weights_file=content["backbone"]["file"])
        write_atomic(folder / CARD, card.encode())
        write_record(folder, content)
    return out


def _describe(bundle: Bundle) -> dict[str, Any]:
    return {
        "title": bundle.title,
        "classes": {
            "names": list(bundle.class_names),
            "attribute_names": list(bundle.attribute_names),
            "attributes": [list(row) for row in bundle.attributes],
        },
        "backbone": asdict(bundle.source)
        | {"name": portable_name(bundle.source, bundle.backbone)}
        | {"file": None, "sha256": bundle.weights_sha256, "map_shape": list(bundle.map_shape)},
        "made_of": dict(bundle.made_of),
        "store": dict(bundle.store),
        "provenance": dict(bundle.provenance),
        "figures": bundle.figures,
    }


def _what_to_copy(source: str, with_backbone: bool | None) -> Path | None:
    """The weights file or folder that goes into the bundle, if one does."""
    if with_backbone is False or source == RANDOM:
        return None
    place = Path(source) if Path(source).is_dir() else locate_weights(source).path
    files = [path for path in place.iterdir() if path.is_file()] if place.is_dir() else [place]
    size = sum(file.stat().st_size for file in files)
    return place if with_backbone or size <= COPIED_BYTES else None


def _copy_weights(source: Path, folder: Path) -> Path:
    """Copy a weights file, or what is read of a folder of the transformers library."""
    if not source.is_dir():
        suffix = source.suffix if is_known_name(f"backbone{source.suffix}") else ""
        return Path(shutil.copyfile(source, folder / f"backbone{suffix}"))
    copy = folder / BACKBONE_FOLDER
    copy.mkdir()
    for path in source.iterdir():
        if FOLDER_FILES.fullmatch(path.name):
            shutil.copyfile(path, copy / path.name)
    return copy


def load_bundle(path: str | Path, *, weights: str | None = None) -> Bundle:
    """Read a bundle that `save_bundle` wrote, the backbone on the CPU.

    Args:
        weights: Where the backbone's weights are now, if the bundle holds only a reference that
            does not lead there; they must be the same ones.

    Raises:
        BundleError: A part is missing, damaged, or does not belong to the others.
    """
    folder = Path(path)
    record = read_record(folder)
    try:
        head, head_record = load_head(folder)
        source, sha256 = _read_source(folder, record, weights)
        backbone = source.build(sha256)
        classes = record["classes"]
        return Bundle(
            head=head,
            head_record=head_record,
            backbone=backbone,
            source=source,
            made_of=record["made_of"],
            store=record["store"],
            class_names=tuple(classes["names"]),
            attribute_names=tuple(classes["attribute_names"]),
            attributes=tuple(map(tuple, classes["attributes"])),
            provenance=record["provenance"],
            figures=record["figures"],
            notes=_tell_versions(record["made_of"], backbone),
        )
    except KeyError as error:
        raise BundleError(f"{folder / RECORD}: lacks {error}; export the bundle again") from None
    except (TypeError, ValueError, AttributeError) as error:  # a value of another kind
        raise BundleError(
            f"{folder / RECORD}: damaged ({error}); export the bundle again"
        ) from None
    except UserError as error:
        raise BundleError(f"{folder}: {error}") from None


def _read_source(
    folder: Path, record: Mapping[str, Any], weights: str | None
) -> tuple[BackboneSource, str | None]:
    """How the backbone is built, its weights where they are now, and their digest."""
    values = dict(record["backbone"])
    del values["map_shape"]
    file, sha256 = values.pop("file"), values.pop("sha256")
    source = BackboneSource(**values)
    require_portable(source)
    if file and not any(name == file or name.startswith(f"{file}/") for name in record["files"]):
        raise BundleError(f"{RECORD} names no digest of {file}; export the bundle again")
    if weights is None and file is None:
        _require_safe_reference(source.weights, sha256)
    place = weights or (str(folder / file) if file else source.weights)
    if not (place == RANDOM or is_address(place) or Path(place).exists()):
        raise BundleError(
            f"backbone: its weights {place} are not here and not in the bundle (sha256 {sha256}); "
            "say where they are by --weights, or export with --with-backbone"
        )
    return replace(source, weights=place), sha256


def _require_safe_reference(weights: str, sha256: str | None) -> None:
    """Refuse addresses of kinds that do more than fetch a file, and those without a digest."""
    if weights == RANDOM or not is_address(weights):
        return
    scheme = weights.partition("://")[0].lower()
    if scheme not in _FETCHED or "::" in weights or sha256 is None:
        raise BundleError(
            f"backbone: its weights are at {scheme}://..., expected an address of "
            f"{', '.join(_FETCHED)} whose sha256 is stated; get the file yourself and give it by "
            "--weights"
        )


def _tell_versions(made_of: Mapping[str, Any], backbone: Backbone) -> tuple[str, ...]:
    """What differs from where the maps were made and may change last digits."""
    before, now = made_of["backbone"].get("versions", {}), backbone.describe().get("versions", {})
    pairs = [(f"{name} {before[name]}", f"{name} {now.get(name)}") for name in sorted(before)]
    decoders = [made_of[key] for key in ("decoder", "decoder_fallback") if key in made_of]
    for named in decoders:
        here = name_decoder(cast(Decoder, named.split()[0]))
        pairs.append((named.removesuffix(" (exact frames only)"), here))
    return tuple(f"{new} here, {old} where the maps were made" for old, new in pairs if old != new)
