"""An mmaction2 checkpoint with a DSTS head as our weights and head, or the other way round."""

from __future__ import annotations

from pathlib import Path

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import hold_alone
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.serve.mmaction_checkpoints import join_checkpoint, split_checkpoint
from stages import places
from stages.inputs import read_features_record


def run(settings: Settings, source: Path, out: Path, weights: Path | None, store: bool) -> None:
    """Write `out`: a checkpoint if its name ends in .pth, else a folder of weights and a head.

    Raises:
        CheckpointError: A file is missing, unsound or holds no DSTS head.
        SettingsError: The store of this run is not one of the checkpoint's backbone.
    """
    if out.suffix == ".pth":
        head = source if source.is_dir() else None
        count = join_checkpoint(out, head=head, weights=weights if head else source)
        console.print(
            f"{out}: {count} tensors; load_from of a config, or the file of tools/test.py"
        )
        return
    found = split_checkpoint(source, out)
    if not store:
        console.print(
            f"{found.weights} and {found.head}; cache its maps with `python cli.py extract --set "
            f"backbone.weights={found.weights}`, then run this again with --store to evaluate"
        )
        return
    record = read_features_record()
    used = record["made_of"]["backbone"]["weights"].get("sha256")
    if used != found.sha256:
        raise SettingsError(
            f"{places.FEATURES}: its maps are of weights {used}, the checkpoint's are "
            f"{found.sha256}; extract with --set backbone.weights={found.weights} first"
        )
    place = places.HEADS / "dsts"
    with hold_alone(places.HEADS, "convert-checkpoint"):
        split_checkpoint(source, out, head_folder=place, store=record["fingerprint"])
    console.print(f"{place}: the head of {source}; go on with `python cli.py evaluate`")
