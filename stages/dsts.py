"""The untrained DSTS head that the settings describe, and the options of its training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.head import DSTSHead, take_over_classifier
from stages.trainings import OF_THE_RUN, options_of_feed


def build_dsts(
    settings: Settings, sizes: tuple[int, int], classifier: tuple[Tensor, Tensor] | None
) -> DSTSHead:
    """A head whose first values depend on the settings alone.

    Args:
        sizes: Channels of the maps, number of classes.
        classifier: The backbone's own, taken over where the settings say so.

    Raises:
        SettingsError: Its arguments exclude each other, or do not fit the maps.
    """
    torch.manual_seed(derive_seed(settings.seed, "dsts"))
    try:
        head = DSTSHead(*sizes, **settings.head.model_dump(exclude={"take_over_classifier"}))
    except ValueError as error:
        raise SettingsError(f"head: {error}") from None
    if classifier and settings.head.take_over_classifier:
        take_over_classifier(head, *classifier)
    return head


def dsts_options(settings: Settings) -> dict[str, Any]:
    """What `train_head` is given for the DSTS head, but for processes and checkpoints."""
    udl = settings.udl
    options: dict[str, Any] = settings.train.model_dump(exclude=OF_THE_RUN)
    options |= {"seed": settings.seed, **options_of_feed(settings.feed)}
    options |= {"udl": udl.enabled, "udl_method": udl.method}
    return options | udl.model_dump(include={"redraw_noise", "inner_learning_rate"})
