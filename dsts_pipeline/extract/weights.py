"""Weights of recognizers: safetensors written, and files of several makes loaded strictly.

Enters: a weights file and a recognizer. Leaves: a recognizer that holds exactly the file's values,
with a report of every key, or a `CheckpointError` that names what does not fit.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.extract.downloads import (
    RANDOM,
    locate_weights,
    note_of,
    place_weights,
    write_note,
)

# ---- files -> tensors by name, without running anything that is in them -------------------------
#
# safetensors hold arrays only. A pickle is read by torch's restricted unpickler, which knows
# tensors and plain containers and refuses every other name. OpenMMLab's files hold the log of their
# training as well; exactly those names are let in, each bound to a class that does nothing
# (`getattr` too: what the file calls is that class), so that neither mmengine's, numpy's nor
# Python's code runs. Format: https://github.com/huggingface/safetensors#format

# Where a checkpoint of several parts keeps the weights.
_STATE_NAMES = (
    "state_dict",
    "model_state_dict",
    "model",
    "module",
    "ema_encoder",
    "target_encoder",
)
_NUM_NUMPY_DTYPES = ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool")


class _Inert:
    """Takes the place of an allowed object: accepts what it is given and drops it."""

    def __new__(cls, *_: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


ALLOWED_NAMES = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(
        f"numpy.{core}.multiarray.{name}"
        for core in ("core", "_core")  # the same module before and since numpy 2
        for name in ("scalar", "_reconstruct")
    ),
    "numpy.ndarray",
    "numpy.dtype",
    *(f"numpy.dtypes.{name}DType" for name in _NUM_NUMPY_DTYPES),
    "_codecs.encode",  # how pickle protocol 2 writes the bytes of a number
    "builtins.getattr",  # how it writes the functions that a HistoryBuffer holds
)


def read_state(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a weights file by name; float16 and bfloat16 are widened to float32.

    Raises:
        CheckpointError: The file is missing, damaged, no weights file, or wants to run code.
    """
    path = place_weights(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file; give backbone.weights an existing .safetensors or "
            ".pth file, or make one with `python cli.py pretrain`"
        )
    state = _read_pickle(path) if _is_pickle(path) else _read_safetensors(path)
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def _is_pickle(path: Path) -> bool:
    """A zip archive (torch >= 1.6), or a bare pickle (before): by content, names can lie."""
    with path.open("rb") as file:
        start = file.read(2)
    return zipfile.is_zipfile(path) or start[:1] == b"\x80" or start == b"PK"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a sound safetensors file ({error}); replace it by a sound copy"
        ) from None


def _read_pickle(path: Path) -> dict[str, Tensor]:
    allowed: list[Any] = [(_Inert, name) for name in ALLOWED_NAMES]
    try:
        with _allowing_only(allowed):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(_tell_refusal(path, str(error))) from None
    except (RuntimeError, EOFError, ValueError, KeyError, IndexError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not a sound checkpoint ({str(error).splitlines()[0]}); "
            "replace it by a sound copy"
        ) from None
    return _find_state(path, content)


@contextmanager
def _allowing_only(names: list[Any]) -> Iterator[None]:
    """What this process has allowed besides, as mmaction2's tools do, counts for nothing."""
    others = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with torch.serialization.safe_globals(names):
            yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(others)


def _tell_refusal(path: Path, message: str) -> str:
    named = re.search(r"GLOBAL ([\w.]+)", message)
    culprit = f"it names {named.group(1)}" if named else "it is no plain checkpoint"
    return (
        f"{path}: refused, {culprit}, and only tensors and the training log of OpenMMLab are read; "
        "nothing of the file was run. Take the weights from a source that you trust and save them "
        "as safetensors"
    )


def _find_state(path: Path, content: Any) -> dict[str, Tensor]:
    """The dict of tensors in what was unpickled."""
    if isinstance(content, Mapping):
        for name in _STATE_NAMES:
            if isinstance(content.get(name), Mapping):
                content = content[name]
                break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(
            f"{path}: holds a {type(content).__name__} without weights, expected tensors by name, "
            f"possibly below one of {', '.join(_STATE_NAMES)}"
        )
    others = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(
            f"{path}: {len(others)} entries of its weights are no tensors "
            f"({', '.join(others[:4])}); expected tensors by name"
        )
    return {str(name): value.detach() for name, value in content.items()}


