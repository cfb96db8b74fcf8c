"""Settings of the feature store and of reading it back."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dsts_pipeline.base.settings.sections import Section


class StoreSettings(Section):
    """Where feature maps are kept, how they are stored and how much is read into memory.

    `shard_bytes` is the size a shard aims at; a small data set gets smaller shards, so that there
    are at least `min_shards` of them and a stopped extraction resumes from most of its work.
    `root` and `preload_bytes` decide nothing about the bytes stored.
    """

    root: str = "stores"
    dtype: Literal["float16", "float32"] = "float16"
    shard_bytes: int = Field(128 * 2**20, ge=1)
    min_shards: int = Field(32, ge=1)
    preload_bytes: int = Field(2 * 2**30, ge=0)
