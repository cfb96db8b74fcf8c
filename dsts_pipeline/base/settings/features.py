"""Settings of the feature store and of reading it back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dsts_pipeline.base.settings.sections import Section


class StoreSettings(Section):
    """Where feature maps are kept and how they are stored.

    `shard_bytes` is the size a shard aims at; a small data set gets smaller shards, so that there
    are at least `min_shards` of them and a stopped extraction resumes from most of its work.
    `on_overflow` says what becomes of a map that the storage type can't hold: the extraction stops,
    the clip is listed as failed, or the values are cut to the type's largest and counted.
    """

    root: str = "stores"
    dtype: Literal["float16", "bfloat16", "float32", "int8"] = "float16"
    codec: Literal["none", "zstd"] = "none"
    zstd_level: int = Field(1, ge=1, le=19)
    on_overflow: Literal["error", "fail", "saturate"] = "error"
    shard_bytes: int = Field(128 * 2**20, ge=1)
    min_shards: int = Field(32, ge=1)


class FeedSettings(Section):
    """How stored maps are read for training and evaluation; nothing here changes a stored byte.

    `order`: "random" draws every clip from the whole split, "shard" shuffles shards and then the
    clips within a window of `shard_window` shards (for stores far larger than memory, or remote
    ones). `class_balanced` draws every class equally often in an epoch of the same length.
    `cache_dir` and `cache_bytes` are for stores that are read over the network; a server of theirs
    that sends less than 1 kB/s for `stall_seconds` is given up, on the second try with an error.
    """

    preload_bytes: int = Field(2 * 2**30, ge=0)
    order: Literal["random", "shard"] = "random"
    shard_window: int = Field(16, ge=1)
    class_balanced: bool = False
    num_read_threads: int = Field(2, ge=1)
    verify_checksums: bool = True
    cache_dir: str = ".feature_cache"
    cache_bytes: int = Field(20 * 2**30, ge=0)
    stall_seconds: float = Field(30.0, gt=0.0)
