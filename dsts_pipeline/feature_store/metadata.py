"""The small files of a store that follow from its plan alone: enters a plan, leave contents."""

from __future__ import annotations

from dsts_pipeline.feature_store import layout
from dsts_pipeline.feature_store.plan import StorePlan
from dsts_pipeline.feature_store.shards import checksum, little_endian_bytes


def encode_metadata(plan: StorePlan) -> dict[str, bytes]:
    """zarr metadata documents, clips.json, and the frame numbers where the plan has them."""
    documents = {
        layout.GROUP_NAME: layout.describe_group(plan.fingerprint),
        **plan.arrays,
        layout.CLIPS_NAME: plan.clip_table,
    }
    contents = {name: layout.encode_json(document) for name, document in documents.items()}
    if plan.frame_table is not None:
        chunk = little_endian_bytes(plan.frame_table)
        contents[layout.FRAMES_CHUNK_NAME] = chunk.tobytes() + checksum(chunk)
    return contents
