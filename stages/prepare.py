"""Render the embedded data set if it is asked for, check every video, write the clip index."""

from __future__ import annotations

from dsts_pipeline.base.files import write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.embedded import render_embedded
from dsts_pipeline.clips.flips import FlipRule
from dsts_pipeline.clips.prepare import HoldOut, prepare_clips
from stages import places

_FILES = ("video_folder", "train_file", "test_file", "class_file")


def run(settings: Settings) -> None:
    """Write outputs/clips.json, and what is worth a look to outputs/clip_check.json.

    Raises:
        DataError: The data root is missing, an annotation is wrong, too many videos are unusable.
        SettingsError: dataset.flip_pairs do not fit the classes.
    """
    dataset, chosen, render = settings.dataset, settings.backbone, settings.dataset.render
    if render is not None:
        render_embedded(root=dataset.root, **render.model_dump())
    held_out = HoldOut(dataset.heldout_fraction, dataset.heldout_by, dataset.heldout_seed)
    index, findings = prepare_clips(
        name=dataset.name,
        kind=dataset.format,
        root=dataset.root,
        files=dataset.model_dump(include=set(_FILES)),
        end_frame=dataset.end_frame,
        min_frames=dataset.min_frames,
        hold_out=held_out,
        official_counts=dataset.official_counts,
        cache_path=places.PROBE_CACHE,
        num_workers=dataset.num_probe_workers,
        max_problem_fraction=dataset.max_problem_fraction,
        decoders=[d for d in (chosen.decoder, chosen.decoder_fallback) if d != "none"],
    )
    FlipRule(dataset.flip, dataset.flip_pairs).check(index.class_names)
    index.save(places.CLIP_INDEX)
    write_json(places.CLIP_CHECK, findings.as_json())
    counts = ", ".join(f"{count:,} {split}" for split, count in index.count_splits().items())
    console.print(
        f"{places.CLIP_INDEX}: {counts} clips of {len(index.class_names)} classes, "
        f"{len(index.problems):,} unusable",
        soft_wrap=True,
    )
    for line in findings.lines():
        console.print(line, soft_wrap=True)
    if table := findings.table():
        console.print(table)
