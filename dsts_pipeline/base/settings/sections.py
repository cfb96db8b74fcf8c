"""The base class of every settings section: strict, frozen, closed to unknown names."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """One section of params.yaml: unknown keys and lossy conversions are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
