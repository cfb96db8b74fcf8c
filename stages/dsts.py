"""The untrained DSTS head that the settings describe, for the maps of a store."""

from __future__ import annotations

import torch
from torch import Tensor

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.seeding import derive_seed
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.head import DSTSHead, take_over_classifier


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
