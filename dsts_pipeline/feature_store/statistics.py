"""Figures per channel over maps that stream by: batches in, mean, spread and zeros out.

N maps, C channels, L = T*H*W elements of a channel in one map. Memory is one batch in float64
and a few arrays of C numbers, whatever the size of the store.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        num_nan = nan.sum(axis=(1, 2))
        num_inf = (~finite & ~nan).sum(axis=(1, 2))
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


# ---- drift: shards whose maps differ from the others' by more than chance ----------------------
#
# A permutation test. Were all shards made alike, the clips of one class could change places between
# shards without anything changing but chance. So they do, a few hundred times, and a shard is
# flagged if it lies further out than the furthest shard of every one of these shuffles. Two
# distances are taken, from the shard's mean over its clips, per channel, standardized by what n
# clips drawn at random vary:
#
#     z[s, c] = (mean over clips of shard s, channel c) / (std[c] / sqrt(n[s]))     after removing
#               the mean over the clips of the same class in the whole store
#     narrow[s] = max over c of |z[s, c]|        a change of one channel
#     broad[s]  = mean over k of w[s, k]^2       a change that shows in many channels
#
# w is z along the principal directions k of the clips' means, over sqrt(v[k] + 0.1 mean(v)), v
# being the variances along them (Hotelling's T^2, damped). Clips differ from each other mostly in a
# few directions; wrong pixel statistics or swapped colours move all clips in others, too.
#
# Measured on the embedded data set (144 clips, shards of 16, one of them extracted wrongly, each of
# the 9 in turn): BGR for RGB and pixels scaled to [0, 1] are found 9 times of 9, no other shard is
# flagged; ImageNet's pixel mean and spread, which hardly move these maps, are never found.
#
# With B shuffles an honest store is flagged with a probability of at most 2 / (B + 1), however the
# channels depend on each other and whatever the distribution of their values. The furthest shard is
# then set aside and the rest tested again, so that one bad shard neither hides another nor makes
# its neighbours look bad.
#
# Choice: what may change places are clips, not maps: views of one clip within a shard count as one
# (their mean), since they resemble each other. Clips with other views are other clips (test views
# beside training views). Where classes are small (fewer than 3 clips on average), all clips may.

# Numbers kept for the test: 64 MiB of float32. Beyond that, evenly spaced channels stand for all.
MAX_KEPT = 2**24
MAX_CHANNELS = 512
MIN_SHARDS = 3
_MIN_CLASS_SIZE = 3
_MANY_SHUFFLES = 999
_FEW_SHUFFLES = 199  # of more numbers than _FEW_ABOVE
_FEW_ABOVE = 2**20
_MAX_FLAGGED = 20
_DAMPING = 0.1
_ROUNDING = 1e-3  # of sums in float32, where a shuffle can change nothing else


@dataclass(frozen=True)
class DriftedShard:
    """A shard beyond chance.

    Attributes:
        shard: its number. num_clips: clips in it.
        broad, narrow: its distances; broad_limit, narrow_limit: the furthest of all shuffles.
        channel: the channel that is furthest out. z: how far, with its sign.
    """

    shard: int
    num_clips: int
    broad: float
    narrow: float
    broad_limit: float
    narrow_limit: float
    channel: int
    z: float

    def __str__(self) -> str:
        return (
            f"shard {self.shard} differs from the others beyond chance: mean squared distance "
            f"{self.broad:.3g} (limit {self.broad_limit:.3g}), channel {self.channel} at "
            f"z = {self.z:+.3g} (limit {self.narrow_limit:.3g})"
        )


@dataclass(frozen=True)
class Drift:
    """What the test found, and with which options.

    `note` says why nothing was tested, where that is so.
    """

    flagged: tuple[DriftedShard, ...]
    num_shards: int
    num_channels: int
    num_shuffles: int
    within_classes: bool
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return vars(self) | {"flagged": [vars(shard) for shard in self.flagged]}


class ClipMeans:
    """Collects each clip's mean per channel, shard after shard, in bounded memory.

    Args:
        num_maps, num_channels: of the store.
    """

    def __init__(self, num_maps: int, num_channels: int) -> None:
        kept = max(1, min(num_channels, MAX_CHANNELS, MAX_KEPT // max(1, num_maps)))
        self.channels = np.unique(np.linspace(0, num_channels - 1, kept).astype(np.int64))
        self._means: list[np.ndarray] = []
        self._keys: list[tuple[int, int, tuple[int, ...]]] = []

    def add_shard(
        self,
        shard: int,
        clips: Sequence[str],
        labels: Sequence[int],
        views: Sequence[int],
        means: np.ndarray,
    ) -> None:
        """Take in the maps of one shard: clip, class and view of each, and means `[n, C]`."""
        rows_of: dict[str, list[int]] = {}
        for row, clip in enumerate(clips):
            rows_of.setdefault(clip, []).append(row)
        for rows in rows_of.values():
            seen = tuple(sorted(int(views[row]) for row in rows))
            self._keys.append((shard, int(labels[rows[0]]), seen))
            mean = means[rows][:, self.channels].mean(axis=0, dtype=np.float64)
            self._means.append(mean.astype(np.float32))

    def test(self, *, seed: int = 0) -> Drift:
        """Flag the shards that differ from the others beyond chance."""
        shards = np.array([key[0] for key in self._keys], dtype=np.int64)
        num_shards = len(np.unique(shards))
        if num_shards < MIN_SHARDS:
            note = f"not tested: {num_shards} shards, at least {MIN_SHARDS} are needed"
            return Drift((), num_shards, 0, 0, False, note)
        means = np.stack(self._means)
        within = len(self._keys) >= _MIN_CLASS_SIZE * len({key[1] for key in self._keys})
        groups = _number([(key[1] if within else 0, key[2]) for key in self._keys])
        num_shuffles = _FEW_SHUFFLES if means.size > _FEW_ABOVE else _MANY_SHUFFLES
        flagged: list[DriftedShard] = []
        kept = np.ones(len(shards), dtype=bool)
        while len(flagged) < min(_MAX_FLAGGED, num_shards // 2):
            generator = np.random.default_rng(seed)
            found = _test_furthest(
                means[kept], shards[kept], groups[kept], self.channels, num_shuffles, generator
            )
            if found is None:
                break
            flagged.append(found)
            kept &= shards != found.shard
        return Drift(tuple(flagged), num_shards, len(self.channels), num_shuffles, within)


def _number(keys: Sequence[Any]) -> np.ndarray:
    numbers = {key: number for number, key in enumerate(sorted(set(keys)))}
    return np.array([numbers[key] for key in keys], dtype=np.int64)


def _test_furthest(
    means: np.ndarray,
    shards: np.ndarray,
    groups: np.ndarray,
    channels: np.ndarray,
    num_shuffles: int,
    generator: np.random.Generator,
) -> DriftedShard | None:
    """The shard furthest out, if it is further than the furthest of every shuffle."""
    order = np.argsort(shards, kind="stable")
    shards = shards[order]
    groups = groups[order]
    starts = np.flatnonzero(np.diff(shards, prepend=-1))
    sizes = np.diff(starts, append=len(shards))
    residuals, kept = _standardize(means[order], groups)
    if not len(kept):
        return None
    turned = _whiten(residuals)

    def distances(shuffle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        sums = [np.add.reduceat(rows[shuffle], starts, axis=0) for rows in (turned, residuals)]
        along, scores = (part / np.sqrt(sizes)[:, None] for part in sums)
        return (along**2).mean(axis=1), scores

    broad, scores = distances(np.arange(len(groups)))
    narrow = np.abs(scores).max(axis=1)
    limits = np.zeros(2)
    by_group = np.argsort(groups, kind="stable")
    for _ in range(num_shuffles):
        shuffle = np.empty(len(groups), dtype=np.int64)
        shuffle[by_group] = np.lexsort((generator.random(len(groups)), groups))
        chance, scattered = distances(shuffle)
        limits = np.maximum(limits, (chance.max(), np.abs(scattered).max()))
    excess = np.maximum(broad / limits[0], narrow / limits[1])
    worst = int(np.argmax(excess))
    if not excess[worst] > 1 + _ROUNDING:
        return None
    channel = int(np.argmax(np.abs(scores[worst])))
    return DriftedShard(
        shard=int(shards[starts[worst]]),
        num_clips=int(sizes[worst]),
        broad=float(broad[worst]),
        narrow=float(narrow[worst]),
        broad_limit=float(limits[0]),
        narrow_limit=float(limits[1]),
        channel=int(channels[kept[channel]]),
        z=float(scores[worst, channel]),
    )


def _standardize(means: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Deviations from the group's mean over their spread, and the channels that have any."""
    counts = np.bincount(groups)
    sums = np.zeros((len(counts), means.shape[1]))
    np.add.at(sums, groups, means)
    residuals = means - (sums / np.maximum(counts, 1)[:, None])[groups]
    spread = np.sqrt((residuals**2).mean(axis=0))
    kept = np.flatnonzero(spread > 1e-6 * np.abs(means).max(axis=0, initial=0.0))
    return (residuals[:, kept] / spread[kept]).astype(np.float32), kept


def _whiten(residuals: np.ndarray) -> np.ndarray:
    """The same rows along their principal directions, each over its damped spread."""
    covariance = residuals.T @ residuals / len(residuals)
    variances, directions = np.linalg.eigh(covariance.astype(np.float64))
    damped = np.maximum(variances, 0.0) + _DAMPING * variances.mean()
    return residuals @ (directions / np.sqrt(damped)).astype(np.float32)
