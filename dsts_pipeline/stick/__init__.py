"""The embedded data sets: settings in, a folder of rendered clips and annotations out.

A clip's bytes depend on the settings, its split and its number alone; with `num_groups` it belongs
to one of so many groups of its split, see `groups`. What is there is kept, so an
interrupted rendering goes on where it stopped; files made by other settings are replaced; a folder
that no rendering made is left alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, write_atomic, write_json
from dsts_pipeline.base.progress import track
from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import diving, something
from dsts_pipeline.stick.groups import group_of
from dsts_pipeline.stick.rendering import Renderer

__all__ = ["RENDERERS", "Renderer", "render_embedded"]

RENDERERS: dict[str, Renderer] = {
    "stick_diving": diving.RENDERER,
    "stick_something": something.RENDERER,
}
_BATCH_CLIPS = 16


def render_embedded(root: str | Path, settings: RenderSettings) -> int:
    """Render what is missing of an embedded data set; return how many clips were rendered anew.

    Raises:
        DataError: `root` holds something that no rendering made.
    """
    root = Path(root)
    renderer = RENDERERS[settings.renderer]
    recipe = settings.model_dump(exclude={"renderer", "num_workers"})
    if settings.num_groups == 0:
        del recipe["num_groups"]  # what was rendered before there were groups stays
    recipe["renderer_version"] = renderer.version
    recipe_file = root / f"{settings.renderer}.json"
    _remove_stale(root, renderer, recipe_file, recipe)
    write_json(recipe_file, recipe)
    missing = [
        (split, number)
        for split, count in renderer.count_clips(settings).items()
        for number in range(count)
        if not _place_video(root, settings, split, number).exists()
    ]
    batches = [missing[at : at + _BATCH_CLIPS] for at in range(0, len(missing), _BATCH_CLIPS)]
    if batches:
        with track(f"Rendering {renderer.title}", len(missing)) as progress:
            work = ([root] * len(batches), [settings] * len(batches), batches)
            if settings.num_workers > 1:
                counts = map_in_processes(_render_batch, *work, num_workers=settings.num_workers)
            else:
                counts = map(_render_batch, *work)
            for count in counts:
                progress.advance(count)
    for name, content in renderer.annotate(settings).items():
        write_json(root / name, content)
    return len(missing)


def _remove_stale(
    root: Path, renderer: Renderer, recipe_file: Path, recipe: dict[str, Any]
) -> None:
    """Remove what other settings made."""
    if not root.exists() or not any(root.iterdir()):
        return
    if not recipe_file.exists():
        raise DataError(
            f"{root} is not empty and holds no {recipe_file.name}, so {renderer.title} will not be "
            "written there; set dataset.root to an empty folder"
        )
    if read_json(recipe_file) != recipe:
        # The recipe is overwritten after this, so that a kill in between removes the rest later.
        for pattern in renderer.stale:
            for path in root.glob(pattern):
                path.unlink()


def _find_group(settings: RenderSettings, number: int) -> int | None:
    num_classes = len(RENDERERS[settings.renderer].class_names)
    return group_of(number, num_classes, settings.num_groups)


def _place_video(root: Path, settings: RenderSettings, split: str, number: int) -> Path:
    name = RENDERERS[settings.renderer].name_video(split, number, _find_group(settings, number))
    return root / name


def _render_batch(root: Path, settings: RenderSettings, batch: list[tuple[str, int]]) -> int:
    renderer = RENDERERS[settings.renderer]
    for split, number in batch:
        clip = renderer.draw(
            settings.seed,
            split,
            number,
            size_px=settings.size_px,
            num_frames=settings.num_frames,
            difficulty=settings.difficulty,
            group=_find_group(settings, number),
        )
        video = renderer.encode(renderer.render(clip))
        write_atomic(_place_video(root, settings, split, number), video)
    return len(batch)
