"""What one stage made and the next one reads."""

from __future__ import annotations

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import read_json
from dsts_pipeline.base.settings.features import FeedSettings
from dsts_pipeline.feature_store import FeatureStore, open_store
from stages import places


def open_features(feed: FeedSettings) -> FeatureStore:
    """The feature store that outputs/features.json names, by its directory, file or URL.

    Args:
        feed: How it is read, and where shards of a remote store are kept.

    Raises:
        DataError: There is no features.json.
        StoreError: The store is missing, unfinished, damaged, or another one than was recorded.
    """
    record = read_json(places.FEATURES)
    store = open_store(
        record["store"],
        verify_checksums=feed.verify_checksums,
        num_threads=feed.num_read_threads,
        cache_dir=feed.cache_dir,
        cache_bytes=feed.cache_bytes,
        stall_seconds=feed.stall_seconds,
    )
    if store.manifest["files"] != record["files"] or store.manifest["shards"] != record["shards"]:
        raise StoreError(
            f"{store.location}: its shards are not the ones that {places.FEATURES} recorded; "
            "run `python cli.py extract`"
        )
    return store
