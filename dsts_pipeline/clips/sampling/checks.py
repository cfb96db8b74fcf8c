"""Counts that every rule refuses."""

from __future__ import annotations


def check_counts(num_frames: int, **counts: int) -> None:
    """Raise a ValueError unless all are at least 1."""
    for name, count in {"num_frames": num_frames, **counts}.items():
        if count < 1:
            raise ValueError(f"{name} is {count}, expected at least 1")
