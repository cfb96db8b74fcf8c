"""Whether clips of one neuron look alike: cosines of their pooled features, within and across.

Enters: pooled features `[n, C]` and chosen neurons `[n]`, one row a clip.
Leaves: mean cosine of pairs that share a neuron and of pairs that don't, beside random routes.

Choice: features are centred first (minus their mean over all clips), since uncentred pooled maps
of different clips all point in nearly the same direction, which puts every cosine near 1.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def unit_directions(features: np.ndarray) -> np.ndarray:
    """Centred rows of length one, float64 `[n, C]`; a row that equals the mean stays zero."""
    centred = np.asarray(features, np.float64) - np.mean(features, axis=0, dtype=np.float64)
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, lengths, out=np.zeros_like(centred), where=lengths > 1e-12)


def pair_cosines(
    directions: np.ndarray,
    neurons: np.ndarray,
    num_neurons: int,
    squares: np.ndarray | None = None,
) -> dict[str, Any]:
    """Mean cosine over pairs of distinct clips, without forming the pairs.

    `sum over pairs of u_i . u_j = (|sum_i u_i|^2 - sum_i |u_i|^2) / 2`, per neuron and in all.

    Args:
        directions: `[n, C]`, rows of length one or zero.
        neurons: chosen neuron of each clip, int `[n]`.
        num_neurons: N.
        squares: |u_i|^2 `[n]`, where they are known already.

    Returns:
        "within" (all pairs that share a neuron), "across" (all others), None without such pairs;
        "per_neuron": the mean of each neuron's own pairs `[N]`, NaN below two clips.
    """
    counts = np.bincount(neurons, minlength=num_neurons).astype(np.float64)
    members = np.zeros((num_neurons, len(neurons)), directions.dtype)
    members[neurons, np.arange(len(neurons))] = 1.0
    sums = (members @ directions).astype(np.float64)
    squares = (directions**2).sum(axis=1) if squares is None else squares
    own = np.bincount(neurons, weights=squares, minlength=num_neurons)
    inside = (sums**2).sum(axis=1) - own  # ordered pairs
    pairs = counts * (counts - 1)
    whole = float((sums.sum(axis=0) ** 2).sum() - own.sum())
    num_pairs, num_inside = len(neurons) * (len(neurons) - 1.0), pairs.sum()
    outside = num_pairs - num_inside
    return {
        "within": float(inside.sum() / num_inside) if num_inside else None,
        "across": float((whole - inside.sum()) / outside) if outside else None,
        "per_neuron": np.divide(inside, pairs, out=np.full(num_neurons, np.nan), where=pairs > 0),
    }


def describe_similarity(
    features: np.ndarray,
    neurons: np.ndarray,
    num_neurons: int,
    *,
    num_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """What routing.json says of one layer under "similarity".

    Returns:
        "within", "across", "per_neuron" as `pair_cosines` (None where undefined); of routes dealt
        to the clips at random: "within_null" (mean), "within_null_high" (95 % point) and "p", as
        in `describe_information`. Nulls are None where no two clips share a neuron.
    """
    directions = unit_directions(features)
    found = pair_cosines(directions, neurons, num_neurons)
    each = [None if np.isnan(value) else float(value) for value in found["per_neuron"]]
    result = {"within": found["within"], "across": found["across"], "per_neuron": each}
    if found["within"] is None:
        return result | {"within_null": None, "within_null_high": None, "p": None}
    # The null in float32, twice as fast, and what it is compared with, too.
    small, squares = directions.astype(np.float32), (directions**2).sum(axis=1)
    generator = np.random.default_rng(seed)
    deals = [neurons, *(generator.permutation(neurons) for _ in range(num_permutations))]
    means = [pair_cosines(small, deal, num_neurons, squares)["within"] for deal in deals]
    own, null = means[0], np.asarray(means[1:])
    return result | {
        "within_null": float(null.mean()),
        "within_null_high": float(np.quantile(null, 0.95)),
        "p": float((1 + (null >= own - 1e-9).sum()) / (1 + num_permutations)),
    }


def central_clips(
    features: np.ndarray, neurons: np.ndarray, num_neurons: int, limit: int
) -> list[list[int]]:
    """Rows of the clips nearest to the mean direction of their neuron's clips, nearest first."""
    directions = unit_directions(features)
    chosen = []
    for neuron in range(num_neurons):
        rows = np.flatnonzero(neurons == neuron)
        nearness = directions[rows] @ directions[rows].sum(axis=0)
        chosen.append(rows[np.argsort(-nearness, kind="stable")[:limit]].tolist())
    return chosen
