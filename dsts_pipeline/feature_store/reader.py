"""A finished store as its readers see it: row numbers in, maps out, every checksum verified.

Rows are the maps that exist: clips that failed to decode keep their position in the files but
are no rows. Nothing missing is ever read as zeros: it is an error that names the shard. Where
maps come from is a `MapSource`: shards, an HDF5 file or zarr-python; `opening.py` picks it.
"""

from __future__ import annotations

import copy
import difflib
import math
import operator
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.groups import deal_groups, number_groups
from dsts_pipeline.feature_store.files import LocalFiles, check_files, list_some
from dsts_pipeline.feature_store.manifest import (
    REPAIR,
    REWRITE,
    load_manifest,
    stored_positions,
)
from dsts_pipeline.feature_store.stored_types import STORED_DTYPES, StoredMaps

if TYPE_CHECKING:
    from torch import Tensor

_ROWS_A_READ = 32


class MapSource(Protocol):
    """What a `FeatureStore` reads maps from. Can be pickled, and used in threads and after fork."""

    def read_into(self, positions: np.ndarray, out: np.ndarray, scales: np.ndarray | None) -> None:
        """Fill `out` with the maps at `positions` in the storage type, checked.

        Args:
            positions: int64 `[n]`, places in the planned order, in any order and with repeats.
            out: `[n, C, T, H, W]`, contiguous, of the stored dtype.
            scales: float32 `[n, C]` to fill too where the stored type is int8, else None.

        Raises:
            StoreError: something is missing or damaged; the message names it and the cure.
        """


@dataclass(frozen=True)
class Fold:
    """Which fold of a cross-validation is the split "test" of a store; the others are "train".

    Attributes:
        fold: from 0. num_folds: of how many. seed: by which they were dealt.
        digest: 8 digits of what clips are in it: the same fold of other groups is another one.
    """

    fold: int
    num_folds: int
    seed: int
    digest: str

    def describe(self) -> dict[str, Any]:
        """Plain values, for a head's file."""
        return asdict(self)

    def __str__(self) -> str:
        return f"fold {self.fold} of {self.num_folds} ({self.digest})"


