"""Settings of the ablation: which variants are trained, and with how many seeds."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dsts_pipeline.base.settings.sections import Section

Kind = Literal[
    "dsts", "baseline", "continued_classifier", "linear_probe", "attentive_probe", "conv_block"
]


class VariantSettings(BaseModel):
    """One variant: what differs from all other settings of the run.

    `table` names the paper's tables that it is a row of. `kind` other than dsts is an opponent on
    the same maps; see `learn.ablation.RunPlan`. `settings` are dotted keys of head, udl and train.
    No section of params.yaml: there is a list of them.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str = Field(min_length=1, max_length=120)
    title: str | None = None
    table: tuple[int, ...] = ()
    kind: Kind = "dsts"
    settings: dict[str, Any] = {}


class AblateSettings(Section):
    """Which heads `ablate` trains.

    Every variant is compared with the one named `reference`, which is the settings as they are
    unless `variants` has it. `leave_out` names those of `variants` that are not wanted, such as the
    baseline where the backbone has no classifier. Each of `grid`, such as head.num_neurons=5,10,
    lists the values of a setting; every combination is a variant. Seeds count up from the run's.
    `jobs` processes share the trainings; each holds at most `num_together` of them at a time.
    """

    reference: str = Field("full", min_length=1)
    variants: tuple[VariantSettings, ...] = ()
    leave_out: tuple[str, ...] = ()
    grid: tuple[str, ...] = ()
    num_seeds: int = Field(3, ge=1)
    jobs: int = Field(1, ge=1)
    num_together: int = Field(64, ge=1)

    @field_validator("variants")
    @classmethod
    def _names_differ(cls, value: tuple[VariantSettings, ...]) -> tuple[VariantSettings, ...]:
        names = [variant.name for variant in value]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ValueError(f"two variants are named {twice[0]}; give each a name of its own")
        return value
