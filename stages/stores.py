"""Look after feature stores: check and repair them, list and remove them, bring features in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dsts_pipeline.base.errors import StoreError, UserError
from dsts_pipeline.base.files import format_bytes, read_json, sign, write_json
from dsts_pipeline.base.groups import tell_shared_groups
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.provenance import collect_provenance
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feature_store import StoreWriter, layout, open_store
from dsts_pipeline.feature_store.hdf5 import HDF5_CURE, HDF5_SUFFIXES
from dsts_pipeline.feature_store.housekeeping import (
    StoreEntry,
    find_suspects,
    keep_provenance,
    list_stores,
    remove_damaged,
    remove_store,
)
from dsts_pipeline.feature_store.importing import (
    LabelRow,
    StoreSource,
    doubt_layout,
    find_videos,
    open_source,
    plan_import,
    read_labels,
    survey_source,
    write_import,
)
from dsts_pipeline.feature_store.manifest import load_manifest
from dsts_pipeline.feature_store.opening import read_features_record, record_store, require_recorded
from dsts_pipeline.feature_store.statistics import ChannelStatistics
from dsts_pipeline.feature_store.verify import ValueReport, Verdict, check_store
from dsts_pipeline.feature_store.writer import require_space, survey_store
from stages import common

Extract = Callable[..., None]  # the stage, which `verify --repair` runs
_LIST_COLUMNS = 170  # that the tables need to be read
_VERDICT_COLUMNS = 100
_NUM_LISTED = 20  # of damage and of warnings


# ---- verify: check a store, tell what was found, have damaged shards extracted again -----------


def verify(
    settings: Settings,
    *,
    extract: Extract,
    store: str | None = None,
    fast: bool = False,
    repair: bool = False,
    strict: bool = False,
    json_file: Path | None = None,
) -> None:
    """Check the store (that of outputs/features.json by default) and print the table.

    Args:
        extract: The stage `extract`, which writes again what `repair` removes.

    Raises:
        StoreError: The store is missing, unfinished or damaged and was not repaired; with
            `strict` also what is only strange. It is not the one that features.json recorded.
    """
    record = read_features_record(common.FEATURES) if store is None else None
    location = str(record["store"] if record else store)
    try:
        verdict = check_store(location, settings.feed, fast=fast)
    except StoreError:
        if not repair:
            raise
        _repair_store(settings, location, None, extract)
        verdict = check_store(location, settings.feed, fast=fast)
    if repair and verdict.damage:
        _print_table(verdict_table(verdict), _VERDICT_COLUMNS)
        _repair_store(settings, location, verdict, extract)
        verdict = check_store(location, settings.feed, fast=fast)
    suspects = () if verdict.damage else _find_suspects(location)
    if repair and suspects:
        _tell_suspects(location, suspects)
        # A new store, in which the suspect maps alone are extracted again; the former one stays.
        planned = _planned_store(settings)
        extract(settings, earlier=location)
        location = str(planned)
        suspects = ()
        verdict = check_store(location, settings.feed, fast=fast)
        record = read_features_record(common.FEATURES)
    _print_table(verdict_table(verdict), _VERDICT_COLUMNS)
    if suspects:
        _tell_suspects(location, suspects)
        cure = "makes a new store in which these alone are extracted again"
        console.print(f"`python cli.py verify --repair` {cure}", soft_wrap=True)
    if json_file is not None:
        write_json(json_file, verdict.to_json() | {"suspects": list(suspects)})
    cure = _tell_cure(location, verdict, named=store is not None)
    verdict.require_sound(cure, strict=strict)
    if record and Path(location).is_dir():  # sound in itself, and yet another one
        require_recorded(common.FEATURES, record, load_manifest(location), location)


def _find_suspects(location: str) -> tuple[str, ...]:
    """Clips that the former rule of frames may have read wrongly, by the clip index at hand."""
    if not Path(location).is_dir() or not Path(common.CLIP_INDEX).exists():
        return ()
    index = ClipIndex.load(common.CLIP_INDEX)
    store = open_store(location)
    if store.manifest["made_of"].get("clips", {}).get("dataset") != index.dataset:
        return ()
    return find_suspects(store, index)


def _tell_suspects(location: str, suspects: Sequence[str]) -> None:
    shown = ", ".join(suspects[:5]) + (", ..." if len(suspects) > 5 else "")
    console.print(
        f"{location}: {len(suspects):,} clips are suspect, since decord may have read other frames "
        f"of their files than a player shows: {shown}",
        soft_wrap=True,
    )


def _tell_cure(location: str, verdict: Verdict, *, named: bool) -> str:
    """What to run when a store is damaged; `named`: its place was given on the command line."""
    if location.endswith(HDF5_SUFFIXES):
        return HDF5_CURE
    if verdict.imported:
        return "run `python cli.py import-features` again, which writes the damaged shards"
    return f"run `python cli.py verify{' ' + location if named else ''} --repair`"


def verdict_table(verdict: Verdict) -> Table:
    """One row per question that was asked."""
    table = Table()
    table.add_column("fast check" if verdict.fast else "full check")
    table.add_column(Text(verdict.location))
    files = f"{verdict.num_files:,} files, {format_bytes(verdict.num_bytes)}"
    how = "presence, sizes" + ("" if verdict.fast else ", digests")
    table.add_row(how, Text(f"{files}: {_tell(verdict.problems, 'sound', 'damaged')}"))
    if verdict.values is not None:
        for question, answer in _describe_values(verdict, verdict.values):
            table.add_row(question, Text(answer))
    for number, damage in enumerate(verdict.damage[:_NUM_LISTED]):
        table.add_row("" if number else Text("damage", "red"), Text(damage))
    if len(verdict.damage) > _NUM_LISTED:
        table.add_row("", Text(f"and {len(verdict.damage) - _NUM_LISTED:,} more"))
    for number, warning in enumerate(verdict.warnings[:_NUM_LISTED]):
        table.add_row("" if number else Text("warnings", "yellow"), Text(warning))
    return table


def _tell(found: Sequence[object], good: str, bad: str) -> str:
    return f"{len(found):,} {bad}" if found else f"all {good}"


def _describe_values(verdict: Verdict, values: ValueReport) -> list[tuple[str, str]]:
    rows = [
        (
            "checksums, NaN, Inf",
            f"{verdict.num_maps:,} maps: {_tell(values.damaged, 'sound', 'damaged')}",
        ),
        ("maps of zeros", f"{len(values.zero):,}" if values.zero else "none"),
        ("channels", _describe_channels(values.statistics)),
    ]
    drift = values.drift
    if drift is not None:
        asked = f"{drift.num_shards} shards, {drift.num_channels} channels, "
        asked += f"{drift.num_shuffles} shuffles" + (" in classes" if drift.within_classes else "")
        found = drift.note or f"{asked}: {_tell(drift.flagged, 'alike', 'beyond chance')}"
        rows.append(("drift", found))
    return rows


def _describe_channels(statistics: ChannelStatistics) -> str:
    if not statistics.num_maps:
        return "no map could be read"
    parts = [
        f"{name} {np.min(figure):.3g} to {np.max(figure):.3g}"
        for name, figure in (("mean", statistics.mean), ("std", statistics.std))
    ]
    share = float(statistics.zero_share.mean())
    return f"{', '.join(parts)}, {share:.1%} zeros, {len(statistics.dead)} dead"


def _print_table(table: Table, num_columns: int) -> None:
    """Print it, wide enough to be read."""
    Console(width=max(num_columns, Console().width), highlight=False, markup=False).print(table)


# ---- verify --repair: damaged shards written again, from the clips that the settings name ------


def _repair_store(
    settings: Settings, location: str, verdict: Verdict | None, extract: Extract
) -> None:
    """Remove exactly the damaged shards and run the extract stage, which writes them again.

    Args:
        verdict: what is damaged; None if the manifest itself is: then every shard that its
            sidecar vouches for is kept.

    Raises:
        StoreError: The settings describe another store; nothing is removed then.
    """
    store = Path(location)
    if "://" in location or store.is_file():
        raise StoreError(f"{location}: only a store in a local folder can be repaired")
    planned = _planned_store(settings)
    if planned.resolve() != store.resolve():
        raise StoreError(
            f"{store}: can't be repaired with these settings: they describe {planned}; give the "
            "settings that it was made with (--params, --set), or for imported features run "
            "`python cli.py import-features` again. Nothing was removed"
        )
    before = (store / layout.MANIFEST_NAME).read_bytes() if verdict else None
    shards = verdict.damaged_shards if verdict else []
    what = f"shards {', '.join(map(str, shards))}" if shards else "manifest and small files"
    console.print(f"{store}: writing {what} again", soft_wrap=True)
    remove_damaged(store, shards)
    extract(settings)
    if before is not None and not keep_provenance(before, load_manifest(store), store):
        console.print(f"{store}: the shards differ from those first recorded", soft_wrap=True)


def _planned_store(settings: Settings) -> Path:
    """Directory of the store that `python cli.py extract` would write or go on with.

    Raises:
        CheckpointError, DataError: There is no clip index or no weights, so there is no plan.
    """
    index = ClipIndex.load(common.CLIP_INDEX)  # Without one the answer is quick.
    from dsts_pipeline.feature_store.planning import prepare_work  # Imports torch: a few seconds.

    work = prepare_work(index, settings.backbone, settings.dataset, settings.store)
    return Path(settings.store.root) / work.plan.fingerprint


# ---- stores: list those below store.root, remove those that nothing refers to ------------------


def show_stores(settings: Settings, *, prune: bool = False, yes: bool = False) -> None:
    """Print the table; with `prune` remove what nothing refers to, after asking unless `yes`.

    Raises:
        StoreError: Nothing says which stores are in use, or one to be removed is being written.
    """
    root = Path(settings.store.root)
    entries = list_stores(root)
    if not entries:
        console.print(f"{root}: no stores", soft_wrap=True)
        return
    referred, unknown = _find_references(settings)
    _print_table(stores_table(entries, referred), _LIST_COLUMNS)
    if unknown:
        console.print(f"the store that the settings describe is not known: {unknown}")
    if not prune:
        return
    if not referred:
        raise StoreError(
            f"{root}: not pruned: neither {common.FEATURES} nor the settings tell which store is "
            "in use; run `python cli.py prepare` first, or delete stores by hand"
        )
    _prune(root, [e for e in entries if e.removable and e.path.resolve() not in referred], yes)


def _find_references(settings: Settings) -> tuple[dict[Path, list[str]], str]:
    """What refers to which store, and why the settings' one is not known, if it is not."""
    referred: dict[Path, list[str]] = {}
    if common.FEATURES.exists():
        store = Path(str(read_json(common.FEATURES)["store"]))
        referred[store.resolve()] = [common.FEATURES.name]
    try:
        referred.setdefault(_planned_store(settings).resolve(), []).append("settings")
    except UserError as error:
        return referred, str(error)
    return referred, ""


