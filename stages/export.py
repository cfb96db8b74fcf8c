"""Take something out of a run: features as one file, a trained head, lists for other tools.

A format of `export` is a function `write(settings, out, **options)`; its keywords are the options
that it knows. A new one is a line in `FORMATS`, and its options in the command.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.files import format_bytes, hold_alone
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.extract.downloads import RANDOM
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.hdf5 import export_hdf5
from dsts_pipeline.feature_store.joining import follow_head
from dsts_pipeline.feature_store.opening import open_features, read_features_record
from dsts_pipeline.head import load_head
from dsts_pipeline.serve import Bundle, bundle_of_run, save_bundle
from dsts_pipeline.serve.exported_model import (
    FileFormat,
    decode_some,
    head_subject,
    read_some,
    times_table,
    whole_subject,
    write_model,
)
from dsts_pipeline.serve.mmaction_files import (
    join_checkpoint,
    split_checkpoint,
    write_annotation_lists,
)
from stages import common

# Of evaluate.split: what an exported model is compared on.
NUM_MAPS = 64
NUM_VIDEOS = 16


def run(settings: Settings, *, out: Path, format: str | None = None, **options: Any) -> None:
    """Write `out` in `format`; without one, in that whose names end as `out` does.

    Args:
        options: Of the format; those that are None were not given.

    Raises:
        SettingsError: There is no such format, the name does not fit it, or it has no such option.
    """
    name = format or _guess_format(out)
    if name not in FORMATS:
        raise SettingsError(f"format {name}: expected one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if chosen.suffixes and out.suffix not in chosen.suffixes:
        raise SettingsError(
            f"{out}, format {name}: expected a name that ends {_list_suffixes(chosen)}"
        )
    given = {option: value for option, value in options.items() if value is not None}
    if unknown := given.keys() - inspect.signature(chosen.write).parameters.keys():
        option = f"--{sorted(unknown)[0].replace('_', '-')}"
        raise SettingsError(f"{option} has no meaning for format {name}; leave it out")
    chosen.write(settings, out, **given)


# ---- hdf5: a feature store, or one split of it, as one file ------------------------------------


def write_hdf5(
    settings: Settings, out: Path, *, store: str | None = None, split: str | None = None
) -> None:
    """Write `out`, which appears when it is complete.

    Raises:
        StoreError: The store is damaged, or the file exists or can't be written.
    """
    feed = settings.feed
    if store is None:
        separate = feed.model_copy(update={"views": "separate"})  # a reader of the file joins
        source = open_features(common.FEATURES, separate)
    else:
        source = open_store(
            store,
            num_threads=feed.num_read_threads,
            cache_dir=feed.cache_dir,
            cache_bytes=feed.cache_bytes,
            stall_seconds=feed.stall_seconds,
        )
    num_maps = len(source) if split is None else len(source.rows_of_split(split))
    with track("export", num_maps, "maps") as progress:
        export_hdf5(source, out, split, on_maps=progress.advance)
    console.print(f"{out}: {num_maps:,} maps, {format_bytes(out.stat().st_size)}", soft_wrap=True)


# ---- bundle: head, backbone, input and labels in one folder ------------------------------------


def write_bundle(
    settings: Settings, out: Path, *, head: str = "dsts", with_backbone: bool | None = None
) -> None:
    """Write the folder `out`, which appears when it is complete.

    Raises:
        BundleError: The parts do not belong together, or `out` exists.
        CheckpointError, DataError, StoreError: The run has no finished head or features.
    """
    bundle = _bundle_of_run(settings, head)
    save_bundle(out, bundle, with_backbone=with_backbone)
    size = format_bytes(sum(path.stat().st_size for path in out.rglob("*") if path.is_file()))
    held = any(path.name.partition(".")[0] == "backbone" for path in out.iterdir())
    weights = "are in it" if held else f"stay at {bundle.source.weights}"
    if bundle.source.weights == RANDOM:
        weights = "are random, drawn anew from their seed"
    console.print(
        f"{out}: {bundle.title}, {len(bundle.class_names)} classes, {size}; the backbone's weights "
        f"{weights}",
        soft_wrap=True,
        highlight=False,
    )


def _bundle_of_run(settings: Settings, head: str) -> Bundle:
    return bundle_of_run(
        common.HEADS / head,
        common.FEATURES,
        common.METRICS,
        backbone=settings.backbone,
        feed=settings.feed,
    )


# ---- onnx and program: the head, alone or behind its backbone, for other runtimes --------------


def write_model_file(
    settings: Settings, out: Path, *, kind: FileFormat, head: str = "dsts", whole: bool = False
) -> None:
    """Write `out` and `out`.json; print how it compares with PyTorch.

    An ONNX file holds no code; a program of torch.export is for trusted use.

    Raises:
        UserError: Parts are missing or do not belong together, or the export differs from PyTorch.
    """
    split = settings.evaluate.split
    trained, made = load_head(common.HEADS / head)
    store = open_features(common.FEATURES, follow_head(settings.feed, made))
    if made.get("store") != store.fingerprint:
        raise CheckpointError(
            f"{common.HEADS / head}: trained on store {made.get('store')}, the features are those "
            f"of {store.fingerprint}; run `python cli.py train-head`"
        )
    if whole:
        bundle = _bundle_of_run(settings, head)
        frames = decode_some(bundle, ClipIndex.load(common.CLIP_INDEX), split, NUM_VIDEOS)
        subject = whole_subject(bundle.backbone, trained, frames, num_joined=bundle.num_joined)
    else:
        subject = head_subject(trained, read_some(store, split, NUM_MAPS))
    record = {
        "title": made["title"],
        "model": "backbone and head" if whole else "head",
        "class_names": list(store.class_names),
        "store": store.fingerprint,
        "made_of": store.manifest["made_of"],
        "compared_on": split,
        "provenance": {"head": made.get("provenance"), "export": collect_provenance({})},
    } | store.describe_reading()
    exported = write_model(out, subject, kind, record)
    found = exported.comparison
    routed = f", {found.num_routings} different routings" if found.num_routings else ""
    console.print(
        f"{out}: {format_bytes(exported.num_bytes)}; equals PyTorch on {found.num_clips} clips of "
        f"{split}{routed}: largest difference of a logit {found.largest_difference:.1e}",
        soft_wrap=True,
        highlight=False,
    )
    console.print(times_table(exported.times))


# ---- the formats by name -----------------------------------------------------------------------


class Format(NamedTuple):
    """What writes it, and how names of its files end; none: it is a folder."""

    write: Callable[..., None]
    suffixes: tuple[str, ...]


FORMATS = {
    "hdf5": Format(write_hdf5, (".h5", ".hdf5")),
    "bundle": Format(write_bundle, ()),
    "onnx": Format(partial(write_model_file, kind="onnx"), (".onnx",)),
    "program": Format(partial(write_model_file, kind="program"), (".pt2",)),
}


def _guess_format(out: Path) -> str:
    for name, chosen in FORMATS.items():
        if out.suffix in (chosen.suffixes or ("",)):
            return name
    endings = ", ".join(f"{_list_suffixes(chosen)} ({name})" for name, chosen in FORMATS.items())
    raise SettingsError(
        f"{out}: expected a name that ends {endings}; or say the format by --format"
    )


def _list_suffixes(chosen: Format) -> str:
    return f"in {' or '.join(chosen.suffixes)}" if chosen.suffixes else "without a suffix"


# ---- for mmaction2's own tools: annotation lists, and checkpoints both ways --------------------


def export_annotations(settings: Settings, out: Path) -> None:
    """Write the clip index as a list per split, and the class names, into the folder `out`.

    Raises:
        DataError: There is no clip index, or a clip is no whole video.
    """
    index = ClipIndex.load(common.CLIP_INDEX)
    counts = write_annotation_lists(index, out)
    told = ", ".join(f"{count:,} {split}" for split, count in counts.items())
    console.print(f"{out}: lists of {told} clips; data_prefix is dict(video={index.root!r})")


def convert_checkpoint(
    settings: Settings, source: Path, out: Path, weights: Path | None, store: bool
) -> None:
    """Write `out`: a checkpoint if its name ends in .pth, else a folder of weights and a head.

    Raises:
        CheckpointError: A file is missing, unsound or holds no DSTS head.
        SettingsError: The store of this run is not one of the checkpoint's backbone.
    """
    if out.suffix == ".pth":
        head = source if source.is_dir() else None
        count = join_checkpoint(out, head=head, weights=weights if head else source)
        console.print(
            f"{out}: {count} tensors; load_from of a config, or the file of tools/test.py"
        )
        return
    found = split_checkpoint(source, out)
    if not store:
        console.print(
            f"{found.weights} and {found.head}; cache its maps with `python cli.py extract --set "
            f"backbone.weights={found.weights}`, then run this again with --store to evaluate"
        )
        return
    record = read_features_record(common.FEATURES)
    used = record["made_of"]["backbone"]["weights"].get("sha256")
    if used != found.sha256:
        raise SettingsError(
            f"{common.FEATURES}: its maps are of weights {used}, the checkpoint's are "
            f"{found.sha256}; extract with --set backbone.weights={found.weights} first"
        )
    place = common.HEADS / "dsts"
    with hold_alone(common.HEADS, "convert-checkpoint"):
        split_checkpoint(source, out, head_folder=place, store=record["fingerprint"])
    console.print(f"{place}: the head of {source}; go on with `python cli.py evaluate`")
