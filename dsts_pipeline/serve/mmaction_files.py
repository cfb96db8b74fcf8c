"""Files for mmaction2's own tools: annotation lists, and checkpoints from and to ours.

Enters: a clip index; a .pth file that mmaction2's tools wrote, or a head's folder and weights.
Leaves: lists for its `VideoDataset`; of the checkpoint and ours, the other one. A .pth is read by
the restricted unpickler, with the exact allow-list of `extract.weights`; nothing in it runs.
mmaction2 itself is not imported here: it takes seconds.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError, DataError
from dsts_pipeline.base.files import sha256_file, write_atomic
from dsts_pipeline.clips.index import Clip, ClipIndex
from dsts_pipeline.extract.downloads import locate_weights, note_of, write_note
from dsts_pipeline.extract.weights import (
    CLASSIFIER_BIAS,
    CLASSIFIER_WEIGHT,
    read_state,
    rename_keys,
)
from dsts_pipeline.head import DSTSHead, load_head, save_head

# ---- the clip index as annotation lists ---------------------------------------------------------
#
# `train_list_videos.txt` and so on: "path label" a line, the path relative to the data root
# (mmaction2's `data_prefix`); `label_map.txt`: a class a line. `clips.tables` reads this format,
# too. Videos that cannot be decoded are in no index, so in no list.


def write_annotation_lists(index: ClipIndex, folder: str | Path) -> dict[str, int]:
    """Write a list per split and the class names; returns the number of clips by split.

    Raises:
        DataError: A clip is a part of its video, which mmaction2's list cannot say, or its path has
            a space, which would end it there.
    """
    for clip in index.clips:
        _require_whole_video(clip)
    counts = index.count_splits()
    for split in counts:
        lines = "".join(f"{clip.path} {clip.label}\n" for clip in index.of_split(split))
        write_atomic(Path(folder) / f"{split}_list_videos.txt", lines.encode())
    names = "".join(f"{name}\n" for name in index.class_names)
    write_atomic(Path(folder) / "label_map.txt", names.encode())
    return counts


def _require_whole_video(clip: Clip) -> None:
    if (clip.start_frame, clip.end_frame) != (0, clip.num_frames):
        raise DataError(
            f"{clip.id}: frames {clip.start_frame} to {clip.end_frame} of the {clip.num_frames} of "
            f"{clip.path}; mmaction2's lists know whole videos only: cut the clips out first"
        )
    if any(character.isspace() for character in clip.path):
        raise DataError(
            f"{clip.id}: its path {clip.path!r} has a space, where mmaction2's lists end the path; "
            "rename the file"
        )


# ---- checkpoints -------------------------------------------------------------------------------
#
# Names in a checkpoint: `cls_head.head.` is the head, all before `cls_head.` is backbone and neck,
# under mmaction2's own names.

HEAD_PREFIX = "cls_head.head."
OPTIONS_KEY = "cls_head._extra_state"


class SplitCheckpoint(NamedTuple):
    """What `split_checkpoint` wrote.

    Attributes:
        weights: Backbone and neck, for `backbone.weights`.
        sha256: Of that file.
        head: The head's folder.
    """

    weights: Path
    sha256: str
    head: Path


def split_checkpoint(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    head_folder: str | Path | None = None,
    store: str | None = None,
) -> SplitCheckpoint:
    """Write backbone and head of an mmaction2 checkpoint below `folder`.

    The head's record says where it is from and which weights its maps must come from. Its linear
    classifier is in the weights, too, as the recognizer's `fc_cls` (the embedded backbone's weights
    are expected to have one), unless it reads what an attentive readout makes of a map.

    Args:
        head_folder: Where the head goes; None: below `folder`.
        store: Fingerprint of the store of these weights' maps, where there is one.

    Raises:
        CheckpointError: The file is missing, damaged, wants to run code, or holds no DSTS head.
    """
    state = read_state(checkpoint)
    head = _build_head(checkpoint, state)
    weights = Path(folder) / "backbone.safetensors"
    others = {k: v.contiguous() for k, v in state.items() if not k.startswith("cls_head.")}
    if head.pooler is None:
        others[CLASSIFIER_WEIGHT] = head.classifier.weight.detach()
        others[CLASSIFIER_BIAS] = head.classifier.bias.detach()
    note_of(weights).unlink(missing_ok=True)
    write_atomic(weights, safetensors.torch.save(others))
    write_note(weights)
    sha256 = sha256_file(weights)
    made_of = {
        "title": f"DSTS head of {Path(checkpoint).name}",
        "store": store,
        "checkpoint_sha256": sha256_file(checkpoint),
        "backbone_sha256": sha256,
    }
    place = Path(folder) / "head" if head_folder is None else Path(head_folder)
    save_head(place, head, made_of)
    return SplitCheckpoint(weights, sha256, place)


def _build_head(checkpoint: str | Path, state: dict[str, Tensor]) -> DSTSHead:
    if OPTIONS_KEY not in state:
        others = sorted(name for name in state if name.startswith("cls_head."))
        raise CheckpointError(
            f"{checkpoint}: holds no DSTS head ({len(others)} tensors of another cls_head); "
            "expected a checkpoint of a recognizer whose cls_head has type DSTSHead. Weights of a "
            "plain recognizer need no conversion: give backbone.weights the file"
        )
    values = {
        name.removeprefix(HEAD_PREFIX): value
        for name, value in state.items()
        if name.startswith(HEAD_PREFIX)
    }
    try:
        head = DSTSHead.paper(**decode_options(state[OPTIONS_KEY]))
        head.load_state_dict(values, strict=True)
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint}: its head cannot be built ({reason}); take a checkpoint of this "
            "version's DSTSHead"
        ) from None
    return head


def join_checkpoint(
    path: str | Path, *, head: str | Path | None = None, weights: str | Path | None = None
) -> int:
    """Write an mmaction2 checkpoint for `load_from` or `tools/test.py`; returns its tensors.

    Args:
        head: A folder with head.json; becomes `cls_head.head.`.
        weights: Weights of a recognizer, in mmaction2's names or those of Video Swin's authors. Its
            own classifier stays only where no head takes its place.

    Raises:
        CheckpointError: Nothing is given, a file is unsound, or the head is no DSTS head.
    """
    state: dict[str, Tensor] = {}
    if weights is not None:
        read = _in_mmaction_names(read_state(locate_weights(weights).path))
        dropped = () if head is None else ("cls_head.",)
        state |= {name: value for name, value in read.items() if not name.startswith(dropped)}
    if head is not None:
        loaded, _ = load_head(head)
        if not isinstance(loaded, DSTSHead):
            raise CheckpointError(
                f"{head}: holds a {type(loaded).__name__}, mmaction2's component is for DSTSHead"
            )
        state |= {f"{HEAD_PREFIX}{name}": value for name, value in loaded.state_dict().items()}
        state[OPTIONS_KEY] = encode_options(loaded.config)
    if not state:
        raise CheckpointError("nothing to convert; give a head's folder, weights, or both")
    buffer = io.BytesIO()
    torch.save({"meta": {}, "state_dict": state}, buffer)
    write_atomic(path, buffer.getvalue())
    return len(state)


def _in_mmaction_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """mmengine would load a file with other names, too, and pass over what it doesn't know."""
    of_authors = "norm.weight" in state or "backbone.norm.weight" in state
    renamed = rename_keys(state, "video_swin" if of_authors else "mmaction2")
    return {str(renamed[name]): value for name, value in state.items()}


def encode_options(options: dict[str, Any]) -> Tensor:
    """A head's constructor arguments as JSON in bytes, a tensor like all else in a checkpoint."""
    text = json.dumps(options, sort_keys=True)
    return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())


def decode_options(encoded: Tensor) -> dict[str, Any]:
    """What `encode_options` was given.

    Raises:
        ValueError: It is no JSON.
    """
    return json.loads(bytes(encoded.cpu().numpy().astype(np.uint8)))
