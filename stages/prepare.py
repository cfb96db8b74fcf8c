"""Render the embedded data set if it is asked for, check every video, write the clip index."""

from __future__ import annotations

import numpy as np

from dsts_pipeline.base.errors import UserError
from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.groups import number_groups
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.training_clips import find_shortage
from dsts_pipeline.clips.annotation import printable
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.index import ClipIndex
from dsts_pipeline.clips.prepare import RefusedClipsError, prepare_clips
from dsts_pipeline.stick import render_embedded
from stages import common


def run(settings: Settings) -> None:
    """Write outputs/clips.json, and what is worth a look to outputs/clip_check.json.

    The latter also where the data set is refused, with the reason.

    Raises:
        DataError: The data root is missing, an annotation is wrong, too many videos are unusable.
        SettingsError: dataset.flip_pairs do not fit the classes.
    """
    dataset = settings.dataset
    chosen = settings.backbone
    if dataset.render is not None:
        render_embedded(dataset.root, dataset.render)
    findings = None
    try:
        index, findings = prepare_clips(
            dataset,
            cache_path=common.PROBE_CACHE,
            decoders=[d for d in (chosen.decoder, chosen.decoder_fallback) if d != "none"],
        )
        FlipRule(dataset.flip, dataset.flip_pairs).check(index.class_names)
    except UserError as error:
        if isinstance(error, RefusedClipsError):
            findings = error.findings
            if findings.reasons:
                count = f"{len(findings.reasons):,}"
                console.print(
                    f"{common.CLIP_CHECK}: all {count} unusable clips with reasons", soft_wrap=True
                )
        told = {} if findings is None else findings.as_json()
        write_json(common.CLIP_CHECK, told | {"refused": printable(str(error))})
        raise
    index.save(common.CLIP_INDEX)
    write_json(common.CLIP_CHECK, findings.as_json())
    counts = ", ".join(f"{count:,} {split}" for split, count in index.count_splits().items())
    console.print(
        f"{common.CLIP_INDEX}: {counts} clips of {len(index.class_names)} classes, "
        f"{len(index.problems):,} unusable",
        soft_wrap=True,
    )
    for line in findings.lines():
        console.print(line, soft_wrap=True)
    if table := findings.table():
        console.print(table)
    if shortage := _find_shortage(settings, index):
        console.print(shortage, soft_wrap=True)


def _find_shortage(settings: Settings, index: ClipIndex) -> str:
    """What `train-head` will refuse after the extraction, told before it.

    On the terminal alone: settings of a training must not decide what this stage leaves behind, or
    every experiment with them would look at the videos again.
    """
    train = index.of_split("train")
    options = settings.train
    shortage = find_shortage(
        np.array([clip.label for clip in train], dtype=np.int64),
        np.array([clip.id for clip in train], dtype=np.str_),
        batch_size=options.batch_size,
        heldout_fraction=options.heldout_fraction,
        seed=settings.seed if options.data_seed is None else options.data_seed,
        paired=settings.udl.enabled,
        world_size=options.devices,
        early_stopping_epochs=options.early_stopping_epochs,
        heldout_by=options.heldout_by,
        origins=number_groups([clip.id for clip in train], [clip.group for clip in train]),
    )
    return f"warning: train-head will refuse these clips: {shortage}" if shortage else ""
