"""Render the embedded data set if it is asked for, check every video, write the clip index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dsts_pipeline.base.errors import SettingsError, UserError
from dsts_pipeline.base.files import read_json, write_json
from dsts_pipeline.base.groups import number_groups
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import DatasetSettings, Settings
from dsts_pipeline.base.training_clips import find_shortage, fit_to_clips
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
        SettingsError: dataset.flip_pairs do not fit the classes; the embedded data set would be
            rendered into a folder of other things.
    """
    dataset = settings.dataset
    chosen = settings.backbone
    if change := _tell_change(dataset):
        console.print(change, soft_wrap=True, markup=False, highlight=False)
    if dataset.render is not None:
        _require_folder_of_renderer(dataset)
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


def _tell_change(dataset: DatasetSettings) -> str:
    """A line where the last run had another data set: choices of `-S` last for one command."""
    try:
        last = read_json(common.CLIP_INDEX)
        name, root = str(last["dataset"]), str(last["root"])
    except (OSError, UserError, ValueError, KeyError, TypeError):
        return ""
    if (name, Path(root).resolve()) == (dataset.name, Path(dataset.root).resolve()):
        return ""
    rendered = ", to be rendered" if dataset.render is not None else ""
    return (
        f"data set: {dataset.name} in {dataset.root}{rendered}; the last run had {name} in {root}: "
        "`python cli.py use dataset=... dataset.root=...` keeps a choice for all later runs"
    )


def _require_folder_of_renderer(dataset: DatasetSettings) -> None:
    """Refuse to render where a user's own videos may be meant.

    Raises:
        SettingsError: It is neither a new folder of the data set's name nor one rendered before.
    """
    assert dataset.render is not None
    root = Path(dataset.root)
    renderer = dataset.render.renderer
    if (root / f"{renderer}.json").exists():
        return
    if root.name.startswith(renderer) and not root.exists():
        return
    count = dataset.render.num_train + dataset.render.num_test
    raise SettingsError(
        f"dataset.root is {root}, where dataset.render would write about {count:,} clips; it does "
        f"so only in a new folder whose name begins with {renderer}, or where it did before. For "
        "videos of your own give dataset=folder (or csv, mmaction), too, which sets dataset.render "
        "to null"
    )


def _find_shortage(settings: Settings, index: ClipIndex) -> str:
    """What `train-head` will refuse, or do otherwise than it is set, told before the extraction.

    On the terminal alone: settings of a training must not decide what this stage leaves behind, or
    every experiment with them would look at the videos again.
    """
    train = index.of_split("train")
    options = settings.train
    labels = np.array([clip.label for clip in train], dtype=np.int64)
    ids = np.array([clip.id for clip in train], dtype=np.str_)
    how: dict[str, Any] = {
        "seed": settings.seed if options.data_seed is None else options.data_seed,
        "paired": settings.udl.enabled and settings.head.has_upstream,
        "world_size": options.devices,
        "early_stopping_epochs": options.early_stopping_epochs,
        "heldout_by": options.heldout_by,
        "origins": number_groups([clip.id for clip in train], [clip.group for clip in train]),
    }
    size, fraction, told = fit_to_clips(
        labels,
        ids,
        batch_size=options.batch_size,
        heldout_fraction=options.heldout_fraction,
        **how,
    )
    fitted: dict[str, Any] = {"batch_size": size, "heldout_fraction": fraction}
    if shortage := find_shortage(labels, ids, **fitted, **how):
        return f"warning: train-head will refuse these clips: {shortage}"
    return f"train-head: {told}" if told else ""
