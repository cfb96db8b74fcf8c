"""Send an exported bundle to the Hugging Face hub, after a check of all that is in it."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.files import format_bytes
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.serve.hub import copy_files, list_files, push_files


def run(
    settings: Settings,
    *,
    bundle: Path,
    repository: str,
    private: bool = False,
    revision: str | None = None,
    license: str | None = None,
    weights: str | None = None,
    out: Path | None = None,
    dry_run: bool = False,
) -> None:
    """List the files; unless that is all, send them, or write them into `out` in their place.

    Raises:
        BundleError: The bundle is damaged, or of no use elsewhere.
        UserError: The hub can't be reached or refuses, or its package is not installed.
    """
    files = list_files(bundle, repository, license=license, weights=weights)
    for file in files:
        console.print(f"{file.num_bytes:>13,} {file.name}", soft_wrap=True, markup=False)
    size = format_bytes(sum(file.num_bytes for file in files))
    told = f"{len(files)} files, {size}"
    if dry_run:
        console.print(f"{told}; nothing is sent")
    elif out is not None:
        copy_files(files, out)
        console.print(f"{told} in {out}; nothing is sent", soft_wrap=True)
    else:
        address = push_files(files, repository, private=private, revision=revision)
        console.print(f"{told}: {address}", soft_wrap=True, markup=False)
