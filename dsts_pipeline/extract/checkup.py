"""Checks of a machine before extraction: devices, and whether the weights fit the backbone."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Literal

_NUM_DIGITS = 12


def check_weights(
    name: str, weights: str | Path, *, num_frames: int | None, size_px: int | None
) -> tuple[str, tuple[int, int, int, int]]:
    """Load the weights into the backbone they are meant for, every key and shape compared.

    Returns:
        What was found, and the shape (C, T', H', W') of one clip's map.

    Raises:
        SettingsError: No backbone has this name.
        CheckpointError: The file is missing, damaged or belongs to another backbone.
    """
    from dsts_pipeline.extract.models.backbones import build_backbone

    backbone = build_backbone(name, weights=weights, num_frames=num_frames, size_px=size_px)
    shape = " x ".join(map(str, backbone.map_shape))
    digest = backbone.describe()["weights"].get("sha256")
    origin = f"(sha256 {digest[:_NUM_DIGITS]}...) fits" if digest else "weights, never trained, for"
    report = backbone.load_report
    keys = f", {report.summarize()}" if report else ""
    return f"{weights} {origin} {name}: maps of {shape}{keys}", backbone.map_shape


def check_devices(wanted: Literal["auto", "cpu", "cuda"] = "auto") -> str:
    """Processors and accelerators that torch sees, and the one that extraction would use.

    Raises:
        UserError: "cuda" is wanted and there is none.
    """
    import torch

    from dsts_pipeline.extract.devices import choose_device

    chosen = choose_device(wanted)
    found = [f"{platform.machine()}, {torch.get_num_threads()} threads"]
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(number)
        found.append(f"{properties.name} with {properties.total_memory / 1e9:.0f} GB")
    return f"{'; '.join(found)}; extraction runs on {chosen}"
