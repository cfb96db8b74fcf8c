"""What a store that was made under the former rule of frames still is worth.

Until 0.2 decord was asked for the frames of every file, and packets were counted as frames. Enters:
such a store, and the clip index that says what each file is. Leaves: the clips whose maps are
suspect, and the maps that a new store can take over, so that only the suspect ones are made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.clips.decode import find_refusal
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.frames.views import ViewPlan
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.reader import FeatureStore

# What of `made_of` the rule of frames decides.
_OF_FRAMES = ("clips", "decoder", "decoder_fallback")


def find_suspects(store: FeatureStore, index: ClipIndex) -> tuple[str, ...]:
    """Ids of the clips in `store` whose maps may be of other frames than a player shows.

    Suspect are the clips of a store that decord made by the former rule whose files decord does not
    read exactly, or whose packets are more than their frames. A store of another origin has none.
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
    made_of, wanted = store.manifest["made_of"], dict(plan.fingerprint_parts)
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
