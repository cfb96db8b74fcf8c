"""Put a trained head, its backbone, input and labels into one folder."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.serve import save_bundle
from stages.bundles import bundle_of_run


def write(
    settings: Settings, out: Path, *, head: str = "dsts", with_backbone: bool | None = None
) -> None:
    """Write the folder `out`, which appears when it is complete.

    Raises:
        BundleError: The parts do not belong together, or `out` exists.
        CheckpointError, DataError, StoreError: The run has no finished head or features.
    """
    bundle = bundle_of_run(settings, head)
    save_bundle(out, bundle, with_backbone=with_backbone)
    size = format_bytes(sum(path.stat().st_size for path in out.iterdir()))
    held = any(path.name.startswith("backbone.") for path in out.iterdir())
    weights = "in it" if held else f"stay at {bundle.source.weights}"
    console.print(
        f"{out}: {bundle.title}, {len(bundle.class_names)} classes, {size}; the backbone's weights "
        f"{weights}",
        soft_wrap=True,
        highlight=False,
    )
