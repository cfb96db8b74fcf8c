"""The care of stores that are there: listing and removing, repairs, what former ones are worth.

Links are listed, never followed; a folder is removed only if it is a store down to its last file
name. A store without a manifest is unfinished, so whatever is done here may be stopped at any
instant: the manifest goes first, and the writer makes what is not there.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import HELD, fsync_directory, sign, write_json
from dsts_pipeline.clips.decode import find_refusal
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.views import ViewPlan
from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.manifest import load_manifest
from dsts_pipeline.feature_store.plan import FINGERPRINT_LENGTH, StorePlan
from dsts_pipeline.feature_store.reader import FeatureStore

# ---- listing and removing ----------------------------------------------------------------------

_NAME = re.compile(f"[0-9a-f]{{{FINGERPRINT_LENGTH}}}")
_FOLDERS = ("", "maps", "scales", "frames", "shards")
_FILE = re.compile(
    r"zarr\.json|clips\.json|groups-[0-9a-f]{8}\.json|manifest\.json|\.writer\.lock|"
    r"(maps|scales|frames)/zarr\.json|(maps|scales|frames)/c(\.\d+)+|shards/\d+\.json|"
    r"((maps|scales|frames|shards)/)?\.[^/]*\.tmp"  # left by a writer that was killed
)


@dataclass(frozen=True)
class StoreEntry:
    """One folder below a root.

    Attributes:
        path: where it is. state: "complete", "unfinished, k of n shards", "older format (...)",
            "damaged manifest" or "not a store (...)".
        removable: whether it is recognisably a store, down to its last file.
        num_bytes: of all its files. num_maps: stored ones, None where not known.
        stored_type, backbone, dataset: empty where not known.
    """

    path: Path
    state: str
    removable: bool
    num_bytes: int
    num_maps: int | None = None
    stored_type: str = ""
    backbone: str = ""
    dataset: str = ""


def list_stores(root: str | Path) -> list[StoreEntry]:
    """All folders and links right below `root`, by name; an absent root holds none."""
    root = Path(root)
    if not root.is_dir():
        return []
    with os.scandir(root) as entries:
        folders = [e for e in entries if e.is_symlink() or e.is_dir(follow_symlinks=False)]
    return [_describe(root / entry.name) for entry in sorted(folders, key=lambda e: e.name)]


def _describe(path: Path) -> StoreEntry:
    if path.is_symlink():
        return StoreEntry(path, "not a store (a link, not followed)", False, 0)
    names, strange, num_bytes = _list_names(path)
    group = _read(path / layout.GROUP_NAME).get("attributes", {})
    if not _NAME.fullmatch(path.name) or group.get("format") != layout.FORMAT_NAME:
        return StoreEntry(path, "not a store", False, num_bytes)
    about, num_shards = _read_about(path)
    if layout.MANIFEST_NAME in names:
        state = _tell_state(path, group.get("version"))
    else:
        done = sum(name.startswith("shards/") and name.endswith(".json") for name in names)
        state = f"unfinished, {done} of {num_shards or '?'} shards"
    if strange:
        state += f"; holds {strange}, which is no part of a store"
    return StoreEntry(path, state, not strange, num_bytes, **about)


def _list_names(store: Path) -> tuple[set[str], str, int]:
    """Names of all files, the first one that is no store's, and how many bytes they take."""
    names: set[str] = set()
    strange: list[str] = []
    num_bytes = 0
    for folder, subfolders, files in os.walk(store):
        inside = Path(folder).relative_to(store)
        for name in [*files, *subfolders]:
            path = Path(folder) / name
            relative = (inside / name).as_posix()
            if name in subfolders and not path.is_symlink():
                strange += [] if relative in _FOLDERS else [relative]
                continue
            names.add(relative)
            num_bytes += path.lstat().st_size
            if path.is_symlink() or not _FILE.fullmatch(relative):
                strange.append(relative)
    return names, min(strange, default=""), num_bytes


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _read_about(path: Path) -> tuple[dict[str, Any], int | None]:
    """What the metadata say of a store's entry, as far as there are any, and how many shards."""
    manifest = _read(path / layout.MANIFEST_NAME)
    array = _read(path / layout.ARRAY_NAME)
    made_of = manifest.get("made_of", {})
    about: dict[str, Any] = {
        "backbone": _name(made_of, "backbone", "name"),
        "dataset": _name(made_of, "clips", "dataset"),
    }
    num_shards = None
    try:
        per_shard = array["chunk_grid"]["configuration"]["chunk_shape"][0]
        num_shards = -(-array["shape"][0] // per_shard)
        stored_type = array["attributes"].get("stored_type", array["data_type"])
        about["stored_type"] = str(stored_type)
        about["num_maps"] = manifest["counts"]["stored"] if manifest else None
    except (KeyError, TypeError, IndexError, AttributeError):
        pass
    return about, num_shards


def _name(made_of: Any, section: str, key: str) -> str:
    found = made_of.get(section) if isinstance(made_of, dict) else None
    return str(found.get(key, "")) if isinstance(found, dict) else ""


def _tell_state(path: Path, version: Any) -> str:
    if version != layout.FORMAT_VERSION:
        return f"older format (version {version}, now {layout.FORMAT_VERSION})"
    try:
        manifest = load_manifest(path)
    except StoreError:
        return "damaged manifest"
    found = sum((path / layout.name_shard(k)).is_file() for k in range(len(manifest["shards"])))
    if found < len(manifest["shards"]):
        return f"damaged, {found} of {len(manifest['shards'])} shards there"
    return "complete"


def remove_store(root: str | Path, entry: StoreEntry) -> None:
    """Remove a store, its manifest first: stopped half-way it is an unfinished one.

    Raises:
        StoreError: it is not recognisably a store of `root`, or a writer holds it.
    """
    path = entry.path
    again = _describe(path)
    if path.parent != Path(root) or not again.removable:
        raise StoreError(f"{path}: {again.state}; not removed: look at it and delete it by hand")
    with keep_writers_out(path):
        (path / layout.MANIFEST_NAME).unlink(missing_ok=True)
        fsync_directory(path)
        names, _, _ = _list_names(path)
        # What tells that this is a store goes last, so that a later call can go on.
        for name in sorted(names, key=lambda name: (name == layout.GROUP_NAME, name)):
            (path / name).unlink(missing_ok=True)
        for folder in _FOLDERS[1:]:
            if (path / folder).is_dir():
                (path / folder).rmdir()
        path.rmdir()
    fsync_directory(path.parent)


@contextmanager
def keep_writers_out(store: Path) -> Iterator[None]:
    """Hold the lock of every shard at once (byte k of the lock file: shard k).

    Raises:
        StoreError: another process is writing the store.
    """
    path = store / layout.LOCK_NAME
    if not path.exists():  # No writer was ever here.
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in HELD:
            raise
        raise StoreError(
            f"{store}: another process is writing this store; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


# ---- making room for a repair: damaged shards go, the writer does the rest ---------------------


def remove_damaged(store: str | Path, shards: Iterable[int]) -> None:
    """Take away the manifest, then every file of these shards, so that a writer makes them anew.

    Raises:
        StoreError: another process is writing the store.
    """
    store = Path(store)
    with keep_writers_out(store):
        (store / layout.MANIFEST_NAME).unlink(missing_ok=True)
        fsync_directory(store)
        for shard in shards:
            # The sidecar first: without it no writer trusts what is left of the shard.
            names = [layout.name_sidecar(shard), *layout.name_shard_files(shard, "int8")]
            for name in names:
                (store / name).unlink(missing_ok=True)
        for folder in ("shards", "maps"):
            if (store / folder).is_dir():
                fsync_directory(store / folder)


def keep_provenance(before: bytes, repaired: Mapping[str, Any], store: str | Path) -> bool:
    """Put the old provenance back if the repaired store has the very files of the old manifest.

    Args:
        before: the sound manifest of the store before the repair, as it was in its file.
        repaired: the manifest that the repair ended with.

    Returns:
        Whether all shards came out with their recorded digests.
    """
    old = json.loads(before)
    same = all(old[key] == repaired[key] for key in ("fingerprint", "shards", "failures"))
    files, others = (
        {name: entry for name, entry in manifest["files"].items() if not layout.find_groups([name])}
        for manifest in (old, repaired)
    )
    same = same and files == others  # groups may be other ones by now
    if same:  # the rest follows from these, and is what the repair found it to be
        kept = {**repaired, "provenance": old["provenance"]}
        write_json(Path(store) / layout.MANIFEST_NAME, sign(kept))
    return same


# ---- what a store that was made under the former rule of frames still is worth -----------------
#
# Until 0.2 decord was asked for the frames of every file, and packets were counted as frames. Some
# maps of such a store are suspect; a new store takes the others over.

# What of `made_of` the rule of frames decides.
_OF_FRAMES = ("clips", "decoder", "decoder_fallback")


def find_suspects(store: FeatureStore, index: ClipIndex) -> tuple[str, ...]:
    """Ids of the clips in `store` whose maps may be of other frames than a player shows.

    They are those whose files decord does not read exactly, or whose packets are more than their
    frames, in a store that decord made by the former rule. A store of another origin has none.
    """
    if not _is_of_former_rule(store):
        return ()
    stored = set(store.video_ids)
    return tuple(clip.id for clip in index.clips if clip.id in stored and is_suspect(clip))


def is_suspect(clip: Clip) -> bool:
    """Whether decord may have read other frames of `clip` than a player shows."""
    info = clip.video_info
    return info is None or find_refusal(info, "decord") is not None


@dataclass(frozen=True)
class EarlierMaps:
    """Maps of a former store that a new one takes over.

    Attributes:
        rows: Row of the former store, by position in the new one.
    """

    store: FeatureStore
    rows: dict[int, int]

    def read(self, positions: Sequence[int]) -> np.ndarray:
        """Maps float32 [n, C, T, H, W]."""
        return self.store.read([self.rows[p] for p in positions]).astype(np.float32, copy=False)


def find_earlier_maps(store: FeatureStore, views: ViewPlan, plan: StorePlan) -> EarlierMaps:
    """The maps of `store` that the store of `plan` would hold with the very same bytes.

    Raises:
        StoreError: `store` was made of something else; the message says of what.
    """
    made_of = store.manifest["made_of"]
    wanted = dict(plan.fingerprint_parts)
    if not _is_of_former_rule(store):
        raise _refuse(store, "it was not made by decord under the former rule of frames")
    for key in sorted((made_of.keys() | wanted.keys()) - set(_OF_FRAMES)):
        if made_of.get(key) != wanted.get(key):
            raise _refuse(store, f"it was made with another {key} than the settings say")
    if (store.stored_type, store.map_shape) != (plan.dtype, tuple(plan.map_shape)):
        raise _refuse(store, "its maps are of another type or shape than the settings say")
    if store.stored_type == "int8":
        raise _refuse(store, "maps of int8 cannot be taken over without loss")
    keys = zip(store.video_ids, store.splits, store.views, strict=True)
    stored = {key: row for row, key in enumerate(keys)}
    failed = {failure["id"] for failure in store.manifest["failures"]}
    known = {(clip_id, split) for clip_id, split, _ in stored}
    if made_of["clips"]["digest"] not in _former_digests(views.index, known, failed):
        raise _refuse(store, "its clips are not those of the clip index, as far as can be proven")
    rows = {}
    for position, row in enumerate(views.rows):
        clip = views.index.clips[row.clip]
        found = stored.get((clip.id, clip.split, row.view))
        if found is None or is_suspect(clip) or store.labels[found] != row.label:
            continue
        if store.frames is not None and np.array_equal(store.frames[found], views.frames[position]):
            rows[position] = found
    return EarlierMaps(store, rows)


def _refuse(store: FeatureStore, reason: str) -> StoreError:
    return StoreError(
        f"{store.location}: {reason}, so nothing of it can be taken over; run `python cli.py "
        "extract`, which makes all maps anew"
    )


def _is_of_former_rule(store: FeatureStore) -> bool:
    made_of = store.manifest["made_of"]
    named = str(made_of.get("decoder", "")).split()
    return named[:1] == ["decord"] and len(named) == 2


def _former_digests(index: ClipIndex, known: set[tuple[str, str]], failed: set[str]) -> set[str]:
    """Digests that the index of the same files may have had when packets were counted as frames."""
    clips = [clip for clip in index.clips if (clip.id, clip.split) in known or clip.id in failed]
    former = [_count_packets(clip) for clip in clips]
    return {index.digest} | {replace(index, clips=tuple(c)).digest for c in (clips, former)}


def _count_packets(clip: Clip) -> Clip:
    num_packets = clip.num_frames + clip.num_hidden
    end = num_packets if clip.end_frame == clip.num_frames else clip.end_frame
    return replace(clip, num_frames=num_packets, end_frame=end)
