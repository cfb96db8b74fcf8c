"""Start a head from the classifier that its backbone was trained with.

Enters: a head with a linear `classifier` and the backbone's weight `[K, C]`, bias `[K]`. With
`zero_start` the first logits of a `DSTSHead` then equal the backbone's own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import CheckpointError


@torch.no_grad()
def take_over_classifier(head: nn.Module, weight: Tensor, bias: Tensor) -> None:
    """Copy a classifier into `head.classifier`.

    Args:
        weight: `[K, C]`.
        bias: `[K]`.

    Raises:
        CheckpointError: Another number of classes or channels.
    """
    classifier = head.classifier
    assert isinstance(classifier, nn.Linear)
    expected = (tuple(classifier.weight.shape), tuple(classifier.bias.shape))
    found = (tuple(weight.shape), tuple(bias.shape))
    if found != expected:
        raise CheckpointError(
            f"backbone's classifier has weight {found[0]} and bias {found[1]}, the head expects "
            f"{expected[0]} and {expected[1]}; use a backbone trained on these classes, or set "
            "head.take_over_classifier to false"
        )
    classifier.weight.copy_(weight)
    classifier.bias.copy_(bias)
