"""Settings of views and their augmentation: what an extraction makes of one clip."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dsts_pipeline.base.settings.sections import Section


class AugmentationSettings(Section):
    """What is done to training views; as they stand here nothing is.

    `flip`, `erasing`: probabilities. `color_jitter`: largest relative change. `rand_augment`:
    magnitude of two random operations, 10 the strongest.
    """

    crop: Literal["centre", "multi_scale", "resized"] = "centre"
    flip: float = Field(0.0, ge=0.0, le=1.0)
    color_jitter: float = Field(0.0, ge=0.0, le=1.0)
    rand_augment: float = Field(0.0, ge=0.0, le=10.0)
    erasing: float = Field(0.0, ge=0.0, le=1.0)


class ViewSettings(Section):
    """How many maps a clip has: `train` of a training clip, clips x crops of any other."""

    train: int = Field(1, ge=1)
    test_clips: int = Field(1, ge=1)
    test_crops: Literal[1, 3] = 1
    seed: int = Field(0, ge=0)
    augmentation: AugmentationSettings = AugmentationSettings()

    @model_validator(mode="after")
    def _check_augmentation(self) -> ViewSettings:
        seed = self.seed
        if seed and self.augmentation == AugmentationSettings():
            raise ValueError(f"seed is {seed} but nothing is drawn; expected an augmentation")
        return self
