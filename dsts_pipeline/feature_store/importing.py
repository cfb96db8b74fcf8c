"""Features made elsewhere into a store: checked, fingerprinted by their content, resumable.

Enters: labels.csv, and a source: an HDF5 file, or a folder of .npy, .npz and .pt files. Leaves: a
finished store like any other. The source is read twice: once to check every map and to name the
store by what they hold, once to write them. In between nothing but a digest per map is kept. A
clip without a usable map is listed in the manifest with its reason, and counted. Nothing that is
loaded can run code: arrays without pickle, `.pt` with `weights_only`.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dsts_pipeline.base.errors import DataError, LazyExtra, StoreError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import StoreSettings
from dsts_pipeline.clips.annotation import TEST, TRAIN, VIDEO_SUFFIXES, check_text
from dsts_pipeline.clips.labels import number_labels, parse_whole_number
from dsts_pipeline.clips.tables import read_split_cell, read_table
from dsts_pipeline.feature_store.hdf5 import FORMAT_NAME, Datasets, find_dataset, list_datasets
from dsts_pipeline.feature_store.joining import count_joinable
from dsts_pipeline.feature_store.opening import open_store
from dsts_pipeline.feature_store.plan import StorePlan, storage_options
from dsts_pipeline.feature_store.reader import FeatureStore
from dsts_pipeline.feature_store.writer import StoreWriter

if TYPE_CHECKING:
    import h5py
else:
    h5py = LazyExtra("h5py", "an HDF5 file")

# ---- labels.csv: which clip has which class and split ------------------------------------------

MAX_CLASSES = 2**16
SUFFIXES = (".npy", ".npz", ".pt", ".pth")


@dataclass(frozen=True)
class LabelRow:
    """One row: a view of a clip.

    Attributes:
        id: the clip. path: its file inside the source, None if the id tells; or its video.
        label: class number. split: such as "train". view: from 0.
        group: what clips of one origin share, such as a player; None: not told.
    """

    id: str
    path: str | None
    label: int
    split: str
    view: int
    group: str | None = None

    @property
    def video(self) -> str | None:
        """`path` where it names a video: then the id tells which map is the clip's."""
        is_video = PurePosixPath(self.path or "").suffix.lower() in VIDEO_SUFFIXES
        return self.path if is_video else None


@dataclass(frozen=True)
class LabelTable:
    """All rows in the file's order, and the classes.

    `numbered`: the labels were numbers. `notes`: what a person should know, in sentences.
    """

    rows: tuple[LabelRow, ...]
    class_names: tuple[str, ...]
    numbered: bool
    notes: tuple[str, ...] = ()


def read_labels(path: str | Path) -> LabelTable:
    """Read and check a labels file: a table with the columns `id` (or `path`), `label`, `split` and
    perhaps `view` and `group`; others are left alone. Labels and splits are read as those of clips
    are.

    Raises:
        DataError: missing, without a needed column, empty, or a row that is wrong; names its line.
    """
    path = Path(path)
    check = functools.partial(_check_header, path)
    lines = list(read_table(path, check, missing="a CSV file; give one to --labels"))
    if not lines:
        raise DataError(f"{path}: no row below the header; expected one per clip")
    places: dict[str, str] = {}
    for place, values in lines:
        places.setdefault(values["label"], place)
    labels = number_labels(places, max_classes=MAX_CLASSES)
    rows: list[LabelRow] = []
    seen: dict[tuple[str, int], str] = {}
    groups: dict[str, tuple[str | None, str]] = {}
    for place, values in lines:
        row = _parse(place, values, labels.numbers[values["label"]])
        key = row.id, row.view
        if key in seen:
            raise DataError(
                f"{place}: clip {row.id} view {row.view} was in {seen[key]} already; expected "
                "each once"
            )
        seen[key] = place.removeprefix(f"{path}: ")
        group, where = groups.setdefault(row.id, (row.group, place.removeprefix(f"{path}: ")))
        if group != row.group:
            raise DataError(
                f"{place}: clip {row.id} is of group {row.group or 'none'}, and of "
                f"{group or 'none'} in {where}; expected one group for all views of a clip"
            )
        rows.append(row)
    absent = [split for split in (TRAIN, TEST) if all(row.split != split for row in rows)]
    notes = (*labels.notes, *(f"no clip is of the split {split}" for split in absent))
    return LabelTable(tuple(rows), labels.class_names, labels.are_numbers, notes)


def _check_header(path: Path, header: list[str]) -> None:
    missing = [name for name in ("label", "split") if name not in header]
    if "id" not in header and "path" not in header:
        missing.insert(0, "id (or path)")
    if missing:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; found {', '.join(header) or 'nothing'}, "
            "expected id (or path), label, split and perhaps view and group"
        )


