"""How sure a figure is: percentile bootstrap over clips, alone and paired; Wilson for few clips.

Enters: hits (bool `[n]`) of one head, or of two heads on the same clips in the same order.
Leaves: an `Interval`, value with lower and upper bound.

Clips are drawn n at a time with replacement, `num_resamples` times; the figure is computed on
each draw, and the bounds are percentiles of the results. It covers the choice of test clips, not
the randomness of training. Where every clip is right (or wrong) the interval has no width.
Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapters 13 and 10.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

_CHUNK_ELEMENTS = 4_000_000  # at most this many drawn clips in memory at once


@dataclass(frozen=True)
class Interval:
    """A figure and the bounds that hold it in a share `confidence` of the resamples."""

    value: float
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class Bootstrap:
    """Settings of the resampling; the same seed draws the same clips for every figure."""

    num_resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_resamples < 1 or not 0 < self.confidence < 1:
            raise ValueError(f"{self}: expected num_resamples >= 1 and 0 < confidence < 1")

    def interval_of_mean(self, values: np.ndarray) -> Interval:
        """Mean of `values` (`[n]`; hits, or differences of hits) over clips."""
        values = np.asarray(values, np.float64)
        draws = [weights @ values / len(values) for weights in self._draw(len(values))]
        return self.interval_of_draws(float(values.mean()), np.concatenate(draws))

    def intervals_of_means(self, columns: np.ndarray) -> list[Interval]:
        """`interval_of_mean` of each column of `columns [n, F]`, with one set of draws for all."""
        columns = np.asarray(columns, np.float64)
        draws, means = self.draws_of_sums(columns) / len(columns), columns.mean(axis=0).tolist()
        return [self.interval_of_draws(m, d) for m, d in zip(means, draws.T, strict=True)]

    def draws_of_sums(self, columns: np.ndarray) -> np.ndarray:
        """Sums of each column of `columns [n, F]` on each draw, float64 `[num_resamples, F]`.

        A sum is linear: a difference of two columns has the difference of their draws. Those of
        whole numbers are exact, so that they are the same on every machine.
        """
        columns = np.asarray(columns, np.float64)
        return np.concatenate([weights @ columns for weights in self._draw(len(columns))])

    def interval_of_draws(self, value: float, draws: np.ndarray) -> Interval:
        """A figure with the percentiles of its values on all draws."""
        tail = (1 - self.confidence) / 2
        low, high = np.quantile(draws, [tail, 1 - tail])
        return Interval(value, float(low), float(high), self.confidence)

    def interval_of_class_mean(
        self, values: np.ndarray, labels: np.ndarray, num_classes: int
    ) -> Interval:
        """Mean over classes of the mean of `values` over a class's clips.

        Classes without a clip are left out; so are, draw by draw, classes that were not drawn.
        """
        values = np.asarray(values, np.float64)
        present, positions = np.unique(labels, return_inverse=True)
        if len(present) > num_classes:
            raise ValueError(f"labels name {len(present)} classes, expected at most {num_classes}")
        members = np.zeros((len(values), len(present)))
        members[np.arange(len(values)), positions] = 1.0
        sums = members * values[:, None]
        draws = [_class_mean(w @ sums, w @ members) for w in self._draw(len(values))]
        everything = _class_mean(sums.sum(axis=0), members.sum(axis=0))
        return self.interval_of_draws(float(everything), np.concatenate(draws))

    def _draw(self, num_clips: int) -> Iterator[np.ndarray]:
        """How often each clip was drawn, float64 `[r, n]`, in chunks of bounded size."""
        generator = np.random.default_rng(self.seed)
        chunk = max(1, _CHUNK_ELEMENTS // num_clips)
        for start in range(0, self.num_resamples, chunk):
            rows = min(chunk, self.num_resamples - start)
            drawn = generator.integers(num_clips, size=(rows, num_clips))
            drawn += np.arange(rows)[:, None] * num_clips
            counts = np.bincount(drawn.ravel(), minlength=rows * num_clips)
            yield counts.reshape(rows, num_clips).astype(np.float64)


def _class_mean(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Mean over the last axis of sums / counts, over the entries whose count is not zero."""
    means = np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=counts > 0)
    return np.nanmean(means, axis=-1)


def wilson_bounds(
    right: np.ndarray, clips: np.ndarray, confidence: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper bound of the shares right / clips, float64 of their shape, in 0..1.

    `(p + z^2/2n -+ z sqrt(p (1 - p) / n + z^2/4n^2)) / (1 + z^2/n)`. For small groups of clips
    (a class, a bin), where a bootstrap is too narrow, and has no width at all if all are right.
    Bounds are 0 and 1 where there are no clips. Source: Wilson 1927.
    """
    clips = np.asarray(clips, np.float64)
    z = stats.norm.ppf(0.5 + confidence / 2)
    share = np.divide(right, clips, out=np.zeros(clips.shape), where=clips > 0)
    n = np.maximum(clips, 1.0)
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1))
    return np.where(clips > 0, low.clip(0, 1), 0.0), np.where(clips > 0, high.clip(0, 1), 1.0)


def paired_difference(
    hits: np.ndarray, baseline_hits: np.ndarray, bootstrap: Bootstrap
) -> Interval:
    """Accuracy of a head minus that of a baseline on the same clips, resampled together.

    Much narrower than the difference of two separate intervals: what is hard for both cancels.
    """
    if hits.shape != baseline_hits.shape:
        raise ValueError(f"hits {hits.shape} and {baseline_hits.shape}: expected the same clips")
    return bootstrap.interval_of_mean(hits.astype(np.float64) - baseline_hits)
