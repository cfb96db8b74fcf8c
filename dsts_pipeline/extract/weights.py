"""Weights of recognizers as safetensors files, loaded strictly.

Enters: a file whose keys are an mmaction2 recognizer's state_dict names (`backbone.*`,
`cls_head.*`). Leaves: a recognizer that holds exactly these values, or a `CheckpointError`.
safetensors hold arrays only: nothing in them can run.
Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.base.files import write_atomic

CLASSIFIER_WEIGHT = "cls_head.fc_cls.weight"
CLASSIFIER_BIAS = "cls_head.fc_cls.bias"
_NUM_SHOWN = 4


def save_weights(recognizer: nn.Module, path: str | Path, *, half: bool = False) -> None:
    """Write the recognizer's parameters and buffers to `path`, atomically; same values, same bytes.

    Args:
        half: Store kernels (two dimensions or more) as float16; vectors stay float32.
    """
    state = {
        name: (value.half() if half and value.ndim > 1 else value).detach().cpu().contiguous()
        for name, value in recognizer.state_dict().items()
    }
    write_atomic(path, safetensors.torch.save(state))


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a weights file; float16 and bfloat16 arrays are widened to float32.

    Raises:
        CheckpointError: The file is missing or is not safetensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such weights file; give backbone.weights an existing safetensors file "
            "or make one with `python cli.py pretrain`"
        )
    try:
        state = safetensors.torch.load(path.read_bytes())
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a sound safetensors file ({error}); replace it by a sound copy"
        ) from None
    return {name: v.float() if v.is_floating_point() else v for name, v in state.items()}


def load_weights(recognizer: nn.Module, path: str | Path) -> None:
    """Fill `recognizer` from `path`; every key must match in name and shape.

    Raises:
        CheckpointError: Keys are missing, unexpected or of another shape, or a value is not finite.
    """
    state = read_weights(path)
    expected = {name: tuple(value.shape) for name, value in recognizer.state_dict().items()}
    problems = [
        _list("missing", sorted(expected.keys() - state.keys())),
        _list("unexpected", sorted(state.keys() - expected.keys())),
        _list(
            "of another shape",
            [
                f"{name} {tuple(state[name].shape)} instead of {expected[name]}"
                for name in sorted(expected.keys() & state.keys())
                if tuple(state[name].shape) != expected[name]
            ],
        ),
        _list("not finite", sorted(n for n, v in state.items() if not torch.isfinite(v).all())),
    ]
    if any(problems):
        raise CheckpointError(
            f"{path}: does not fit the recognizer: {'; '.join(filter(None, problems))}. "
            "Choose the weights that belong to backbone.name"
        )
    recognizer.load_state_dict(state, strict=True)


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
        num_channels, num_classes: C of the maps and K of the data set.

    Raises:
        CheckpointError: The file is unreadable.
    """
    state = read_weights(path)
    weight, bias = state.get(CLASSIFIER_WEIGHT), state.get(CLASSIFIER_BIAS)
    if weight is None or bias is None or tuple(weight.shape) != (num_classes, num_channels):
        return None
    return weight, bias


def _list(title: str, items: list[str]) -> str:
    """'2 missing: a, b', at most a few by name; empty for no items."""
    if not items:
        return ""
    rest = f" and {len(items) - _NUM_SHOWN} more" if len(items) > _NUM_SHOWN else ""
    return f"{len(items)} {title}: {', '.join(items[:_NUM_SHOWN])}{rest}"