def _prune(root: Path, unused: list[StoreEntry], yes: bool) -> None:
    if not unused:
        console.print("nothing to remove")
        return
    size = format_bytes(sum(entry.num_bytes for entry in unused))
    names = ", ".join(str(entry.path) for entry in unused)
    if not yes and not typer.confirm(f"remove {len(unused)} stores ({size}): {names}?"):
        console.print("nothing removed")
        return
    for entry in unused:
        remove_store(root, entry)
        console.print(f"{entry.path}: removed, {format_bytes(entry.num_bytes)}", soft_wrap=True)


def stores_table(entries: Sequence[StoreEntry], referred_by: Mapping[Path, Sequence[str]]) -> Table:
    """One row per folder below the store root."""
    table = Table()
    for name in ("store", "state", "maps", "size", "type", "backbone", "data set", "in use by"):
        table.add_column(name, justify="right" if name in ("maps", "size") else "left")
    for entry in entries:
        cells = (
            str(entry.path),
            entry.state,
            "" if entry.num_maps is None else f"{entry.num_maps:,}",
            format_bytes(entry.num_bytes),
            entry.stored_type,
            entry.backbone,
            entry.dataset,
            ", ".join(referred_by.get(entry.path.resolve(), ())) or "nothing",
        )
        table.add_row(*map(Text, cells))
    return table


