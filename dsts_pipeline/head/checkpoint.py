"""Heads on disk: `head.safetensors` for the weights, `head.json` for how to build the head.

head.json bears the SHA-256 of the weights and a digest of itself. Both are compared whenever a head
is loaded, by whatever command: a changed bit is an error, never another accuracy. Nothing that is
loaded can run code, and loading is strict: every name and shape must fit.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from dsts_pipeline.base.errors import CheckpointError, DataError
from dsts_pipeline.base.files import is_signed, read_json, sign, write_atomic, write_json
from dsts_pipeline.head.dsts import DSTSHead
from dsts_pipeline.head.probes import AttentiveProbe, ConvBlockHead, GSTHead, LinearProbe
from dsts_pipeline.head.tqn import TQNHead

FORMAT = 1
_AGAIN = "run `python cli.py train-head` again, or get a sound copy"
HEADS: tuple[type[nn.Module], ...] = (
    DSTSHead,
    LinearProbe,
    AttentiveProbe,
    ConvBlockHead,
    GSTHead,
    TQNHead,
)


def save_head(directory: str | Path, head: nn.Module, extra: dict[str, Any] | None = None) -> None:
    """Write `head` into `directory`; head.json, written last, marks it complete.

    Args:
        head: One of `HEADS`.
        extra: JSON values kept beside the constructor arguments (provenance, class names).
    """
    from safetensors.torch import save  # not at the top: the head itself takes torch alone

    directory = Path(directory)
    (directory / "head.json").unlink(missing_ok=True)
    tensors = {name: tensor.contiguous().cpu() for name, tensor in head.state_dict().items()}
    content = save(tensors)
    write_atomic(directory / "head.safetensors", content)
    record = {"format": FORMAT, "kind": type(head).__name__, "arguments": head.config}
    record |= {"extra": extra or {}, "weights_sha256": hashlib.sha256(content).hexdigest()}
    write_json(directory / "head.json", sign(record))


def load_head(directory: str | Path) -> tuple[nn.Module, dict[str, Any]]:
    """Rebuild a head that `save_head` wrote, in evaluation mode, with its `extra`.

    Raises:
        CheckpointError: Files are missing, damaged, or do not fit each other.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    directory = Path(directory)
    record = _read_record(directory)
    kinds: dict[str, Callable[..., nn.Module]] = {kind.__name__: kind for kind in HEADS}
    # An option that a file of an earlier release does not name had the paper's value.
    kinds["DSTSHead"] = DSTSHead.paper
    is_earlier_probe = "num_heads" in record.get("arguments", {})
    if is_earlier_probe:
        kinds["AttentiveProbe"] = _earlier_probe
    try:
        head = kinds[record["kind"]](**record["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{directory}/head.json describes no head that this version can build ({error}); "
            f"{_AGAIN}"
        ) from None
    try:
        content = (directory / "head.safetensors").read_bytes()
        _compare_weights(directory, content, record.get("weights_sha256"))
        tensors = load(content)
        if is_earlier_probe:
            inner = [name for name in tensors if not name.startswith("classifier.")]
            tensors |= {f"pooler.{name}": tensors.pop(name) for name in inner}
        head.load_state_dict(tensors, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{directory}/head.safetensors does not fit head.json: {reason}; {_AGAIN}"
        ) from None
    return head.eval(), record.get("extra", {})


def _earlier_probe(
    in_channels: int, num_classes: int, num_heads: int, mlp_ratio: float
) -> AttentiveProbe:
    """The attentive probe of release 0.1, with a projection after its heads."""
    return AttentiveProbe(
        in_channels,
        num_classes,
        readout_heads=num_heads,
        output_projection=True,
        layer_norm_eps=1e-5,
    )


def _read_record(directory: str | Path) -> dict[str, Any]:
    """The content of head.json, its own digest compared; the weights are not looked at.

    Raises:
        CheckpointError: It is missing, damaged or of another format.
    """
    directory = Path(directory)
    try:
        record = read_json(directory / "head.json")
    except DataError as error:
        raise CheckpointError(
            f"{directory} holds no finished head ({error}); run `python cli.py train-head`"
        ) from None
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise CheckpointError(f"{directory}/head.json is not a head of format {FORMAT}; {_AGAIN}")
    if not {"digest", "weights_sha256"} & record.keys():
        _warn_of_old_heads()
    elif not is_signed(record) or "weights_sha256" not in record:
        raise CheckpointError(
            f"{directory}/head.json: changed after it was written, its digest does not hold; "
            f"{_AGAIN}"
        )
    return record


def _warn_of_old_heads() -> None:
    """Without the folder: the same words are shown once, however many heads there are."""
    warnings.warn(
        "a head of an earlier release: its head.json holds no digest, so damage to its weights "
        "would not be noticed; `python cli.py train-head` (or `ablate`, in an emptied folder) "
        "writes heads that have one",
        stacklevel=1,
    )


def _compare_weights(directory: Path, content: bytes, expected: str | None) -> None:
    found = hashlib.sha256(content).hexdigest()
    if expected is not None and found != expected:
        raise CheckpointError(
            f"{directory}/head.safetensors: its sha256 is {found[:12]}..., head.json expects "
            f"{str(expected)[:12]}...: damaged, or of another head; {_AGAIN}"
        )
