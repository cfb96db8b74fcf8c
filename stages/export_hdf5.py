"""Pack the feature store, or one split of it, into one HDF5 file."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.base.progress import console, track
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.feature_store.exchange.hdf5_export import export_hdf5
from stages.inputs import open_features


def write(
    settings: Settings, out: Path, *, store: str | None = None, split: str | None = None
) -> None:
    """Write `out`, which appears when it is complete.

    Raises:
        StoreError: The store is damaged, or the file exists or can't be written.
    """
    feed = settings.feed
    if store is None:
        source = open_features(feed)
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
