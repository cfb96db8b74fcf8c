"""Settings of the last two stages: evaluation and report."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dsts_pipeline.base.settings.sections import Section


class EvaluateSettings(Section):
    """Which split heads are run over, and how sure their figures are.

    `split` "val" is for choosing settings: it is there where `dataset.heldout_fraction` or the
    annotations make one, and leaves "test" unseen until the settings are settled.
    `num_bins` is for calibration; `num_permutations` for the nulls of routing. `temporal_need` is
    how maps lose their order in time to measure which classes need it, at the price of a second
    pass of the heads that route; "none" leaves it out.
    """

    split: Literal["test", "val"] = "test"
    batch_size: int = Field(64, ge=1)
    num_bootstrap: int = Field(2000, ge=100, le=100_000)
    confidence: float = Field(0.95, gt=0.5, lt=1.0)
    num_bins: int = Field(15, ge=2, le=100)
    num_permutations: int = Field(200, ge=20, le=100_000)
    temporal_need: Literal["shuffle", "average", "none"] = "shuffle"


class ReportSettings(Section):
    """What the HTML page shows.

    `num_gallery_clips` is the number of moving previews per neuron; 0 leaves the gallery out.
    `num_cell_clips` is the same for each cell of the confusion matrix, and `num_mistakes` how many
    wrong answers are shown one by one. All previews together take at most `max_preview_mb`
    megabytes of the page.
    """

    title: str = "Dynamic spatio-temporal specialization: a run in figures"
    num_confused_pairs: int = Field(12, ge=1, le=200)
    num_gallery_clips: int = Field(4, ge=0, le=24)
    num_cell_clips: int = Field(6, ge=0, le=100)
    num_mistakes: int = Field(40, ge=0, le=1000)
    preview_size_px: int = Field(72, ge=32, le=160)
    max_preview_mb: float = Field(12.0, ge=0, le=200)
    write_plots: bool = True
