"""Which device a process of an extraction computes on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

import torch

from dsts_pipeline.base.errors import UserError


def choose_device(
    wanted: Literal["auto", "cpu", "cuda"], environment: Mapping[str, str] = os.environ
) -> torch.device:
    """The CUDA device of this process's number on its host (LOCAL_RANK, as torchrun sets it).

    Several processes share a device where there are fewer devices than processes.

    Args:
        wanted: "auto" takes the CPU where there is no CUDA device.

    Raises:
        UserError: "cuda" is wanted and there is none.
    """
    num_devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if wanted == "cpu" or (wanted == "auto" and not num_devices):
        return torch.device("cpu")
    if not num_devices:
        raise UserError(
            "backbone.device is cuda, but torch sees no CUDA device; set it to auto or cpu, or "
            "install a build of torch for this machine's driver"
        )
    return torch.device("cuda", int(environment.get("LOCAL_RANK", "0")) % num_devices)
