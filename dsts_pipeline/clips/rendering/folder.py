"""A folder of rendered clips: what is there is kept, what is missing is rendered.

Enters: a recipe (all that decides the bytes), the wanted video files and how each is made. Leaves:
the files and the recipe beside them. An interrupted rendering goes on where it stopped; another
recipe's files are stale and replaced; a folder that no recipe made is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dsts_pipeline.base.children import map_in_processes
from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import read_json, write_atomic, write_json
from dsts_pipeline.base.progress import track

_BATCH_CLIPS = 16
Key = tuple[str, int]  # split and number of a clip


def render_folder(
    root: str | Path,
    *,
    title: str,
    recipe_file: str,
    recipe: Mapping[str, Any],
    videos: Mapping[str, Key],
    render: Callable[[Key], bytes],
    stale: Sequence[str],
    num_workers: int = 1,
) -> int:
    """Render what is missing of `videos` below `root`.

    Args:
        title: What is rendered, for messages, such as "stick dives".
        recipe_file: Name of the file that keeps `recipe`; it marks the folder as ours.
        recipe: JSON-able; another one makes all present files stale.
        videos: Path relative to `root` -> what to give to `render`.
        render: A clip's split and number -> bytes of its file; importable by name, since worker
            processes call it.
        stale: Patterns of all files that a rendering of any recipe makes.
        num_workers: Processes.

    Returns:
        Number of clips rendered anew.

    Raises:
        DataError: `root` holds something that no recipe made.
    """
    root = Path(root)
    _check_root(root, title, recipe_file, recipe, stale)
    write_json(root / recipe_file, recipe)
    missing = [
        (str(root / name), key) for name, key in videos.items() if not (root / name).exists()
    ]
    if missing:
        with track(f"Rendering {title}", len(missing)) as progress:
            for count in _render_all(render, missing, num_workers):
                progress.advance(count)
    return len(missing)


def _check_root(
    root: Path, title: str, recipe_file: str, recipe: Mapping[str, Any], stale: Sequence[str]
) -> None:
    if not root.exists() or not any(root.iterdir()):
        return
    if not (root / recipe_file).exists():
        raise DataError(
            f"{root} is not empty and holds no {recipe_file}, so {title} will not be written "
            "there; set dataset.root to an empty folder"
        )
    if read_json(root / recipe_file) != dict(recipe):
        # The recipe is overwritten after this, so that a kill in between removes the rest later.
        for pattern in stale:
            for path in root.glob(pattern):
                path.unlink()


def _render_all(
    render: Callable[[Key], bytes], missing: list[tuple[str, Key]], num_workers: int
) -> Iterator[int]:
    batches = [missing[i : i + _BATCH_CLIPS] for i in range(0, len(missing), _BATCH_CLIPS)]
    if num_workers <= 1:
        for batch in batches:
            yield _render_batch(render, batch)
        return
    yield from map_in_processes(
        _render_batch, [render] * len(batches), batches, num_workers=num_workers
    )


def _render_batch(render: Callable[[Key], bytes], batch: list[tuple[str, Key]]) -> int:
    for path, key in batch:
        write_atomic(path, render(key))
    return len(batch)
