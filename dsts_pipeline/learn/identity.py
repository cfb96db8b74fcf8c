"""What decides a training, as one short name, so that no training resumes another one's state.

Enters: everything that decides the final weights. Leaves: 16 hexadecimal digits. The initial
values stand for how the head was built, the sources' digest for what is done with them.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dsts_pipeline.base.files import sha256_json

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = "feed", "head", "learn"


def digest_weights(head: nn.Module) -> str:
    """SHA-256 over all names, types and values of `head`."""
    digest = hashlib.sha256()
    for name, value in sorted(head.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def digest_sources(folders: tuple[str, ...] = SOURCES) -> str:
    """SHA-256 over the package's code in `folders`; by default what training on maps runs.

    Taken once by a process, so that a file that changes while it runs doesn't rename what it made.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def training_key(head: nn.Module, decided_by: dict[str, Any]) -> str:
    """Name of the training that starts at `head` as it is.

    Args:
        decided_by: JSON values: options, data, number of processes, kind of device.
    """
    parts = {
        "head": type(head).__name__,
        "config": getattr(head, "config", None),
        "weights": digest_weights(head),
        "sources": digest_sources(),
        "torch": torch.__version__,
    }
    return sha256_json(parts | decided_by)[:16]
