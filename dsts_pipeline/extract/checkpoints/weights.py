"""Weights of recognizers: safetensors written, and files of several makes loaded strictly.

Enters: a weights file and a recognizer. Leaves: a recognizer that holds exactly the file's values,
with a report of every key, or a `CheckpointError` that names what does not fit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.extract.checkpoints.checkpoint_files import read_state
from dsts_pipeline.extract.checkpoints.downloads import locate_weights, note_of, write_note
from dsts_pipeline.extract.checkpoints.key_maps import AUTOMATIC, KeyMapName, rename_keys

RANDOM = "random"
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


def save_weights(
    recognizer: nn.Module,
    path: str | Path,
    *,
    half: bool = False,
    extra: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the recognizer's parameters and buffers to `path`, atomically; same values, same bytes.

    A note of the digest is written beside it (see `downloads`); an old one is removed first.

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


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file; float16 and bfloat16 arrays are widened to float32.

    Raises:
        CheckpointError: The file is missing, damaged or wants to run code.
    """
    return read_state(path)


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
    state, expected = read_weights(path), recognizer.state_dict()
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
    renamed, left_out = {}, []
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
    state = read_weights(path)
    missing = [name for name in (CLASSIFIER_WEIGHT, CLASSIFIER_BIAS) if name not in state]
    if missing:
        raise CheckpointError(f"{path}: holds no classifier: {_list('missing', missing)}")
    return state[CLASSIFIER_WEIGHT], state[CLASSIFIER_BIAS]


def find_classifier(
    path: str | Path, num_channels: int, num_classes: int
) -> tuple[Tensor, Tensor] | None:
    """The recognizer's own classifier if it has one for that many classes, else None.

    Args:
        path: A file or an address; "random" and folders of the transformers library have none.
        num_channels, num_classes: C of the maps and K of the data set.

    Raises:
        CheckpointError: The file is missing or unreadable, or cannot be fetched.
    """
    if str(path) == RANDOM or Path(path).is_dir():
        return None
    state = read_weights(locate_weights(path).path)
    weight, bias = state.get(CLASSIFIER_WEIGHT), state.get(CLASSIFIER_BIAS)
    if weight is None or bias is None or tuple(weight.shape) != (num_classes, num_channels):
        return None
    return weight, bias


def _list(title: str, items: tuple[str, ...] | list[str]) -> str:
    """'2 missing: a, b', at most a few by name; empty for no items."""
    if not items:
        return ""
    rest = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return f"{len(items)} {title}: {', '.join(items[:_NUM_SHOWN])}{rest}"
