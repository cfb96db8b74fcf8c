"""Settings of the search of settings on held-out clips."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dsts_pipeline.base.settings.sections import Section


class SearchSettings(Section):
    """What `search` tries, how long, and how it gives up on a trial.

    `space` lists settings of the sections head, udl and train with their range: "key=low:high"
    (even; whole numbers if both are), "key=low:high:log" (even in the logarithm) or "key=a,b,c".
    """

    space: tuple[str, ...] = (
        "train.learning_rate=0.0005:0.008:log",
        "train.weight_decay=0.005:0.2:log",
        "train.classifier_learning_rate_factor=1.0:10.0:log",
        "train.scoring_learning_rate_factor=0.3:3.0:log",
        "train.gate_learning_rate_factor=2.0:50.0:log",
        "head.impulse_spread=5.0:50.0:log",
        "head.width=16,32,64",
    )
    num_trials: int = Field(30, ge=1)  # of the study, those of earlier calls included
    timeout_seconds: float | None = Field(None, gt=0.0)  # no trial is begun after so long
    pruner: Literal["median", "successive_halving", "none"] = "median"
    startup_trials: int = Field(5, ge=0)  # drawn at random; the median pruner spares them, too
    warmup_epochs: int = Field(2, ge=0)  # of a trial, before the median pruner may end it
