"""The embedded data sets by name: settings in, a rendered data root out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.stick import diving as stick_diving
from dsts_pipeline.stick import something as stick_something


def _render_diving(root: str | Path, num_workers: int, **recipe: float) -> int:
    made_of = stick_diving.Recipe(**recipe)  # type: ignore[arg-type]
    return stick_diving.render_dataset(root, made_of, num_workers=num_workers)


def _render_something(root: str | Path, num_workers: int, **recipe: float) -> int:
    made_of = stick_something.Recipe(**recipe)  # type: ignore[arg-type]
    return stick_something.render_dataset(root, made_of, num_workers=num_workers)


_RENDERERS: dict[str, Callable[..., int]] = {
    "stick_diving": _render_diving,
    "stick_something": _render_something,
}


def render_embedded(
    renderer: str, root: str | Path, *, num_workers: int = 1, **recipe: float
) -> int:
    """Render what is missing of an embedded data set; return how many clips were rendered anew.

    Args:
        renderer: "stick_diving" or "stick_something".
        recipe: num_train, num_test, size_px, num_frames, difficulty, seed.

    Raises:
        SettingsError: There is no such renderer.
        DataError: `root` holds something that no recipe made.
    """
    if renderer not in _RENDERERS:
        raise SettingsError(
            f"dataset.render.renderer {renderer!r} is unknown; expected one of {sorted(_RENDERERS)}"
        )
    return _RENDERERS[renderer](root, num_workers, **recipe)