# ---- names in a file -> names in our recognizers ------------------------------------------------
#
# Every map is known by name, applied to all keys, and followed by a strict load: what no map
# explains is an error. None: a tensor that extraction has no use for.

KeyMap = Callable[[str], str | None]
KeyMapName = Literal["auto", "mmaction2", "video_swin", "bare_backbone", "gst", "dsts"]

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


def _from_gst(key: str) -> str:
    """GST's authors: a `base_model`, and a classifier behind its dropout (or in its place)."""
    key = _WRAPPERS.sub("", key)
    key = re.sub(r"^(?:new_fc|base_model\.fc)\.", "cls_head.fc_cls.", key)
    return re.sub(r"^base_model\.", "backbone.", key)


def _from_dsts(key: str) -> str | None:
    """A fine-tuned DSTS model: the backbone (and neck) under their names; the rest is its head."""
    key = _WRAPPERS.sub("", key)
    return key if key.startswith(("backbone.", "neck.")) else None


KEY_MAPS: dict[str, KeyMap] = {
    "mmaction2": _from_mmaction2,
    "video_swin": _from_video_swin,
    "bare_backbone": _from_bare_backbone,
    "gst": _from_gst,
    "dsts": _from_dsts,
}
# `auto` never drops a tensor that no rule of the recognizer leaves out: "dsts" is by name only.
# Of maps that fit alike the first counts.
AUTOMATIC = ("mmaction2", "bare_backbone", "video_swin", "gst")


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


# ---- recognizers filled and written -------------------------------------------------------------

CLASSIFIER_WEIGHT = "cls_head.fc_cls.weight"
CLASSIFIER_BIAS = "cls_head.fc_cls.bias"
# Counts batches of the training; nothing reads it in evaluation, and old files lack it.
_OPTIONAL_SUFFIX = ".num_batches_tracked"
_NUM_SHOWN = 4


@dataclass(frozen=True)
class LoadReport:
    """What became of the keys of a weights file.

    Attributes:
        key_map: The map that renamed them.
        matched: Names of the recognizer that were filled.
        missing: Names of the recognizer that the file lacks.
        unexpected: Keys of the file that no rule explains.
        misshapen: Names with both shapes, where they differ.
        left_out: Keys of the file that the recognizer is built without, such as the classifier.
    """

    key_map: str
    matched: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    misshapen: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def num_problems(self) -> int:
        """Keys that keep the file from being loaded."""
        return len(self.missing) + len(self.unexpected) + len(self.misshapen)

    def summarize(self) -> str:
        """Such as "122 keys loaded by the key map mmaction2, 4 of the file left out"."""
        left_out = f", {len(self.left_out)} of the file left out" if self.left_out else ""
        return f"{len(self.matched)} keys loaded by the key map {self.key_map}{left_out}"


@dataclass(frozen=True)
class WeightsChoice:
    """Which weights a model gets, and how they are checked."""

    source: str | Path
    sha256: str | None = None
    key_map: KeyMapName = "auto"
    seed: int = 0

    @property
    def is_random(self) -> bool:
        """Whether there is no file."""
        return str(self.source) == RANDOM

    def read(self) -> dict[str, Tensor]:
        """The tensors of the file under its own names.

        Raises:
            CheckpointError: The file is missing, refused, or another one than expected.
        """
        return read_state(locate_weights(self.source, sha256=self.sha256).path)

    def fill(
        self, recognizer: nn.Module, *, leave_out: tuple[str, ...] = ()
    ) -> tuple[dict[str, Any], LoadReport | None]:
        """Load the weights; where they are from, for a description, and the report of keys.

        Raises:
            CheckpointError: They are missing, refused, others than expected, or do not fit.
        """
        if self.is_random:
            return {"random_seed": self.seed}, None
        file = locate_weights(self.source, sha256=self.sha256)
        report = load_weights(recognizer, file.path, key_map=self.key_map, leave_out=leave_out)
        return {"sha256": file.sha256}, report


