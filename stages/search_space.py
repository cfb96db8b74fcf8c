"""What `search` may vary, checked before anything runs, and the search's name."""

from __future__ import annotations

from typing import Any

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.files import sha256_json
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.base.settings.tree import require_setting
from dsts_pipeline.base.settings.variants import with_values
from dsts_pipeline.learn.identity import digest_sources
from dsts_pipeline.learn.search import Dimension, parse_dimension
from stages.training_options import OF_THE_RUN, options_of_feed

SECTIONS = "head", "udl", "train"
# What decides the clips that trials are judged by has to be the same for all of them.
FIXED = {f"train.{name}" for name in OF_THE_RUN | {"heldout_fraction", "data_seed"}}


def read_space(settings: Settings) -> list[Dimension]:
    """The dimensions of `search.space`.

    Raises:
        SettingsError: Nothing is held out, a key can't be searched, or a value can't be taken.
    """
    if not settings.train.heldout_fraction:
        raise SettingsError(
            "train.heldout_fraction is 0: trials are judged by clips held out of train, never by "
            "the test split; set it, such as --set train.heldout_fraction=0.1"
        )
    if settings.train.devices > 1:
        raise SettingsError(
            f"train.devices is {settings.train.devices}: a search trains one head in one process; "
            "set it to 1"
        )
    dimensions = [parse_dimension(text) for text in settings.search.space]
    keys = [dimension.key for dimension in dimensions]
    if not keys or len(set(keys)) < len(keys):
        raise SettingsError(f"search.space: found {keys or 'nothing'}, expected each key once")
    for text, dimension in zip(settings.search.space, dimensions, strict=True):
        require_setting(dimension.key, f"search.space {text}")
        section, _, name = dimension.key.partition(".")
        if section not in SECTIONS or not name or dimension.key in FIXED:
            raise SettingsError(
                f"search.space {text}: {dimension.key} can't be searched; expected a setting of "
                f"{', '.join(SECTIONS)} that leaves maps and held-out clips as they are"
            )
        for value in dimension.ends:
            with_values(settings, {dimension.key: value})
    return dimensions


def present_values(settings: Settings, dimensions: list[Dimension]) -> dict[str, Any]:
    """The values that the settings have now."""
    content = settings.model_dump(mode="json")
    return {
        key: content[key.split(".")[0]][key.split(".")[1]] for key in (d.key for d in dimensions)
    }


def name_study(settings: Settings, dimensions: list[Dimension], store: str) -> str:
    """Of all that decides a trial's result but its values, and of what is varied."""
    content = settings.model_dump(mode="json", include={"seed", *SECTIONS})
    for name in OF_THE_RUN:
        del content["train"][name]
    for section, name in (dimension.key.split(".") for dimension in dimensions):
        del content[section][name]
    space = settings.search.model_dump(mode="json", exclude={"num_trials", "timeout_seconds"})
    weights = settings.backbone.weights
    parts = {"settings": content, "space": space, "store": store, "weights": str(weights)}
    parts |= {"feed": options_of_feed(settings.feed), "sources": digest_sources()}
    return sha256_json(parts)[:16]
