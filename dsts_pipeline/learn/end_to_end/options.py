"""How backbone and head are trained together: the head's options and the backbone's own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from dsts_pipeline.learn.end_to_end.model import EndToEnd
from dsts_pipeline.learn.end_to_end.stages import stage_number
from dsts_pipeline.learn.end_to_end.steps import InnerStep
from dsts_pipeline.learn.options import TrainingOptions


@dataclass(frozen=True)
class FinetuneOptions(TrainingOptions):
    """Options of `finetune`.

    Args:
        inner_step: What UDL's simulated step moves, "head" or "all"; see `steps`.
        backbone_learning_rate_factor: Of the backbone's learning rate against the head's; Video
            Swin's recipe has 0.1.
        layer_decay: The last stage of the backbone learns at that rate, each stage before it at
            `layer_decay` times the rate of the next; 1: all alike.
        evaluation_batch: Clips at a time where nothing is differentiated.
    """

    section: ClassVar[str] = "finetune"
    inner_step: InnerStep = "head"
    backbone_learning_rate_factor: float = 0.1
    layer_decay: float = 1.0
    evaluation_batch: int = 32

    def rates_of(self, model: EndToEnd, names: Iterable[str]) -> dict[str, float]:
        """Peak learning rate of each parameter of `model` in `names`."""
        return {name: self._rate_of(model, name) for name in names}

    def _rate_of(self, model: EndToEnd, name: str) -> float:
        inner = model.name_below_root(name)
        if inner is None:
            return self.learning_rate_of(name.removeprefix("head."))
        number = stage_number(inner, model.stages) or 0  # in no stage: as the first
        depth = len(model.stages) - 1 - number
        return self.learning_rate * self.backbone_learning_rate_factor * self.layer_decay**depth