def save_weights(
    recognizer: nn.Module,
    path: str | Path,
    *,
    half: bool = False,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the recognizer's parameters and buffers to `path`, atomically; same values, same bytes.

    A note of the digest is written beside it; an old one is removed first.

    Args:
        half: Store kernels (two dimensions or more) as float16; vectors stay float32.
        extra: Tensors beside or in place of the recognizer's own, such as another classifier.
    """
    state = {
        name: (value.half() if half and value.ndim > 1 else value).detach().cpu().contiguous()
        for name, value in (recognizer.state_dict() | dict(extra or {})).items()
    }
    path = Path(path)
    note_of(path).unlink(missing_ok=True)
    write_atomic(path, safetensors.torch.save(state))
    write_note(path)


def load_weights(
    recognizer: nn.Module,
    path: str | Path,
    *,
    key_map: KeyMapName = "auto",
    leave_out: tuple[str, ...] = (),
) -> LoadReport:
    """Fill `recognizer` from `path`; every key must match in name and shape.

    Args:
        key_map: How the file's keys are renamed; "auto" takes the map that leaves fewest problems.
        leave_out: Beginnings of names that the recognizer is built without.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape, or a value is not finite.
    """
    state = read_state(path)
    expected = recognizer.state_dict()
    names = AUTOMATIC if key_map == "auto" else (key_map,)
    try:
        matchings = [_match(state, expected, name, leave_out) for name in names]
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}; choose another backbone.key_map") from None
    report, renamed = min(matchings, key=lambda matching: matching[0].num_problems)
    not_finite = [name for name, value in renamed.items() if not torch.isfinite(value).all()]
    problems = [
        _list("missing", report.missing),
        _list("unexpected", report.unexpected),
        _list("of another shape", report.misshapen),
        _list("not finite", sorted(not_finite)),
    ]
    if any(problems):
        raise CheckpointError(
            f"{path}: does not fit the recognizer: {'; '.join(filter(None, problems))} "
            f"({len(report.matched)} of {len(expected)} match by the key map {report.key_map}). "
            "Choose the weights that belong to backbone.name, or another backbone.key_map"
        )
    recognizer.load_state_dict({**expected, **renamed}, strict=True)
    return report


def _match(
    state: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    key_map: str,
    leave_out: tuple[str, ...],
) -> tuple[LoadReport, dict[str, Tensor]]:
    """The keys of a file against those of a recognizer, by one map."""
    renamed: dict[str, Tensor] = {}
    left_out: list[str] = []
    for key, name in rename_keys(state, key_map).items():
        if name is None or (name.startswith(leave_out) and name not in expected):
            left_out.append(key)
        else:
            renamed[name] = state[key]
    both = renamed.keys() & expected.keys()
    wrong = sorted(name for name in both if renamed[name].shape != expected[name].shape)
    missing = (n for n in expected.keys() - both if not n.endswith(_OPTIONAL_SUFFIX))
    report = LoadReport(
        key_map,
        matched=tuple(sorted(both - set(wrong))),
        missing=tuple(sorted(missing)),
        unexpected=tuple(sorted(renamed.keys() - both)),
        left_out=tuple(sorted(left_out)),
    )
    shapes = [
        f"{name} {tuple(renamed[name].shape)} instead of {tuple(expected[name].shape)}"
        for name in wrong
    ]
    return replace(report, misshapen=tuple(shapes)), renamed


def load_classifier(path: str | Path) -> tuple[Tensor, Tensor]:
    """The recognizer's own linear classifier: weight [K, C] and bias [K], float32.

    Raises:
        CheckpointError: The file is unreadable or holds no classifier.
    """
    state = read_state(path)
    missing = [name for name in (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS) if name not in state]
    if missing:
        raise CheckpointError(f"{path}: holds no classifier: {_list('missing', missing)}")
    return state[CLASSIFIER_WEIGHT], state[CLASSIFIER_BIAS]


def find_classifier(
    path: str | Path | None, num_channels: int, num_classes: int
) -> tuple[Tensor, Tensor] | None:
    """The recognizer's own classifier if it has one for that many classes, else None.

    Args:
        path: A file or an address; "random", folders of the transformers library and None have
            none.
        num_channels, num_classes: C of the maps and K of the data set.

    Raises:
        CheckpointError: The file is missing or unreadable, or cannot be fetched.
    """
    if path is None or str(path) == RANDOM or place_weights(path).is_dir():
        return None
    state = read_state(locate_weights(path).path)
    state |= {_from_gst(key): value for key, value in state.items()}
    weight = state.get(CLASSIFIER_WEIGHT)
    bias = state.get(CLASSIFIER_BIAS)
    if weight is None or bias is None or tuple(weight.shape) != (num_classes, num_channels):
        return None
    return weight, bias


def _list(title: str, items: tuple[str, ...] | list[str]) -> str:
    """'2 missing: a, b', at most a few by name; empty for no items."""
    if not items:
        return ""
    rest = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return f"{len(items)} {title}: {', '.join(items[:_NUM_SHOWN])}{rest}"
