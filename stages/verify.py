"""Check a feature store, tell what was found, and have damaged shards extracted again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.checks.earlier import find_suspects
from dsts_pipeline.feature_store.checks.tables import verdict_table
from dsts_pipeline.feature_store.checks.verdict import Verdict, check_store
from dsts_pipeline.feature_store.manifest import load_manifest
from stages import places
from stages.inputs import read_features_record, require_recorded
from stages.repair import renew_store, repair_store, tell_cure

MIN_COLUMNS = 100


def run(
    settings: Settings,
    *,
    store: str | None = None,
    fast: bool = False,
    repair: bool = False,
    strict: bool = False,
    json_file: Path | None = None,
) -> None:
    """Check the store (that of outputs/features.json by default) and print the table.

    Raises:
        StoreError: The store is missing, unfinished or damaged and was not repaired; with
            `strict` also what is only strange. It is not the one that features.json recorded.
    """
    record = read_features_record() if store is None else None
    location = str(record["store"] if record else store)
    try:
        verdict = _check(settings, location, fast)
    except StoreError:
        if not repair:
            raise
        repair_store(settings, location, None)
        verdict = _check(settings, location, fast)
    if repair and verdict.damage:
        print_table(verdict)
        repair_store(settings, location, verdict)
        verdict = _check(settings, location, fast)
    suspects = () if verdict.damage else _find_suspects(location)
    if repair and suspects:
        _tell_suspects(location, suspects)
        location, suspects = renew_store(settings, location), ()
        verdict, record = _check(settings, location, fast), read_features_record()
    print_table(verdict)
    if suspects:
        _tell_suspects(location, suspects)
        console.print(
            "`python cli.py verify --repair` makes a new store in which these alone are extracted "
            "again",
            soft_wrap=True,
        )
    if json_file is not None:
        write_json(json_file, verdict.to_json() | {"suspects": list(suspects)})
    cure = tell_cure(location, verdict, named=store is not None)
    verdict.require_sound(cure, strict=strict)
    if record and Path(location).is_dir():  # sound in itself, and yet another one
        require_recorded(record, load_manifest(location), location)


def _find_suspects(location: str) -> tuple[str, ...]:
    """Clips that the former rule of frames may have read wrongly, by the clip index at hand."""
    if not Path(location).is_dir() or not Path(places.CLIP_INDEX).exists():
        return ()
    index = ClipIndex.load(places.CLIP_INDEX)
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


def _check(settings: Settings, location: str, fast: bool) -> Verdict:
    feed = settings.feed
    return check_store(
        location,
        fast=fast,
        start_track=track,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
        stall_seconds=feed.stall_seconds,
    )


def print_table(verdict: Verdict) -> None:
    """Print what was found, wide enough to be read."""
    console = Console(width=max(MIN_COLUMNS, Console().width), highlight=False)
    console.print(verdict_table(verdict))