def _parse(where: str, values: dict[str, str], label: int) -> LabelRow:
    path = values.get("path") or None
    view = values.get("view") or "0"
    clip = values.get("id") or ""
    if path and not clip:
        clip = str(PurePosixPath(path).with_suffix("")) if path.endswith(SUFFIXES) else path
    if not clip:
        raise DataError(f"{where}: neither id nor path")
    check_text(clip, "id", where)
    if path and (PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        raise DataError(f"{where}: path {path} leaves the source folder; expected one inside it")
    number = parse_whole_number(view)
    if number is None:
        raise DataError(f"{where}: view {view}, expected a number from 0")
    group = values.get("group") or None
    if group is not None:
        check_text(group, "group", where)
    return LabelRow(clip, path, label, read_split_cell(values["split"], where), number, group)


def find_videos(rows: Sequence[LabelRow], root: Path) -> dict[str, str]:
    """The videos that the table names and that lie below `root`: path by clip id."""
    base = root.resolve()
    found = {}
    for row in rows:
        if row.video is None or row.id in found:
            continue
        path = (base / row.video).resolve()
        if path.is_relative_to(base) and path.is_file():
            found[row.id] = row.video
    return found


# ---- the source, clip by clip ------------------------------------------------------------------

# Axes of one clip in a file; a vector per time step (TC) becomes a map [C, T, 1, 1].
LAYOUTS = ("CTHW", "TCHW", "THWC", "TC", "CT", "C")
_DEFAULT_LAYOUTS = {4: "CTHW", 2: "TC", 1: "C"}  # by the number of axes
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
    return StoreSource(open_store(path)) if ours else Hdf5Rows(path, axes, dataset, ids_dataset)


def arrange_axes(features: np.ndarray, axes: str | None) -> np.ndarray:
    """Features of one clip as `[C, T, H, W]`, absent axes of length 1.

    One leading axis of length 1 more than the layout has is dropped.

    Args:
        axes: one of `LAYOUTS`; None: by the number of axes.

    Raises:
        Unusable: not a float type, or another number of axes.
    """
    if features.dtype.kind != "f":
        raise Unusable(f"holds {features.dtype}, expected floats")
    num_axes = len(axes) if axes else None
    if features.ndim > 1 and features.shape[0] == 1 and features.ndim - 1 in (num_axes, 4):
        features = features[0]
    axes = axes or _DEFAULT_LAYOUTS.get(features.ndim)
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
        self.root = root
        self._axes = axes
        self._key = key
        self._files: dict[str, list[str]] = {}
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(SUFFIXES):
                    path = (Path(folder) / name).relative_to(root)
                    stem = path.with_suffix("")
                    for clip in {stem.as_posix(), stem.name}:
                        self._files.setdefault(clip, []).append(path.as_posix())
        self.num_items = len({path for paths in self._files.values() for path in paths})
        if not self.num_items:
            raise DataError(f"{root}: no {', '.join(SUFFIXES)} file in it; nothing to import")

    def load(self, row: LabelRow) -> np.ndarray:
        """As in `FeatureSource`."""
        path = self.root / self._find(row)
        if not path.resolve().is_relative_to(self.root.resolve()):
            raise Unusable(f"{path} leads out of the source folder")
        try:
            features = _load_file(path, self._key)
        except FileNotFoundError:
            raise Unusable(f"no file {path.relative_to(self.root)}") from None
        return arrange_axes(features, self._axes)

    def _find(self, row: LabelRow) -> str:
        if row.path is not None and row.video is None:
            return row.path
        found = self._files.get(row.id, [])
        if row.video == row.id:  # the table has no ids
            found = self._files.get(str(PurePosixPath(row.id).with_suffix("")), [])
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
        self._path = path
        self._axes = axes
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
        """As in `FeatureSource`."""
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
        self.store = store
        self.num_items = len(store)
        keys = zip(store.video_ids, store.views.tolist(), strict=True)
        self._rows = {key: row for row, key in enumerate(keys)}

    def load(self, row: LabelRow) -> np.ndarray:
        """As in `FeatureSource`."""
        place = self._rows.get((row.id, row.view))
        if place is None:
            raise Unusable("no such id in the file")
        try:
            return self.store.read([place])[0]
        except StoreError as error:
            raise Unusable(str(error)) from None


# ---- from the source into a store --------------------------------------------------------------

_NUM_LISTED = 3


@dataclass(frozen=True)
class SourceSurvey:
    """What the first reading of a source found.

    Attributes:
        map_shape: `(C, T, H, W)`, that of most maps.
        digests: of each row's map; None where there is no usable one.
        failures: reason by row of those.
    """

    map_shape: tuple[int, int, int, int]
    digests: tuple[str | None, ...]
    failures: Mapping[int, str]


def survey_source(
    source: FeatureSource, rows: Sequence[LabelRow], *, max_failed_fraction: float
) -> SourceSurvey:
    """Read the map of every row once and check it.

    Raises:
        DataError: more than `max_failed_fraction` of the rows have no usable map.
    """
    shapes: dict[int, tuple[int, ...]] = {}
    digests: list[str | None] = []
    failures: dict[int, str] = {}
    with track("check features", len(rows), "maps") as progress:
        for number, row in enumerate(rows):
            digests.append(None)
            try:
                features = _load_finite(source, row)
                shapes[number] = features.shape
                digests[number] = _digest(features)
            except Unusable as error:
                failures[number] = str(error)
            progress.advance()
    if not shapes:
        raise DataError(f"no clip has a usable map, such as {_list(rows, failures)}")
    map_shape = Counter(shapes.values()).most_common(1)[0][0]
    for number, shape in shapes.items():
        if shape != map_shape:
            failures[number] = f"map is {shape}, most are {map_shape}"
            digests[number] = None
    allowed = int(max_failed_fraction * len(rows) + 1e-9)
    if len(failures) > allowed:
        raise DataError(
            f"{len(failures)} of {len(rows)} clips have no usable map, {allowed} are allowed by "
            f"backbone.max_failed_fraction = {max_failed_fraction:g} ({_list(rows, failures)})"
        )
    channels, steps, height, width = map_shape
    ordered = dict(sorted(failures.items()))
    return SourceSurvey((channels, steps, height, width), tuple(digests), ordered)


def _load_finite(source: FeatureSource, row: LabelRow) -> np.ndarray:
    features = source.load(row)
    finite = np.isfinite(features).all(axis=(1, 2, 3))
    if not finite.all():
        raise Unusable(f"channel {int(np.argmin(finite))} of its map holds NaN or Inf")
    if features.dtype.itemsize > 4 and np.abs(features).max() > np.finfo(np.float32).max:
        raise Unusable("a value of its map overflows float32")
    return features


def _digest(features: np.ndarray) -> str:
    """SHA-256 of a map's type, shape and values in C order."""
    little_endian = np.ascontiguousarray(features, features.dtype.newbyteorder("<"))
    digest = hashlib.sha256(f"{little_endian.dtype.str} {features.shape}".encode())
    digest.update(little_endian.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _list(rows: Sequence[LabelRow], failures: Mapping[int, str]) -> str:
    numbers = sorted(failures)[:_NUM_LISTED]
    listed = "; ".join(f"{rows[number].id}: {failures[number]}" for number in numbers)
    return listed + ("; ..." if len(failures) > _NUM_LISTED else "")


def plan_import(
    source: FeatureSource, table: LabelTable, survey: SourceSurvey, *, name: str, how: StoreSettings
) -> StorePlan:
    """The store of an import.

    Args:
        name: of the data set. how: how maps are stored.
    """
    rows = table.rows
    content = [[row.id, row.view, digest] for row, digest in zip(rows, survey.digests, strict=True)]
    labels = [[row.id, row.view, row.label, row.split] for row in rows]
    made_of: dict[str, Any] = {
        "import": {"content": sha256_json(content)},
        "clips": {"dataset": name, "digest": sha256_json([labels, list(table.class_names)])},
    }
    class_names: Sequence[str] = table.class_names
    attributes: dict[str, Any] = {}
    groups = [row.group for row in rows]
    if isinstance(source, StoreSource):
        store = source.store
        made_of["import"]["store"] = store.fingerprint
        origin = store.manifest["made_of"]
        made_of |= {k: v for k, v in origin.items() if k == "backbone"}
        if count_joinable(origin) > 1:
            made_of["views"] = origin["views"]
        if store.groups is not None and not any(groups):  # labels.csv tells none
            known = dict(zip(store.video_ids, store.groups, strict=True))
            groups = [known.get(row.id) for row in rows]
        if table.numbered and len(class_names) <= len(store.class_names):
            class_names = store.class_names
            attributes = {
                "attribute_names": store.attribute_names,
                "attributes": store.attributes,
            }
    return StorePlan(
        made_of,
        clips=[(row.id, row.label, row.split, row.view) for row in rows],
        class_names=class_names,
        map_shape=survey.map_shape,
        groups=groups,
        **attributes,
        **storage_options(how, len(rows), [survey.map_shape]),
    )


def write_import(
    source: FeatureSource,
    rows: Sequence[LabelRow],
    survey: SourceSurvey,
    writer: StoreWriter,
    *,
    provenance: Mapping[str, Any],
) -> Path:
    """Write every shard that is not there yet, and the manifest; returns its path.

    Raises:
        DataError: a map is no longer what it was at the first reading.
        StoreError: a value overflows the storage type, or the disk is full.
    """
    with track("import features", len(rows), "maps") as progress:
        for shard in writer.claims():
            positions = writer.shard_clips(shard)
            maps = np.zeros((len(positions), *survey.map_shape), np.float32)
            failed = {n: reason for n, reason in survey.failures.items() if n in positions}
            for target, number in zip(maps, positions, strict=True):
                if number not in failed:
                    target[...] = _load_same(source, rows[number], survey.digests[number])
            writer.write_shard(shard, maps, failed)
            progress.advance(len(positions))
    return writer.finish(provenance)


def _load_same(source: FeatureSource, row: LabelRow, digest: str | None) -> np.ndarray:
    try:
        features = source.load(row)
        if _digest(features) == digest:
            return features
    except Unusable:
        pass
    raise DataError(
        f"clip {row.id}: its map changed while it was being imported; run "
        "`python cli.py import-features` again when nothing writes the source"
    )
