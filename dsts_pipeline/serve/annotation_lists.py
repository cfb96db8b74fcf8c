"""The clip index as mmaction2's annotation lists, for its `VideoDataset`.

Enters: a clip index. Leaves: a folder with `train_list_videos.txt` and so on, "path label" a line,
the path relative to the data root (mmaction2's `data_prefix`), and `label_map.txt`, a class a line.
`clips.mmaction_list` reads the same format. Videos that cannot be decoded are in no index, so in no
list.
"""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.clips.index import Clip, ClipIndex


def write_annotation_lists(index: ClipIndex, folder: str | Path) -> dict[str, int]:
    """Write a list per split and the class names; returns the number of clips by split.

    Raises:
        DataError: A clip is a part of its video, which mmaction2's list cannot say, or its path has
            a space, which would end it there.
    """
    for clip in index.clips:
        _check(clip)
    counts = index.count_splits()
    for split in counts:
        lines = "".join(f"{clip.path} {clip.label}\n" for clip in index.of_split(split))
        write_atomic(Path(folder) / f"{split}_list_videos.txt", lines.encode())
    names = "".join(f"{name}\n" for name in index.class_names)
    write_atomic(Path(folder) / "label_map.txt", names.encode())
    return counts


def _check(clip: Clip) -> None:
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
