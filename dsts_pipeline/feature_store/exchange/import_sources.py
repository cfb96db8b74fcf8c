"""Features made elsewhere, clip by clip: an HDF5 file, or a folder of .npy, .npz and .pt files.

Enters: a source and a row of labels.csv. Leaves: that clip's map `[C, T, H, W]` in a float type, or
an `Unusable` with the reason. Nothing that is loaded can run code: arrays without pickle, `.pt`
with `weights_only`.

Layouts name the axes of one clip in a file: CTHW (default for four axes), TCHW, THWC, TC (default
for two: one vector per time step, map [C, T, 1, 1]), CT (the same, channels first), C (default for
one: map [C, 1, 1, 1]). One leading axis of length 1 more than that is dropped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import h5py
import numpy as np

from dsts_pipeline.base.errors import DataError, StoreError
from dsts_pipeline.feature_store.exchange.hdf5 import (
    FORMAT_NAME,
    Datasets,
    find_dataset,
    list_datasets,
    open_hdf5,
)
from dsts_pipeline.feature_store.exchange.import_labels import SUFFIXES, LabelRow
from dsts_pipeline.feature_store.reader import FeatureStore

LAYOUTS = ("CTHW", "TCHW", "THWC", "TC", "CT", "C")
_DEFAULTS = {4: "CTHW", 2: "TC", 1: "C"}
_ID_NAMES = ("ids", "clip_ids", "video_ids", "names")
_MAP_NAMES = ("maps", "features")


class Unusable(Exception):
    """A clip without a usable map; the message is the reason."""


class FeatureSource(Protocol):
    """Where maps come from."""

    num_items: int
    """Maps (or files) that the source has, listed in labels.csv or not."""

    def load(self, row: LabelRow) -> np.ndarray:
        """The map `[C, T, H, W]` of a row, of a float type.

        Raises:
            Unusable: there is none, or none that fits.
        """


def open_source(
    path: str | Path,
    *,
    axes: str | None = None,
    dataset: str | None = None,
    ids_dataset: str | None = None,
) -> FeatureSource:
    """The source at `path`.

    Args:
        axes: one of `LAYOUTS`; None: by the number of axes.
        dataset, ids_dataset: names inside an HDF5 file (`dataset`: also inside an .npz or .pt).

    Raises:
        DataError: nothing there, or nothing of these kinds.
    """
    path = Path(path)
    if axes is not None and axes not in LAYOUTS:
        raise DataError(f"layout {axes}: expected one of {', '.join(LAYOUTS)}")
    if path.is_dir():
        return FolderSource(path, axes, dataset)
    if not path.is_file():
        raise DataError(f"{path}: no such file or folder to import features from")
    try:
        with h5py.File(path, "r", locking="best-effort") as file:
            kind = file.attrs["format"] if "format" in file.attrs else None
            ours = isinstance(kind, str) and kind == FORMAT_NAME
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: neither a folder nor an HDF5 file ({error})") from None
    return StoreSource(open_hdf5(path)) if ours else Hdf5Rows(path, axes, dataset, ids_dataset)


def arrange_axes(features: np.ndarray, axes: str | None) -> np.ndarray:
    """Features of one clip as `[C, T, H, W]`; see the module for the rule.

    Raises:
        Unusable: not a float type, or another number of axes.
    """
    if features.dtype.kind != "f":
        raise Unusable(f"holds {features.dtype}, expected floats")
    length = len(axes) if axes else None
    if features.ndim > 1 and features.shape[0] == 1 and features.ndim - 1 in (length, 4):
        features = features[0]
    axes = axes or _DEFAULTS.get(features.ndim)
    if axes is None or features.ndim != len(axes) or features.size == 0:
        expected = f"the axes {axes}" if axes else "4, 2 or 1 axes (or give --layout)"
        raise Unusable(f"has shape {tuple(features.shape)}, expected {expected}")
    order = [axes.index(axis) for axis in "CTHW" if axis in axes]
    arranged = features.transpose(order)
    return arranged.reshape(*arranged.shape, *[1] * (4 - arranged.ndim))


def doubt_layout(map_shape: Sequence[int], axes: str | None) -> str:
    """A remark where maps look as if their axes were read in another order; "" where not.

    Backbones give more channels than time steps, rows or columns. Nothing is said of a layout that
    was asked for.

    Args:
        map_shape: `(C, T, H, W)`, as read.
        axes: The layout that was asked for; None: none.
    """
    channels, steps, height, width = map_shape
    if axes is not None or channels >= max(steps, height, width):
        return ""
    layouts = "--layout THWC" if width > steps else "--layout TCHW"
    if height == width == 1:
        layouts = "--layout CT (TCHW, if a file has four axes)"
    return (
        f"warning: maps were read as {channels} channels x {steps} time steps x {height} x {width};"
        " backbones give more channels than steps, rows or columns. If the axes are in another "
        f"order, import again with {layouts}; give the layout that was meant to end this warning"
    )


class FolderSource:
    """One file per clip (or view) below a folder; links are not followed out of it."""

    def __init__(self, root: Path, axes: str | None, key: str | None) -> None:
        self.root, self._axes, self._key = root, axes, key
        self._files: dict[str, list[str]] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(SUFFIXES):
                    path = (Path(folder) / name).relative_to(root)
                    stem = path.with_suffix("")
                    for key_ in {stem.as_posix(), stem.name}:
                        self._files.setdefault(key_, []).append(path.as_posix())
        self.num_items = len({path for paths in self._files.values() for path in paths})
        if not self.num_items:
            raise DataError(f"{root}: no {', '.join(SUFFIXES)} file in it; nothing to import")

    def load(self, row: LabelRow) -> np.ndarray:
        """See `FeatureSource`."""
        path = self.root / self._find(row)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise Unusable(f"{path} leads out of the source folder")
        try:
            features = _load_file(path, self._key)
        except FileNotFoundError:
            raise Unusable(f"no file {path.relative_to(self.root)}") from None
        return arrange_axes(features, self._axes)

    def _find(self, row: LabelRow) -> str:
        if row.path is not None:
            return row.path
        found = self._files.get(row.id, [])
        if row.view or not found:
            found = self._files.get(f"{row.id}_view{row.view}", [] if row.view else found)
        if not found:
            raise Unusable(f"no file of that id{f' and view {row.view}' if row.view else ''}")
        if len(found) > 1:
            raise Unusable(f"several files of that id: {', '.join(sorted(found)[:3])}")
        return found[0]


def _load_file(path: Path, key: str | None) -> np.ndarray:
    try:
        if path.suffix in (".pt", ".pth"):
            return _load_tensor(path, key)
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            return loaded[_choose(list(loaded.files), key)]
    except (Unusable, FileNotFoundError):
        raise
    except Exception as error:  # Whatever a damaged file makes of NumPy, zipfile and torch.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Unusable(f"can't be loaded safely: {reason[:200]}") from None


def _load_tensor(path: Path, key: str | None) -> np.ndarray:
    import torch

    loaded = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(loaded, dict):
        loaded = loaded[_choose([name for name in loaded if isinstance(name, str)], key)]
    if not isinstance(loaded, torch.Tensor):
        raise Unusable(f"holds a {type(loaded).__name__}, expected a tensor")
    tensor = loaded.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).contiguous().numpy()


def _choose(names: list[str], key: str | None) -> str:
    if key is not None and key in names:
        return key
    if key is None and len(names) == 1:
        return names[0]
    wanted = f"no {key}" if key else "choose one with --dataset"
    raise Unusable(f"holds {', '.join(sorted(names)[:5]) or 'nothing'}: {wanted}")


class Hdf5Rows:
    """Any HDF5 file with a dataset `[N, ...]` of features and one of N ids."""

    def __init__(
        self, path: Path, axes: str | None, dataset: str | None, ids_dataset: str | None
    ) -> None:
        self._path, self._axes = path, axes
        self._file = h5py.File(path, "r", locking="best-effort")
        found = list_datasets(self._file)
        wanted = 1 + len(axes or "CTHW")
        fitting = [name for name, item in found.inside.items() if item.ndim == wanted]
        name, self._maps = self._pick(
            dataset, found, _MAP_NAMES, fitting, f"{wanted} axes", "--dataset"
        )
        if not self._maps.shape:
            raise DataError(f"{path}: {name} is no array; expected one map a row")
        self.num_items = len(self._maps)
        texts = [
            name
            for name, item in found.inside.items()
            if item.shape == (self.num_items,) and _is_text(item)
        ]
        told = f"{self.num_items} texts"
        name, texts_of_ids = self._pick(ids_dataset, found, _ID_NAMES, texts, told, "--ids-dataset")
        if not _is_text(texts_of_ids):
            raise DataError(f"{path}: {name} holds {texts_of_ids.dtype}, expected texts as ids")
        values = _read_whole(path, name, texts_of_ids)
        if values.shape != (self.num_items,):
            raise DataError(f"{path}: {values.size} ids in {name}, expected {self.num_items}")
        ids = [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v) for v in values]
        views = [0] * len(ids)
        if (given := self._find("views")) is not None:
            numbers = _read_whole(path, "views", given)
            if numbers.shape != (self.num_items,) or numbers.dtype.kind not in "iu":
                raise DataError(
                    f"{path}: views is {numbers.dtype} {numbers.shape}, expected {len(ids)} "
                    "integers, a view number a row"
                )
            views = numbers.tolist()
        self._rows: dict[tuple[str, int], int] = {}
        for row, key in enumerate(zip(ids, views, strict=True)):
            if key in self._rows:
                raise DataError(f"{path}: id {key[0]} is there twice; expected each id once")
            self._rows[key] = row

    def _find(self, name: str) -> h5py.Dataset | None:
        """The dataset of that name, if there is one.

        Raises:
            DataError: Its data are those of another file.
        """
        item = find_dataset(self._file, name)
        if isinstance(item, str):
            raise DataError(
                f"{self._path}: {name} {item}; only data in the file itself are read: copy them "
                "into it"
            )
        if item is not None:
            self._require_filters(name, item)
        return item

    def _require_filters(self, name: str, dataset: h5py.Dataset) -> None:
        made = dataset.id.get_create_plist()
        for number in range(made.get_nfilters()):
            code = made.get_filter(number)[0]
            if not h5py.h5z.filter_avail(code):
                raise DataError(
                    f"{self._path}: {name} was written with HDF5 filter {code}, which is not "
                    "installed here; write it without, such as by `h5repack -f NONE`"
                )

    def _pick(
        self,
        asked: str | None,
        found: Datasets,
        usual: tuple[str, ...],
        fitting: list[str],
        what: str,
        option: str,
    ) -> tuple[str, h5py.Dataset]:
        """The dataset that was asked for, has a usual name, or is the only one that fits."""
        names = ", ".join(sorted(found.inside)[:8])
        if asked is not None:
            if (item := self._find(asked)) is not None:
                return asked, item
            raise DataError(f"{self._path}: no dataset {asked}; found {names}")
        for name in usual:
            item = self._find(name)
            if item is not None and name in fitting:
                return name, item
        # Links may name one and the same several times.
        places = {h5py.h5o.get_info(found.inside[name].id).addr: name for name in fitting}
        if len(places) == 1:
            (name,) = places.values()
            self._require_filters(name, found.inside[name])
            return name, found.inside[name]
        others = "; ".join(f"{name} {how}" for name, how in sorted(found.outside.items())[:3])
        raise DataError(
            f"{self._path}: {len(places)} datasets with {what} ({names}); "
            f"name the one with {option}{f' ({others})' if others else ''}"
        )

    def load(self, row: LabelRow) -> np.ndarray:
        """See `FeatureSource`."""
        place = self._rows.get((row.id, row.view))
        if place is None:
            raise Unusable(f"no such id{f' and view {row.view}' if row.view else ''} in the file")
        try:
            return arrange_axes(np.asarray(self._maps[place]), self._axes)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            raise Unusable(f"can't be read ({error})") from None


def _is_text(dataset: h5py.Dataset) -> bool:
    """Also variable-length texts, whose NumPy type is that of references, too."""
    return dataset.dtype.kind == "S" or h5py.check_string_dtype(dataset.dtype) is not None


def _read_whole(path: Path, name: str, dataset: h5py.Dataset) -> np.ndarray:
    try:
        return np.asarray(dataset[()])
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise DataError(f"{path}: {name} can't be read ({error}); copy the file again") from None


class StoreSource:
    """A file that `export` wrote: read with all its checks, views and storage types."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.num_items = store, len(store)
        keys = zip(store.video_ids, store.views.tolist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def load(self, row: LabelRow) -> np.ndarray:
        """See `FeatureSource`."""
        place = self._rows.get((row.id, row.view))
        if place is None:
            raise Unusable("no such id in the file")
        try:
            return self.store.read([place])[0]
        except StoreError as error:
            raise Unusable(str(error)) from None