# ---- import-features: made elsewhere, into a store that train-head and evaluate read -----------


def import_features(
    settings: Settings,
    *,
    source: Path,
    labels: Path,
    name: str | None = None,
    axes: str | None = None,
    dataset: str | None = None,
    ids_dataset: str | None = None,
) -> None:
    """Write the store and, as `extract` does, its manifest to outputs/features.json.

    Raises:
        DataError: The source or the labels can't be used; see the parts.
        StoreError: The store can't be written; the finished shards stay.
    """
    table = read_labels(labels)
    features = open_source(source, axes=axes, dataset=dataset, ids_dataset=ids_dataset)
    survey = survey_source(
        features, table.rows, max_failed_fraction=settings.backbone.max_failed_fraction
    )
    doubt = "" if isinstance(features, StoreSource) else doubt_layout(survey.map_shape, axes)
    for note in filter(None, (*table.notes, doubt)):
        console.print(note, soft_wrap=True)
    plan = plan_import(features, table, survey, name=name or source.stem, how=settings.store)
    require_space(survey_store(settings.store.root, plan))
    with StoreWriter(settings.store.root, plan) as writer:
        provenance = collect_provenance(
            {"import": {"source": source.name, "labels": labels.name, "layout": axes}}
        )
        path = write_import(features, table.rows, survey, writer, provenance=provenance)
    manifest = read_json(path)
    write_json(common.FEATURES, record_store(manifest, writer.path))
    _note_videos(table.rows, labels.parent, manifest["fingerprint"])
    for failure in manifest["failures"][:5]:
        console.print(f"failed: {failure['id']}: {failure['reason']}", soft_wrap=True)
    ids = [sample.id for sample in plan.samples]
    splits = [sample.split for sample in plan.samples]
    for line in tell_shared_groups(ids, splits, plan.groups):
        console.print(line, soft_wrap=True)
    counts = manifest["counts"]
    unlisted = features.num_items - counts["stored"]
    console.print(
        f"{writer.path}: {counts['stored']:,} maps of {'x'.join(map(str, plan.map_shape))}, "
        f"{counts['failed']:,} clips failed; {max(0, unlisted):,} items of the source not used",
        soft_wrap=True,
    )


def _note_videos(rows: Sequence[LabelRow], root: Path, fingerprint: str) -> None:
    """Note which videos the table names, for the previews of `report`."""
    found = find_videos(rows, root)
    if not found:
        common.NAMED_VIDEOS.unlink(missing_ok=True)  # of an earlier import
        return
    named = {"store": fingerprint, "root": str(root.resolve()), "paths": found}
    write_json(common.NAMED_VIDEOS, sign(named))
    num_clips = len({row.id for row in rows})
    told = f"videos of {len(found):,} of {num_clips:,} clips found; report shows them"
    console.print(told, soft_wrap=True)