class FeatureStore:
    """A finished store, read only. Open it with `open_store`.

    It can be used after fork, sent to a spawned process, and shared by threads. It is a map-style
    dataset of torch: `store[i]` is the map and the class of row i, and a `DataLoader` reads a batch
    at once. Clips that failed to decode are no rows, so no item stands for one.

    Attributes:
        location: the store's directory, file or URL. path: the same as a `Path`.
        manifest: the whole manifest.
        labels: class number per row, int64 `[n]`.
        video_ids: clip id per row.
        views: view number per row, int64 `[n]`.
        splits: split name per row, `[n]`.
        positions: place of each row in the planned order, int64 `[n]`.
        frames: numbers of the frames used per row, int32 `[n, F]`, -1 where a clip used fewer;
            None where the store does not say.
        groups: what the clips of one origin share (player, source video) per row, None for clips
            that don't tell; None where the store tells none. planned_groups: the same per place in
            the planned order.
        fold: the fold that is the split "test"; None: splits are the store's own.
        planned: "ids", "labels", "splits" and "views" per place in the planned order.
        num_joined: views that a row is made of, one after another in time (`joining`); 1: one.
        class_names, attribute_names, attributes: see `StorePlan`.
        map_shape: `(C, T, H, W)`. stored_type: as in the manifest.
        stored_shape: how `read_stored` gives a map: `map_shape`, or of joined views
            `(C num_joined, T / num_joined, H, W)`, the same values in the same order.
        dtype: type of what `read` returns, float16 where maps are stored so, else float32.
    """

    def __init__(
        self,
        location: str | Path,
        manifest: Mapping[str, Any],
        clip_table: Mapping[str, Any],
        source: MapSource,
        frames: np.ndarray | None = None,
        groups: Sequence[str | None] | None = None,
    ) -> None:
        self.location = str(location)
        self.manifest = dict(manifest)
        self.source = source
        self._buffers = BufferPool()
        array = manifest["array"]
        samples = clip_table["samples"]
        self.map_shape: tuple[int, ...] = tuple(array["shape"][1:])
        self.stored_shape = self.map_shape
        self.num_joined = 1
        self.planned: Mapping[str, Sequence[Any]] = samples
        self.stored_type: str = array["stored_type"]
        self.dtype = np.dtype(np.float16 if self.stored_type == "float16" else np.float32)
        kept = stored_positions(manifest)
        self.positions = np.array(kept, dtype=np.int64)
        self.labels = np.array([samples["labels"][position] for position in kept], dtype=np.int64)
        self.views = np.array([samples["views"][position] for position in kept], dtype=np.int64)
        self.splits = np.array([samples["splits"][position] for position in kept], dtype=str)
        self.video_ids: tuple[str, ...] = tuple(samples["ids"][position] for position in kept)
        self.frames = None if frames is None else frames[self.positions]
        if groups is not None and len(groups) != array["shape"][0]:
            raise StoreError(
                f"{location}: tells groups of {len(groups)} maps, expected {array['shape'][0]}; "
                f"{REWRITE}"
            )
        self.planned_groups = groups
        self.groups = None if groups is None else tuple(groups[position] for position in kept)
        self.fold: Fold | None = None
        classes = clip_table["classes"]
        self.class_names: tuple[str, ...] = tuple(classes["names"])
        self.attribute_names: tuple[str, ...] = tuple(classes["attribute_names"])
        self.attributes: tuple[tuple[str, ...], ...] = tuple(map(tuple, classes["attributes"]))

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        """Map, float32 `[C, T, H, W]`, and class number of a row; negative ones count from the end.

        Raises:
            IndexError: no such row.
            TypeError: it is no whole number: parts are `torch.utils.data.Subset(store, rows)`.
            StoreError: a shard is missing or damaged; the message names it.
        """
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[tuple[Tensor, int]]:
        """The items of several rows, in one read, as `DataLoader` and `Subset` ask for them."""
        import torch  # late: arrays do without it

        wanted = np.array([self._row_of(row) for row in rows], dtype=np.int64)
        stored = self.read_stored(wanted)
        maps = self._buffers.empty(stored.maps.shape, np.dtype(np.float32))
        tensor = torch.from_numpy(stored.to_float(maps)).view(-1, *self.map_shape)
        return list(zip(tensor, self.labels[wanted].tolist(), strict=True))

    def _row_of(self, row: int) -> int:
        try:
            number = operator.index(row)
        except TypeError:
            raise TypeError(
                f"{self.location}: a row is a whole number, found {row!r}; for several: "
                "torch.utils.data.Subset(store, rows), or store.read(rows) for an array"
            ) from None
        if not -len(self) <= number < len(self):
            raise IndexError(f"{self.location}: row {number}, have {len(self)}")
        return number % len(self)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.map_shape))
        return f"FeatureStore({len(self)} maps of {shape} {self.stored_type}, {self.location})"

    @property
    def path(self) -> Path:
        """Where a local store lies."""
        return Path(self.location)

    @property
    def fingerprint(self) -> str:
        """Name of all that decided this store's bytes."""
        return self.manifest["fingerprint"]

    @cached_property
    def group_numbers(self) -> np.ndarray | None:
        """Number of each row's group, int64 `[n]`; see `number_groups`."""
        return number_groups(self.video_ids, self.groups)

    @property
    def division(self) -> str:
        """Name of the maps and of all that decides which of them are trained on.

        That is the fingerprint where clips tell no groups; splits and groups count else, and
        whether views are joined.
        """
        name = self.fingerprint + ("-joined" if self.num_joined > 1 else "")
        if self.group_numbers is None:
            return name
        parts = [self.splits.tolist(), self.group_numbers.tolist()]
        return f"{name}-{sha256_json(parts)[:8]}"

    def describe_reading(self) -> dict[str, Any]:
        """What files of heads and figures say of how maps were read: "fold" where there is one,
        "joined_views" where several are one map."""
        described = {} if self.fold is None else {"fold": self.fold.describe()}
        return described | ({"joined_views": self.num_joined} if self.num_joined > 1 else {})

    @property
    def stored_dtype(self) -> np.dtype:
        """NumPy type of the maps as they are stored (bfloat16: its bits, as uint16)."""
        return STORED_DTYPES[self.stored_type]

    @property
    def sample_bytes(self) -> int:
        """Bytes of one map as it is stored and preloaded, uncompressed, with its scales."""
        scales = 4 * self.stored_shape[0] if self.stored_type == "int8" else 0
        return int(np.prod(self.map_shape)) * self.stored_dtype.itemsize + scales

    def rows_of_split(self, split: str) -> np.ndarray:
        """Rows (int64) of one split, ascending.

        Raises:
            StoreError: the store has no row of that split.
        """
        rows = np.flatnonzero(self.splits == split)
        if len(rows) == 0:
            found = ", ".join(sorted(set(self.splits.tolist()))) or "none"
            raise StoreError(f"{self.location}: no map of split {split!r}; found: {found}")
        return rows

    def rows_of_clip(self, clip_id: str) -> np.ndarray:
        """Rows (int64) of one clip, a row per view.

        Raises:
            StoreError: no such clip, or one without a map; the message says why or names the
                closest one.
        """
        rows = np.flatnonzero(np.array(self.video_ids, dtype=object) == clip_id)
        if len(rows):
            return rows
        for failure in self.manifest["failures"]:
            if failure["id"] == clip_id:
                raise StoreError(
                    f"{self.location}: clip {clip_id!r} has no map: {failure['reason']}"
                )
        close = difflib.get_close_matches(clip_id, set(self.video_ids), n=1, cutoff=0.0)
        hint = f"; the closest is {close[0]!r}" if close else ""
        raise StoreError(f"{self.location}: no clip {clip_id!r} among its {len(self)} maps{hint}")

    def deal_folds(self, num_folds: int, seed: int) -> list[FeatureStore]:
        """This store once per fold of a cross-validation, that fold being "test", the rest "train".

        The clips of all splits are dealt anew, by whole groups (`base.groups.deal_groups`). Maps
        are shared and nothing is read. A clip without a map goes with its group.

        Args:
            num_folds: at least 2. seed: deals other folds.

        Raises:
            DataError: the store tells no groups, or fewer than folds; its maps depend on the split;
                a fold has all clips of a class.
        """
        numbers = self.group_numbers
        if numbers is None:
            raise DataError(
                f"{self.location}: dataset.num_folds is {num_folds}, and its clips tell no groups "
                "(players, subjects, source videos) to deal; see docs/groups.md"
            )
        self._refuse_views_by_split()
        _, first, clip_of_row = np.unique(
            np.array(self.video_ids), return_index=True, return_inverse=True
        )
        folds = deal_groups(self.labels[first], numbers[first], num_folds=num_folds, seed=seed)
        dealt = [
            self._with_fold(folds[clip_of_row], fold, num_folds, seed) for fold in range(num_folds)
        ]
        present = np.unique(self.labels)
        for store in dealt:
            trained = store.labels[store.splits == "train"]
            if len(missing := np.setdiff1d(present, trained)):
                raise DataError(
                    f"{self.location}: {store.fold} has all clips of class "
                    f"{self.class_names[missing[0]]}, so its training has none; choose another "
                    "dataset.num_folds or dataset.heldout_seed, or leave that class out"
                )
        return dealt

    def _refuse_views_by_split(self) -> None:
        views = {
            split: int(self.views[self.splits == split].max()) + 1 for split in set(self.splits)
        }
        augmented = "augmentation" in self.manifest["made_of"].get("views", {})
        if augmented or len(set(views.values())) > 1:
            listed = ", ".join(f"{number} of {split}" for split, number in sorted(views.items()))
            found = "training views are augmented" if augmented else f"views of a clip: {listed}"
            raise DataError(
                f"{self.location}: folds deal the clips of all splits anew, and these maps depend "
                f"on the split ({found}); extract with one plain view for all"
            )

    def _with_fold(
        self, fold_of_row: np.ndarray, fold: int, num_folds: int, seed: int
    ) -> FeatureStore:
        dealt = copy.copy(self)
        inside = fold_of_row == fold
        dealt.splits = np.where(inside, "test", "train")
        rows = np.flatnonzero(inside).tolist()
        clips = {self.video_ids[row] for row in rows}
        dealt.fold = Fold(fold, num_folds, seed, sha256_json(sorted(clips))[:8])
        assert self.groups is not None and self.planned_groups is not None
        groups = {self.groups[row] for row in rows} - {None}
        failures = []
        for failure in self.manifest["failures"]:
            group = self.planned_groups[failure["position"]]
            is_tested = failure["id"] in clips or group in groups
            failures.append(failure | {"split": "test" if is_tested else "train"})
        dealt.manifest = self.manifest | {"failures": failures}
        return dealt

    def read(
        self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Maps of the given rows, in the order given: `[n, C, T, H, W]` of type `dtype`.

        Args:
            out: contiguous memory of that shape and type to fill and return. By default it is
                fresh or that of an earlier batch which nobody holds any more.

        Raises:
            IndexError: a row number out of range.
            StoreError: a shard is missing or damaged; the message names it.
        """
        as_stored = out
        if out is not None and self.num_joined > 1:
            if out.shape[1:] != self.map_shape or not out.flags.c_contiguous:
                raise ValueError(f"out is {out.shape}, expected contiguous [n, *{self.map_shape}]")
            as_stored = out.reshape(-1, *self.stored_shape)
        if self.dtype == self.stored_dtype:
            maps = self.read_stored(indices, as_stored).maps
        else:
            stored = self.read_stored(indices)
            if as_stored is None:
                as_stored = self._buffers.empty(stored.maps.shape, self.dtype)
            maps = stored.to_float(as_stored)
        if out is not None or self.num_joined == 1:
            return maps if out is None else out
        return maps.reshape(-1, *self.map_shape)

    def read_stored(
        self, indices: Sequence[int] | np.ndarray, out: np.ndarray | None = None
    ) -> StoredMaps:
        """Like `read`, in the storage type, each map of `stored_shape`; `out` takes the maps."""
        rows = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise IndexError(
                f"{self.location}: rows {rows.min()} to {rows.max()}, have {len(self)}"
            )
        shape = (len(rows), *self.stored_shape)
        if out is None:
            out = self._buffers.empty(shape, self.stored_dtype)
        elif out.shape != shape or out.dtype != self.stored_dtype or not out.flags.c_contiguous:
            raise ValueError(
                f"out is {out.dtype} {out.shape}, expected contiguous {self.stored_dtype} {shape}"
            )
        scales = None
        if self.stored_type == "int8":
            scales = np.empty(shape[:2], dtype=np.float32)
        self.source.read_into(self.positions[rows], out, scales)
        return StoredMaps(out, scales, self.stored_type)

    def verify(self) -> None:
        """Read everything and compare digests, or checksums where it is no local directory.

        Raises:
            StoreError: naming what is damaged and what to run.
        """
        if self.path.is_dir():
            manifest = load_manifest(self.path)
            checks = check_files(LocalFiles(self.path), manifest, digests=True)
            if damage := [problem for _, problem in checks if problem]:
                raise StoreError(f"{self.path}: {list_some(damage)}; {REPAIR}")
            return
        for start in range(0, len(self), _ROWS_A_READ):
            self.read_stored(range(start, min(start + _ROWS_A_READ, len(self))))


# ---- memory for batches, used again once nobody holds the batch any more -----------------------

_WORTH_KEEPING = 2**20
_LARGEST_KEPT = 2**29  # A batch may be so large; a whole split that was dropped is to be free.
_ALIGNMENT = 64


class _Lease:
    """Owns the memory of one array; NumPy keeps it alive as long as any view of the array."""

    def __init__(self, memory: np.ndarray, spare: deque[np.ndarray]) -> None:
        self._memory = memory
        self._spare = spare

    @property
    def __array_interface__(self) -> dict[str, Any]:
        return self._memory.__array_interface__

    def __del__(self) -> None:
        if self._memory.nbytes <= _LARGEST_KEPT:
            self._spare.append(self._memory)


class BufferPool:
    """Gives out ordinary arrays, and keeps the memory of the latest few that were dropped.

    Fresh memory costs as much as reading into it: the kernel maps and clears every page (51 MB for
    32 maps of 1.6 MB), and gives it back when the batch is dropped.

    Args:
        num_spare: how many pieces of memory are kept while unused.
    """

    def __init__(self, num_spare: int = 2) -> None:
        # Arrays may be dropped in any thread and at any time: a deque needs no lock.
        self._spare: deque[np.ndarray] = deque(maxlen=num_spare)

    def __getstate__(self) -> dict[str, Any]:
        return {"_spare": deque(maxlen=self._spare.maxlen)}

    def empty(self, shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
        """An array of undefined content, C order."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < _WORTH_KEEPING:
            return _allocate(num_bytes).view(dtype).reshape(shape)
        memory = self._take(num_bytes)
        return np.asarray(_Lease(memory, self._spare))[:num_bytes].view(dtype).reshape(shape)

    def _take(self, num_bytes: int) -> np.ndarray:
        while True:
            try:
                memory = self._spare.pop()  # The latest: a cache may still hold it.
            except IndexError:
                return _allocate(num_bytes)
            if num_bytes <= memory.nbytes <= 2 * num_bytes:
                return memory


def _allocate(num_bytes: int) -> np.ndarray:
    """Bytes at an address that vector instructions like.

    All batches start on one alignment, since matrix products may round otherwise on another.
    """
    memory = np.empty(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + num_bytes]
