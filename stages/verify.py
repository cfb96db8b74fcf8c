"""Check a feature store, tell what was found, and have damaged shards extracted again."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store.checks.tables import verdict_table
from dsts_pipeline.feature_store.checks.verdict import Verdict, check_store
from dsts_pipeline.feature_store.manifest import load_manifest
from stages.inputs import read_features_record, require_recorded
from stages.repair import repair_store, tell_cure

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
    print_table(verdict)
    if json_file is not None:
        write_json(json_file, verdict.to_json())
    cure = tell_cure(location, verdict, named=store is not None)
    verdict.require_sound(cure, strict=strict)
    if record and Path(location).is_dir():  # sound in itself, and yet another one
        require_recorded(record, load_manifest(location), location)


def _check(settings: Settings, location: str, fast: bool) -> Verdict:
    feed = settings.feed
    return check_store(
        location,
        fast=fast,
        start_track=track,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
    )


def print_table(verdict: Verdict) -> None:
    """Print what was found, wide enough to be read."""
    console = Console(width=max(MIN_COLUMNS, Console().width), highlight=False)
    console.print(verdict_table(verdict))
