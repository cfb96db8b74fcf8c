"""Render the embedded data set if it is asked for, check every video, write the clip index."""

from __future__ import annotations

from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.clips.prepare import prepare_clips
from dsts_pipeline.clips.stick_diving.dataset import Recipe, render_dataset
from stages import places


def run(settings: Settings) -> None:
    """Write outputs/clips.json.

    Raises:
        DataError: The data root is missing, an annotation is wrong, too many videos are unusable.
    """
    dataset, render = settings.dataset, settings.dataset.render
    if render is not None:
        recipe = Recipe(
            num_train=render.num_train,
            num_test=render.num_test,
            size_px=render.size_px,
            num_frames=render.num_frames,
            difficulty=render.difficulty,
            seed=render.seed,
        )
        render_dataset(dataset.root, recipe, num_workers=render.num_workers)
    index = prepare_clips(
        name=dataset.name,
        kind=dataset.format,
        root=dataset.root,
        num_workers=dataset.num_probe_workers,
        max_problem_fraction=dataset.max_problem_fraction,
    )
    index.save(places.CLIP_INDEX)
    counts = ", ".join(f"{count:,} {split}" for split, count in index.count_splits().items())
    console.print(
        f"{places.CLIP_INDEX}: {counts} clips of {len(index.class_names)} classes, "
        f"{len(index.problems):,} unusable",
        soft_wrap=True,
    )
