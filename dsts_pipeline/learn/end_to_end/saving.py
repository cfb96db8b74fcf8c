"""A trained backbone as a weights file that `backbone.weights` takes.

Enters: an `EndToEnd` model. Leaves: one safetensors file: the recognizer's parameters and buffers
by mmaction2's names, float32, and as its classifier the head's own, what the head says without its
module.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.extract.checkpoints.weights import (
    CLASSIFIER_BIAS,
    CLASSIFIER_WEIGHT,
    save_weights,
)
from dsts_pipeline.extract.models.backbones import Backbone
from dsts_pipeline.extract.models.recognizers import Recognizer
from dsts_pipeline.learn.end_to_end.model import EndToEnd


def check_can_be_saved(backbone: Backbone) -> None:
    """Refuse models that are no weights file but a folder, before hours of training.

    Raises:
        SettingsError: The backbone is a model of the transformers library.
    """
    if not isinstance(backbone.model, Recognizer):
        raise SettingsError(
            f"{backbone.name} is a model of the transformers library, kept as a folder; only "
            "recognizers of mmaction2 are trained end to end: choose another backbone.name"
        )


def save_backbone(model: EndToEnd, path: str | Path) -> None:
    """Write the backbone of `model`, with the head's classifier where it fits, atomically."""
    recognizer, classifier = model.backbone.recognizer, model.head.classifier
    assert isinstance(classifier, nn.Linear)
    own = dict(recognizer.named_parameters()).get(CLASSIFIER_WEIGHT)
    extra: dict[str, Tensor] = {}
    if own is None or own.shape == classifier.weight.shape:
        extra = {CLASSIFIER_WEIGHT: classifier.weight, CLASSIFIER_BIAS: classifier.bias}
    with torch.no_grad():
        save_weights(recognizer, path, extra=extra)
