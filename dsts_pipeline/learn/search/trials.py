"""What became of one trial of a search."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


class TrialRefused(Exception):
    """The values of a trial can't be trained, or diverged; the search goes on."""


@dataclass(frozen=True)
class TrialRecord:
    """A finished trial.

    Args:
        number: From 0, in the order of their start.
        values: Of the settings searched, by key.
        loss: Lowest held-out loss of its epochs; None where it was refused.
        accuracy: Held-out accuracy of that epoch.
        state: "complete", "pruned" or "refused".
        num_epochs: How many it ran.
        reason: Why it was refused.
    """

    number: int
    values: dict[str, Any]
    loss: float | None
    accuracy: float | None
    state: str
    num_epochs: int
    seconds: float
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @property
    def told(self) -> str:
        """A line about it."""
        if self.loss is None:
            return f"trial {self.number}: refused ({self.reason})"
        accuracy = "" if self.accuracy is None else f", accuracy {100 * self.accuracy:.1f} %"
        epochs = f"{self.num_epochs} epoch{'' if self.num_epochs == 1 else 's'}"
        return (
            f"trial {self.number}: held-out loss {self.loss:.4f}{accuracy}, {epochs}, "
            f"{self.seconds:.0f} s, {self.state}"
        )


def best_of(trials: list[TrialRecord]) -> TrialRecord | None:
    """The complete trial of the lowest loss; None where there is none."""
    complete = [trial for trial in trials if trial.state == "complete" and trial.loss is not None]
    return min(complete, key=lambda trial: trial.loss or 0.0, default=None)
