"""How large a store will be, how much of it is there, and whether the rest fits on the disk.

Enters: the folder of stores and a plan. Leaves: a `StoreSurvey`; nothing is written.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.base.progress import console
from dsts_pipeline.feature_store.manifest import find_sidecar
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.shards import CRC_BYTES, format_nameplate, largest_frame_bytes

_SMALL_FILES_BYTES = 2**20


@dataclass(frozen=True)
class StoreSurvey:
    """A store before it is (further) written.

    Args:
        path: the store's directory, which need not exist.
        pending: numbers of the shards to be written.
        num_shards: how many there are in all.
        done_bytes: size of the shards that are there (their digests are not compared).
        pending_bytes: what the pending ones take: exactly, unless a clip fails; compressed ones
            take that much at most.
        margin_bytes: room beside it, for a shard that is written again beside its old file, and
            for the small files.
        free_bytes: free space of the file system for this user.
        is_compressed: whether `pending_bytes` is but an upper bound.
    """

    path: Path
    pending: tuple[int, ...]
    num_shards: int
    done_bytes: int
    pending_bytes: int
    margin_bytes: int
    free_bytes: int
    is_compressed: bool

    @property
    def total_bytes(self) -> int:
        """Size of all shards of the finished store."""
        return self.done_bytes + self.pending_bytes


def survey_store(root: str | Path, plan: StorePlan) -> StoreSurvey:
    """Look at what is there of the store of `plan` below `root`, by presence and sizes."""
    path = Path(root) / plan.fingerprint
    pending, done_bytes = [], 0
    for shard in range(plan.num_shards):
        sidecar = find_sidecar(path, plan, shard, digests=False)
        if sidecar is None:
            pending.append(shard)
        else:
            done_bytes += sum(entry["bytes"] for entry in sidecar["files"])
    return StoreSurvey(
        path=path,
        pending=tuple(pending),
        num_shards=plan.num_shards,
        done_bytes=done_bytes,
        pending_bytes=sum(shard_bytes(plan, shard) for shard in pending),
        margin_bytes=shard_bytes(plan, 0) + _SMALL_FILES_BYTES if pending else 0,
        free_bytes=shutil.disk_usage(_nearest_existing(path)).free,
        is_compressed=plan.codec != "none",
    )


def shard_bytes(plan: StorePlan, shard: int) -> int:
    """Size of a shard's files if no clip fails; with zstd an upper bound."""
    num_maps, slots = len(plan.positions_of(shard)), plan.samples_per_shard
    map_bytes = plan.sample_bytes
    if plan.codec == "zstd":
        map_bytes = largest_frame_bytes(map_bytes)
    sizes = {"maps": map_bytes}
    if plan.dtype == "int8":
        sizes["scales"] = 4 * plan.map_shape[0]
    return sum(
        num_maps * (size + CRC_BYTES)
        + len(format_nameplate(plan.fingerprint, shard, array))
        + 16 * slots
        + CRC_BYTES
        for array, size in sizes.items()
    )


def require_space(survey: StoreSurvey) -> None:
    """Stop before the start if the store can't fit; with zstd, whose gain is unknown, warn only.

    Quotas of a user or a folder are not seen.

    Raises:
        StoreError: what is pending takes more than is free.
    """
    needed = survey.pending_bytes + survey.margin_bytes
    if needed <= survey.free_bytes:
        return
    text = (
        f"{survey.path}: {format_bytes(needed)} are needed for {len(survey.pending)} shards, "
        f"{format_bytes(survey.free_bytes)} are free"
    )
    if survey.is_compressed:
        console.print(f"{text}; it may fit nevertheless, as they are compressed", soft_wrap=True)
        return
    raise StoreError(
        f"{text}; free space, choose another store.root, or a smaller store.dtype or "
        "store.codec = zstd"
    )


def _nearest_existing(path: Path) -> Path:
    path = Path(os.path.abspath(path))
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
