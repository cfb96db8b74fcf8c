"""Figures per channel over maps that stream by: batches in, mean, spread and zeros out.

N maps, C channels, L = T*H*W elements of a channel in one map. Memory is one batch in float64
and a few arrays of C numbers, whatever the size of the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class MapFigures:
    """What one batch of maps says, map by map.

    Attributes:
        num_nan, num_inf: elements of each map that are no number, or infinite, int64 `[n]`.
        all_zero: maps that hold nothing but zeros, bool `[n]`.
        means: mean of each channel, float64 `[n, C]`; of maps that are not finite meaningless.
        squares: sum of squared deviations from these means, float64 `[n, C]`.
        zeros: elements that are exactly 0, int64 `[n, C]`.
        channel_elements: L.
    """

    num_nan: np.ndarray
    num_inf: np.ndarray
    all_zero: np.ndarray
    means: np.ndarray
    squares: np.ndarray
    zeros: np.ndarray
    channel_elements: int

    @property
    def finite(self) -> np.ndarray:
        """Maps without NaN and Inf, bool `[n]`."""
        return (self.num_nan == 0) & (self.num_inf == 0)


def describe_maps(maps: np.ndarray) -> MapFigures:
    """Figures of every map of `[n, C, T, H, W]`, of any float type."""
    values = maps.reshape(*maps.shape[:2], -1).astype(np.float64)
    finite = np.isfinite(values)
    num_nan = num_inf = np.zeros(len(maps), dtype=np.int64)
    if not finite.all():
        nan = np.isnan(values)
        num_nan, num_inf = nan.sum(axis=(1, 2)), (~finite & ~nan).sum(axis=(1, 2))
        values = np.where(finite, values, 0.0)
    zeros = values.shape[2] - np.count_nonzero(values, axis=2)
    means = values.mean(axis=2)
    values -= means[:, :, None]
    return MapFigures(
        num_nan=num_nan,
        num_inf=num_inf,
        all_zero=(zeros == values.shape[2]).all(axis=1) & finite.all(axis=(1, 2)),
        means=means,
        squares=np.einsum("ncl,ncl->nc", values, values),
        zeros=zeros,
        channel_elements=values.shape[2],
    )


class ChannelStatistics:
    """Mean, standard deviation and share of zeros of each channel, over all maps so far.

    Means and squared deviations are merged pairwise (Chan, Golub, LeVeque 1979), so nothing
    cancels, however far from zero the values lie.
    """

    def __init__(self, num_channels: int) -> None:
        self.num_maps = 0
        self._elements = 0
        self._mean = np.zeros(num_channels)
        self._squares = np.zeros(num_channels)
        self._zeros = np.zeros(num_channels, dtype=np.int64)

    def add(self, figures: MapFigures) -> None:
        """Take in the finite maps of a batch."""
        chosen = figures.finite
        num_maps = int(chosen.sum())
        if num_maps == 0:
            return
        means = figures.means[chosen]
        mean = means.mean(axis=0)
        length = figures.channel_elements
        squares = figures.squares[chosen].sum(axis=0) + length * ((means - mean) ** 2).sum(axis=0)
        added = num_maps * length
        total = self._elements + added
        shift = mean - self._mean
        self._squares += squares + shift**2 * (self._elements * added / total)
        self._mean += shift * (added / total)
        self._zeros += figures.zeros[chosen].sum(axis=0)
        self._elements = total
        self.num_maps += num_maps

    @property
    def mean(self) -> np.ndarray:
        """Float64 `[C]`."""
        return self._mean

    @property
    def std(self) -> np.ndarray:
        """Float64 `[C]`, over all elements (population)."""
        return np.sqrt(self._squares / max(1, self._elements))

    @property
    def zero_share(self) -> np.ndarray:
        """Float64 `[C]`, share of elements that are exactly 0."""
        return self._zeros / max(1, self._elements)

    @property
    def dead(self) -> list[int]:
        """Channels that have one and the same value in every element of every map."""
        return np.flatnonzero(self._squares == 0).tolist() if self.num_maps else []

    def to_json(self) -> dict[str, Any]:
        """All figures as plain lists, one entry a channel."""
        return {
            "num_maps": self.num_maps,
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
            "zero_share": self.zero_share.tolist(),
            "dead": self.dead,
        }
