"""The store of a run, as outputs/features.json records it: opened only if it still is that one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.settings import FeedSettings
from dsts_pipeline.feature_store.manifest import find_difference, is_sound_record
from dsts_pipeline.feature_store.reader import FeatureStore, open_store


def read_features_record(path: Path) -> dict[str, Any]:
    """What the record `path`, outputs/features.json, says of the store in use.

    Its place, "store", may be changed by hand, when a store is moved: the digest is of what is said
    of its manifest. Records of earlier releases have none.

    Raises:
        DataError: There is none, or it was changed after it was written.
    """
    record = read_json(path)
    if not isinstance(record, dict) or not isinstance(record.get("store"), str):
        raise DataError(f"{path}: names no store; run `python cli.py extract`")
    if not is_sound_record(record):
        raise DataError(
            f"{path}: changed after it was written, its digest does not hold (only "
            '"store" may be changed by hand); run `python cli.py extract`'
        )
    return record


def open_features(path: Path, feed: FeedSettings) -> FeatureStore:
    """The feature store that the record `path` names, by its directory, file or URL.

    Args:
        path: outputs/features.json.
        feed: How the store is read, and where shards of a remote one are kept.

    Raises:
        DataError: There is no features.json.
        StoreError: The store is missing, unfinished, damaged, or another one than was recorded.
    """
    record = read_features_record(path)
    store = open_store(
        record["store"],
        verify_checksums=feed.verify_checksums,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
        stall_seconds=feed.stall_seconds,
    )
    require_recorded(path, record, store.manifest, store.location)
    return store


def require_recorded(
    path: Path, record: dict[str, Any], manifest: dict[str, Any], location: str
) -> None:
    """Refuse a store whose manifest is not the one recorded in `path`, provenance aside.

    Raises:
        StoreError: A part differs: it is named.
    """
    if (part := find_difference(record, manifest)) is not None:
        raise StoreError(
            f"{location}: its {part} {'are' if part.endswith('s') else 'is'} not what "
            f"{path} recorded: the store is another one, or was changed after it was "
            "written; run `python cli.py extract` (or `import-features`), which sets both right"
        )
