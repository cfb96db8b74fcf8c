"""Heads on disk: `head.safetensors` for the weights, `head.json` for how to build the head.

Nothing that is loaded can run code, and loading is strict: every name and shape must fit.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from dsts_pipeline.base.errors import CheckpointError, DataError
from dsts_pipeline.base.files import read_json, write_atomic, write_json
from dsts_pipeline.head.attentive import AttentiveProbe
from dsts_pipeline.head.baselines import ConvBlockHead, LinearProbe
from dsts_pipeline.head.dsts import DSTSHead

FORMAT = 1
HEADS: tuple[type[nn.Module], ...] = (DSTSHead, LinearProbe, AttentiveProbe, ConvBlockHead)


def save_head(directory: str | Path, head: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write `head` into `directory`; head.json, written last, marks it complete.

    Args:
        head: One of `HEADS`.
        extra: JSON values kept beside the constructor arguments (provenance, class names).
    """
    directory = Path(directory)
    (directory / "head.json").unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}
    write_atomic(directory / "head.safetensors", save(tensors))
    record = {"format": FORMAT, "kind": type(head).__name__, "arguments": head.config}
    write_json(directory / "head.json", record | {"extra": extra or {}})


def load_head(directory: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a head that `save_head` wrote, in evaluation mode, with its `extra`.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
    """
    directory = Path(directory)
    record = _read_record(directory)
    kinds = {kind.__name__: kind for kind in HEADS}
    try:
        head = kinds[record["kind"]](**record["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory}/head.json describes no head that this version can build ({error}); "
            "run `python cli.py train-head` again"
        ) from None
    try:
        tensors = load((directory / "head.safetensors").read_bytes())
        head.load_state_dict(tensors, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}/head.safetensors does not fit head.json: {reason}; "
            "run `python cli.py train-head` again"
        ) from None
    return head.eval(), record.get("extra", {})


def _read_record(directory: Path) -> dict[str, Any]:
    try:
        record = read_json(directory / "head.json")
    except DataError as error:
        raise CheckpointError(
            f"{directory} holds no finished head ({error}); run `python cli.py train-head`"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(
            f"{directory}/head.json is not a head of format {FORMAT}; "
            "run `python cli.py train-head` again"
        )
    return record
