"""Names in a weights file -> names in our recognizers.

Enters: the keys of a file. Leaves: for each key the name of the same tensor in an mmaction2
recognizer, or None for a tensor that extraction has no use for. Every map is known by name, applied
to all keys, and followed by a strict load: what no map explains is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Literal

KeyMap = Callable[[str], str | None]
KeyMapName = Literal["auto", "mmaction2", "video_swin", "bare_backbone", "dsts"]

_WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.|model\.)+")  # DDP, torch.compile, trainers


def _from_mmaction2(key: str) -> str:
    """mmaction2's own names, whatever wrapped the model when it was saved."""
    return _WRAPPERS.sub("", key)


def _from_video_swin(key: str) -> str:
    """The authors' Video-Swin: their last norm is `norm`, mmaction2's is `norm3`."""
    key = _WRAPPERS.sub("", key)
    key = key if key.startswith(("backbone.", "cls_head.")) else f"backbone.{key}"
    return re.sub(r"^backbone\.norm\.", "backbone.norm3.", key)


def _from_bare_backbone(key: str) -> str:
    """A backbone saved alone: its keys lack the prefix."""
    return f"backbone.{_WRAPPERS.sub('', key)}"


def _from_dsts(key: str) -> str | None:
    """A fine-tuned DSTS model: the backbone (and neck) under their names; the rest is its head."""
    key = _WRAPPERS.sub("", key)
    return key if key.startswith(("backbone.", "neck.")) else None


KEY_MAPS: dict[str, KeyMap] = {
    "mmaction2": _from_mmaction2,
    "video_swin": _from_video_swin,
    "bare_backbone": _from_bare_backbone,
    "dsts": _from_dsts,
}
# `auto` never drops a tensor that no rule of the recognizer leaves out: "dsts" is by name only.
AUTOMATIC = ("mmaction2", "video_swin", "bare_backbone")


def rename_keys(keys: Iterable[str], name: str) -> dict[str, str | None]:
    """File name -> our name (None: not wanted) by the map called `name`.

    Raises:
        ValueError: Two keys of the file would get one name.
    """
    renamed = {key: KEY_MAPS[name](key) for key in keys}
    wanted = [target for target in renamed.values() if target is not None]
    if len(set(wanted)) != len(wanted):
        twice = next(target for target in wanted if wanted.count(target) > 1)
        raise ValueError(f"two tensors would be called {twice} by the key map {name}")
    return renamed
