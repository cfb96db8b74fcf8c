"""What one stage made and the next one reads."""

from __future__ import annotations

from typing import Any

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.settings.features import FeedSettings
from dsts_pipeline.feature_store import FeatureStore, open_store
from dsts_pipeline.feature_store.manifest import find_difference, is_sound_record
from stages import places


def read_features_record() -> dict[str, Any]:
    """What outputs/features.json says of the store in use.

    Its place, "store", may be changed by hand, when a store is moved: the digest is of what is said
    of its manifest. Records of earlier releases have none.

    Raises:
        DataError: There is none, or it was changed after it was written.
    """
    record = read_json(places.FEATURES)
    if not isinstance(record, dict) or not isinstance(record.get("store"), str):
        raise DataError(f"{places.FEATURES}: names no store; run `python cli.py extract`")
    if not is_sound_record(record):
        raise DataError(
            f"{places.FEATURES}: changed after it was written, its digest does not hold (only "
            '"store" may be changed by hand); run `python cli.py extract`'
        )
    return record


def open_features(feed: FeedSettings) -> FeatureStore:
    """The feature store that outputs/features.json names, by its directory, file or URL.

    Args:
        feed: How it is read, and where shards of a remote store are kept.

    Raises:
        DataError: There is no features.json.
        StoreError: The store is missing, unfinished, damaged, or another one than was recorded.
    """
    record = read_features_record()
    store = open_store(
        record["store"],
        verify_checksums=feed.verify_checksums,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
        stall_seconds=feed.stall_seconds,
    )
    require_recorded(record, store.manifest, store.location)
    return store


def require_recorded(record: dict[str, Any], manifest: dict[str, Any], location: str) -> None:
    """Refuse a store whose manifest is not the recorded one, provenance aside.

    Raises:
        StoreError: A part differs: it is named.
    """
    if (part := find_difference(record, manifest)) is not None:
        raise StoreError(
            f"{location}: its {part} {'are' if part.endswith('s') else 'is'} not what "
            f"{places.FEATURES} recorded: the store is another one, or was changed after it was "
            "written; run `python cli.py extract` (or `import-features`), which sets both right"
        )
