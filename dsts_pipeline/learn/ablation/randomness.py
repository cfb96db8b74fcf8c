"""torch's global random generators, one state per training that shares a process with others."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class OwnRandomness:
    """Within `within()` torch's global generators are this one's; outside nobody notices.

    Args:
        device: Whose generator is kept apart besides the CPU's.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._read()

    @contextmanager
    def within(self) -> Iterator[None]:
        """Draws in the block go on from where the last block ended."""
        outside = self._read()
        self._write(self._states)
        try:
            yield
        finally:
            self._states = self._read()
            self._write(outside)

    def _read(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self._device))
        return states

    def _write(self, states: list[Tensor]) -> None:
        torch.set_rng_state(states[0])
        if self._device.type == "cuda":
            torch.cuda.set_rng_state(states[1], self._device)
