"""Who does the work: how a routed head spreads clips over its neurons, and routing.json.

Enters: what heads answered and chose (neurons int `[n, L]` of N), pooled features, the classes.
Leaves: plain numbers for JSON. Counts (usage, class by neuron, changes between views) count every
view that was routed; what rests on independent clips (information, similarity, gates, pairs) takes
each clip's first view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dsts_pipeline.base.errors import LazyExtra
from dsts_pipeline.base.settings import EvaluateSettings
from dsts_pipeline.metrics.accuracy import count_table
from dsts_pipeline.metrics.intervals import Bootstrap, holm, mcnemar_exact
from dsts_pipeline.metrics.predictions import HeadResult, align

if TYPE_CHECKING:
    from scipy import special, stats
else:
    special = LazyExtra("scipy.special", "a test of routing")
    stats = LazyExtra("scipy.stats", "a test of routing")

BASELINES = ("baseline", "linear_probe")
NUM_CENTRAL_CLIPS = 8


def assemble_routing(
    heads: Mapping[str, HeadResult],
    *,
    class_names: Sequence[str],
    bootstrap: Bootstrap,
    how: EvaluateSettings,
    seed: int = 0,
    num_pairs: int = 20,
    attribute_names: Sequence[str] = (),
    attributes: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """The content of routing.json; "heads" is empty where none routes.

    Args:
        how: its `num_permutations` (for nulls and p-values) and `temporal_need`, by which
            `without_time` of the heads was made, count.
        seed: of permutations.
        num_pairs: hard pairs that are listed each way.
        heads: as in `assemble_metrics`; the first of `BASELINES` that is there is what
            "hard_pairs" compares with.
    """
    groups = {"class": np.arange(len(class_names))}
    for position, name in enumerate(attribute_names if attributes else ()):
        values = [row[position] for row in attributes]
        groups[name] = np.unique(values, return_inverse=True)[1].reshape(-1)
    base = next((name for name in BASELINES if name in heads), None)
    draws = {"num_permutations": how.num_permutations, "seed": seed}
    found = {}
    for name, head in heads.items():
        answers = head.predictions
        if answers.neurons is None or name == base:
            continue
        found[name] = _head(head, groups, draws) | {"hard_pairs": None}
        if base is not None:
            found[name]["hard_pairs"] = describe_pairs(
                answers.labels,
                answers.predicted,
                align(answers, heads[base].predictions).predicted,
                class_names,
                bootstrap,
                num_pairs,
            )
    return {
        "classes": list(class_names),
        "num_permutations": how.num_permutations,
        "temporal_need": how.temporal_need,
        "baseline": base,
        "heads": found,
    }


def _head(
    head: HeadResult, groups: Mapping[str, np.ndarray], draws: Mapping[str, int]
) -> dict[str, Any]:
    answers = head.predictions
    assert answers.neurons is not None and head.num_neurons is not None
    num_layers = answers.neurons.shape[1]
    views = answers.routes()[0]
    routes, route_of_view = number_routes(views)
    without = head.without_time
    need = None
    if without is not None:
        need = clip_need(answers.probabilities, without, answers.labels)
    return {
        "title": head.title,
        "num_neurons": head.num_neurons,
        "clips": len(answers),
        "views": len(views),
        "layers": [_layer(head, layer, groups, need, draws) for layer in range(num_layers)],
        "routes": {
            "possible": head.num_neurons**num_layers,
            "distinct": len(routes),
            "view_changes": describe_view_changes(route_of_view, answers.view_clips, len(routes)),
        },
        "class_need": (
            None if without is None else class_need(answers.probabilities, without, answers.labels)
        ),
    }


def _layer(
    head: HeadResult,
    layer: int,
    groups: Mapping[str, np.ndarray],
    need: np.ndarray | None,
    draws: Mapping[str, int],
) -> dict[str, Any]:
    answers = head.predictions
    size = head.num_neurons
    assert answers.neurons is not None and size is not None
    chosen = answers.neurons[:, layer].astype(np.int64)
    views, labels = answers.routes()
    of_layer = views[:, layer : layer + 1]
    found: dict[str, Any] = describe_use(neuron_usage(of_layer, size)[0]) | {
        "class_by_neuron": class_by_neuron(of_layer, labels, answers.num_classes, size)[0].tolist(),
        "information": {
            name: describe_information(
                group[answers.labels], chosen, (int(group.max()) + 1, size), **draws
            )
            for name, group in groups.items()
        },
        "gates": None,
        "view_changes": describe_view_changes(of_layer[:, 0], answers.view_clips, size),
        "similarity": None,
        "central_clips": None,
    }
    if head.temporal_share is not None:
        shares = head.temporal_share[layer]
        found["gates"] = describe_gates(shares, chosen, answers.labels, need, **draws)
    if head.features is not None:
        found["similarity"] = describe_similarity(head.features, chosen, size, **draws)
        found["central_clips"] = [
            [answers.clip_ids[row] for row in rows]
            for rows in central_clips(head.features, chosen, size, NUM_CENTRAL_CLIPS)
        ]
    return found


# ---- use of neurons, and which classes each serves ----------------------------------------------


def neuron_usage(neurons: np.ndarray, num_neurons: int) -> np.ndarray:
    """Share of clips that each neuron of each layer was chosen for: float64 `[L, N]`.

    Raises:
        ValueError: A choice is not in 0..N-1.
    """
    if neurons.size and (neurons.min() < 0 or neurons.max() >= num_neurons):
        raise ValueError(
            f"chosen neurons span {neurons.min()}..{neurons.max()}, expected 0..{num_neurons - 1}"
        )
    columns = [np.bincount(column, minlength=num_neurons) for column in neurons.T]
    return np.reshape(columns, (neurons.shape[1], num_neurons)) / max(len(neurons), 1)


def usage_entropy(usage: np.ndarray) -> np.ndarray:
    """-sum p ln p over the last axis, in nats: 0 for one neuron, ln N for even use."""
    logs = np.log(usage, out=np.zeros_like(usage, dtype=np.float64), where=usage > 0)
    return -(usage * logs).sum(axis=-1) + 0.0  # + 0.0: no negative zero


def dead_neurons(usage: np.ndarray) -> np.ndarray:
    """Number of neurons that no clip chose, int64 over the leading axes."""
    return (usage == 0).sum(axis=-1)


def describe_use(usage: np.ndarray) -> dict[str, Any]:
    """What both files of results say of one layer's `usage [N]`."""
    return {
        "usage": usage.tolist(),
        "entropy": float(usage_entropy(usage)),
        "dead": int(dead_neurons(usage)),
    }


def class_by_neuron(
    neurons: np.ndarray, labels: np.ndarray, num_classes: int, num_neurons: int
) -> np.ndarray:
    """Number of clips of each class that chose each neuron: int64 `[L, K, N]`."""
    layers = [count_table(labels, column, (num_classes, num_neurons)) for column in neurons.T]
    return np.reshape(layers, (neurons.shape[1], num_classes, num_neurons))


# ---- how often the views of one clip go to different neurons ------------------------------------


def describe_view_changes(
    view_neurons: np.ndarray, view_clips: np.ndarray | None, num_neurons: int
) -> dict[str, Any] | None:
    """What routing.json says of one layer (or of whole routes) under "view_changes".

    Args:
        view_neurons: chosen neuron (or number of the whole route) of each view, int `[m]`.
        view_clips: clip of each view, int `[m]`; None where each clip has one.
        num_neurons: how many neurons (or routes) there are.

    Returns:
        None where no clip has several views. Else "clips" that have several; "changed": the share
        of them whose views do not all agree; "pairs_apart": the share of the pairs of views of
        one clip that differ; "pairs_apart_null": what it would be if views were routed without
        regard to their clip, `1 - sum_i p_i^2` with p_i the use of neuron i.
    """
    if view_clips is None:
        return None
    shape = (int(view_clips.max()) + 1, num_neurons)
    counts = count_table(view_clips, view_neurons, shape).astype(np.float64)
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts):
        return None
    sizes = counts.sum(axis=1)
    pairs = sizes * (sizes - 1)
    same = (counts * (counts - 1)).sum(axis=1)
    use = counts.sum(axis=0) / counts.sum()
    return {
        "clips": len(counts),
        "changed": float((counts.max(axis=1) < sizes).mean()),
        "pairs_apart": float(1 - same.sum() / pairs.sum()),
        "pairs_apart_null": float(1 - (use**2).sum()),
    }


def number_routes(neurons: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Whole routes through all layers: `(distinct routes [R, L], route of each row [m])`."""
    routes, number = np.unique(neurons, axis=0, return_inverse=True)
    return routes, number.reshape(-1)


# ---- how much a clip's neuron tells about its class, or about an attribute, beyond chance -------
#
# With 48 classes, 10 neurons and about a thousand clips, random routes reach a normalised mutual
# information well above 0: only the adjusted value and the null tell whether routes follow classes.
# Source: Vinh, Epps and Bailey, Information theoretic measures for clusterings comparison, 2010.


def mutual_information(counts: np.ndarray) -> float:
    """I(group; neuron) = H(group) + H(neuron) - H(both), in nats, of counts `[G, N]`."""
    joint = counts / max(counts.sum(), 1)
    rows, columns = usage_entropy(joint.sum(axis=1)), usage_entropy(joint.sum(axis=0))
    return float(max(rows + columns - usage_entropy(joint.ravel()), 0.0))


def normalised_mutual_information(counts: np.ndarray) -> float:
    """I(class; neuron) / sqrt(H(class) H(neuron)) of counts `[K, N]`: 0 unrelated, 1 one to one.

    It is 0 where all clips share a class or a neuron, since nothing can then be learnt.
    """
    scale = _scale(counts)
    return mutual_information(counts) / scale if scale else 0.0


def adjusted_mutual_information(counts: np.ndarray) -> float:
    """(I - E[I]) / (sqrt(H(group) H(neuron)) - E[I]): 0 on average by chance, 1 one to one.

    E[I] is the expectation over random routes that use each neuron as often. It can be below 0,
    and is 0 where all clips share a group or a neuron.
    """
    scale = _scale(counts)
    if not scale:
        return 0.0
    chance = expected_mutual_information(counts.sum(axis=1), counts.sum(axis=0))
    if scale - chance <= 1e-12:
        return 0.0
    return (mutual_information(counts) - chance) / (scale - chance)


def expected_mutual_information(group_sizes: np.ndarray, neuron_sizes: np.ndarray) -> float:
    """E[I] in nats where clips fall to neurons at random, both margins fixed.

    `sum_ij sum_n (n / m) ln(m n / (a_i b_j)) P[n]`, with n hypergeometric: how many of the a_i
    clips of group i are among the b_j clips of neuron j, of m clips.
    """
    groups, times = np.unique(group_sizes[group_sizes > 0], return_counts=True)
    neurons, also = np.unique(neuron_sizes[neuron_sizes > 0], return_counts=True)
    total = int(group_sizes.sum())
    return float(
        sum(
            int(t) * int(u) * _expected_cell(int(a), int(b), total)
            for a, t in zip(groups, times, strict=True)
            for b, u in zip(neurons, also, strict=True)
        )
    )


def _expected_cell(a: int, b: int, total: int) -> float:
    n = np.arange(max(1, a + b - total), min(a, b) + 1, dtype=np.float64)
    log_p = _log_choose(a, n) + _log_choose(total - a, b - n) - _log_choose(total, b)
    return float((n / total * np.log(total * n / (a * b)) * np.exp(log_p)).sum())


def _log_choose(n: float, k: np.ndarray | float) -> np.ndarray:
    return special.gammaln(n + 1) - special.gammaln(k + 1) - special.gammaln(n - np.asarray(k) + 1)


def _scale(counts: np.ndarray) -> float:
    """sqrt(H(group) H(neuron)); exactly 0 where there is one group or one neuron."""
    if min((counts.sum(axis=0) > 0).sum(), (counts.sum(axis=1) > 0).sum()) < 2:
        return 0.0  # rounding would leave 1e-8
    joint = counts / max(counts.sum(), 1)
    return float(np.sqrt(usage_entropy(joint.sum(axis=1)) * usage_entropy(joint.sum(axis=0))))


def describe_information(
    groups: np.ndarray,
    neurons: np.ndarray,
    shape: tuple[int, int],
    *,
    num_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """What routing.json says of one layer and one grouping of the clips.

    Args:
        groups: group of each clip, int `[n]`; one row a clip, since several views of a clip are
            no independent evidence.
        neurons: chosen neuron of each clip, int `[n]`.
        shape: `(G, N)`.
        num_permutations: how often routes are dealt to the clips anew.

    Returns:
        "mi" (nats), "nmi", "adjusted", "group_entropy" (nats); of the permutations "nmi_null"
        (mean), "nmi_null_high" (95 % point) and "p" = (1 + those with at least this mi) /
        (1 + num_permutations), so never below 1 / (1 + num_permutations).
    """
    counts = count_table(groups, neurons, shape)
    found = mutual_information(counts)
    scale = _scale(counts)
    generator = np.random.default_rng(seed)
    null = np.asarray(
        [
            mutual_information(count_table(groups, generator.permutation(neurons), shape))
            for _ in range(num_permutations)
        ]
    )
    normalised = null / scale if scale else np.zeros_like(null)
    return {
        "mi": found,
        "nmi": normalised_mutual_information(counts),
        "adjusted": adjusted_mutual_information(counts),
        "group_entropy": float(usage_entropy(counts.sum(axis=1) / max(counts.sum(), 1))),
        "nmi_null": float(normalised.mean()),
        "nmi_null_high": float(np.quantile(normalised, 0.95)),
        "p": float((1 + (null >= found - 1e-12).sum()) / (1 + num_permutations)),
    }


# ---- hard pairs of classes: which ones a head keeps apart and another does not ------------------
#
# A clip of class i is confused within the pair {i, j} by a head that answers j. For a pair, only
# clips confused by just one of the two heads tell the heads apart; given their number, each is as
# likely either way if the heads are equally good (McNemar's exact test). Multiplicity: every pair
# with at least one such clip is tested, and p-values are adjusted over all of them by Holm's
# method. A pair without any has p = 1 and could not have been found, so leaving it out is fair: the
# choice looks at how many such clips there are, not at which head they speak for. Intervals of the
# ranked pairs are NOT adjusted: they belong to the pairs that look best, which as a rule look
# better than they are.


def describe_pairs(
    labels: np.ndarray,
    predicted: np.ndarray,
    base_predicted: np.ndarray,
    class_names: Sequence[str],
    bootstrap: Bootstrap,
    limit: int,
) -> dict[str, Any]:
    """What routing.json says under "hard_pairs" of a head against a baseline.

    Returns:
        "num_pairs": unordered pairs of classes that both have clips; "num_tested": those with at
        least one clip that just one head confuses; "correction": "holm"; "separated": pairs that
        the head keeps apart better, the most clips first; "merged": those it keeps apart worse.
        Each pair: "first", "second" (class numbers), "names", "clips" of both classes,
        "baseline_confused" and "head_confused" (clips), "only_baseline", "only_head" (confused by
        that head alone), "difference" of the shares confused, baseline minus head, with "_low"
        and "_high" (paired bootstrap over the pair's clips), "p" and "p_holm".
    """
    num_classes = len(class_names)
    base_only = _pair_counts(labels, base_predicted, base_predicted != predicted, num_classes)
    head_only = _pair_counts(labels, predicted, base_predicted != predicted, num_classes)
    tested = np.argwhere(base_only + head_only > 0)
    gained = base_only[tuple(tested.T)]
    lost = head_only[tuple(tested.T)]
    p = mcnemar_exact(gained, lost) if len(tested) else np.empty(0)
    adjusted = holm(p)
    balance = gained - lost
    order = np.lexsort((np.arange(len(p)), p, -np.abs(balance)))

    def row(place: int) -> dict[str, Any]:
        i, j = (int(number) for number in tested[place])
        rows = np.flatnonzero((labels == i) | (labels == j))
        other = np.where(labels[rows] == i, j, i)
        base_wrong = base_predicted[rows] == other
        head_wrong = predicted[rows] == other
        apart = bootstrap.interval_of_mean(base_wrong.astype(np.float64) - head_wrong)
        return apart.fields("difference") | {
            "first": i,
            "second": j,
            "names": [class_names[i], class_names[j]],
            "clips": len(rows),
            "baseline_confused": int(base_wrong.sum()),
            "head_confused": int(head_wrong.sum()),
            "only_baseline": int(gained[place]),
            "only_head": int(lost[place]),
            "p": float(p[place]),
            "p_holm": float(adjusted[place]),
        }

    better, worse = (order[sign * balance[order] > 0][:limit] for sign in (1, -1))
    there = int((np.bincount(labels, minlength=num_classes) > 0).sum())
    return {
        "num_pairs": there * (there - 1) // 2,
        "num_tested": len(tested),
        "correction": "holm",
        "separated": [row(place) for place in better],
        "merged": [row(place) for place in worse],
    }


def _pair_counts(
    labels: np.ndarray, predicted: np.ndarray, counted: np.ndarray, num_classes: int
) -> np.ndarray:
    """Counted clips that were taken for another class, by pair: int64 `[K, K]`, upper triangle."""
    rows = np.flatnonzero(counted & (predicted != labels))
    low = np.minimum(labels, predicted)[rows]
    high = np.maximum(labels, predicted)[rows]
    return count_table(low, high, (num_classes, num_classes))


# ---- gates beside need: do neurons with more temporal channels serve classes that need time more?
#
# Measured with the same head on the same maps, in order and with their order in time taken away
# (`scoring.disturb_time`):
# `need(clip) = p(true class | maps in order) - p(true class | out of order)`: what the head loses.
# Choice: the head's own loss, since the baseline and the linear probe pool time away first and lose
# nothing by construction. So a neuron's own need isn't independent of its gates: one that uses time
# loses more. The need of classes, averaged over the clips a neuron serves, suffers less from that,
# and less the more neurons serve a class.


def class_need(
    probabilities: np.ndarray, without_time: np.ndarray, labels: np.ndarray
) -> dict[str, list[Any]]:
    """Need of each class, K entries a column; None where a class has no clips.

    Returns:
        "clips", "accuracy" in order, "accuracy_without_time", "accuracy_drop" (their difference),
        "need" (mean of need(clip)).
    """
    num_classes = probabilities.shape[1]
    clips = np.bincount(labels, minlength=num_classes)

    def mean(values: np.ndarray) -> list[float | None]:
        sums = np.bincount(labels, weights=values, minlength=num_classes)
        return [float(s / n) if n else None for s, n in zip(sums, clips, strict=True)]

    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    still = (without_time.argmax(axis=1) == labels).astype(np.float64)
    return {
        "clips": clips.tolist(),
        "accuracy": mean(right),
        "accuracy_without_time": mean(still),
        "accuracy_drop": mean(right - still),
        "need": mean(clip_need(probabilities, without_time, labels)),
    }


def clip_need(
    probabilities: np.ndarray, without_time: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """need(clip), -1..1, float64 `[n]`."""
    rows = np.arange(len(labels))
    kept = without_time[rows, labels].astype(np.float64)
    return probabilities[rows, labels].astype(np.float64) - kept


def describe_gates(
    temporal_share: Sequence[float],
    neurons: np.ndarray,
    labels: np.ndarray,
    need: np.ndarray | None,
    *,
    num_permutations: int,
    seed: int,
) -> dict[str, Any]:
    """What routing.json says of one layer under "gates".

    Args:
        temporal_share: per neuron, share of channels that go to the temporal operator `[N]`.
        neurons: chosen neuron of each clip, int `[n]`.
        need: need(clip) `[n]`, or None where it was not measured.

    Returns:
        "temporal_share" `[N]`; where need was measured: "clip_need" `[N]`, mean need of the clips
        of each neuron; "class_need" `[N]`, mean over its clips of the need of their class (None for
        dead neurons); "rank_correlation" (Spearman) of temporal_share with class_need over
        neurons that have clips, and its two-sided "p" by permuting neurons; None below 3 neurons or
        where either is constant.
    """
    shares = [float(share) for share in temporal_share]
    if need is None:
        return {"temporal_share": shares}
    of_class = np.bincount(labels, weights=need) / np.maximum(np.bincount(labels), 1)
    counts = np.bincount(neurons, minlength=len(shares))
    own, classes = (
        [
            float(total / count) if count else None
            for total, count in zip(
                np.bincount(neurons, weights=values, minlength=len(shares)), counts, strict=True
            )
        ]
        for values in (need, of_class[labels])
    )
    live = counts > 0
    correlation, p = _rank_correlation(
        np.asarray(shares)[live],
        np.asarray([value for value in classes if value is not None]),
        num_permutations,
        seed,
    )
    return {
        "temporal_share": shares,
        "clip_need": own,
        "class_need": classes,
        "rank_correlation": correlation,
        "p": p,
    }


def _rank_correlation(
    shares: np.ndarray, needs: np.ndarray, num_permutations: int, seed: int
) -> tuple[float | None, float | None]:
    if len(shares) < 3 or np.ptp(shares) < 1e-12 or np.ptp(needs) < 1e-12:
        return None, None
    ranks = stats.rankdata(shares)
    others = stats.rankdata(needs)
    found = float(np.corrcoef(ranks, others)[0, 1])
    generator = np.random.default_rng(seed)
    draws = [
        np.corrcoef(generator.permutation(ranks), others)[0, 1] for _ in range(num_permutations)
    ]
    as_far = (np.abs(draws) >= abs(found) - 1e-12).sum()
    return found, float((1 + as_far) / (1 + num_permutations))


# ---- whether clips of one neuron look alike: cosines of their pooled features, within and across
#
# Choice: features are centred first (minus their mean over all clips), since uncentred pooled maps
# of different clips all point in nearly the same direction, which puts every cosine near 1.


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
    num_inside = pairs.sum()
    outside = len(neurons) * (len(neurons) - 1.0) - num_inside
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
    small = directions.astype(np.float32)
    squares = (directions**2).sum(axis=1)
    generator = np.random.default_rng(seed)
    deals = [neurons, *(generator.permutation(neurons) for _ in range(num_permutations))]
    means = [pair_cosines(small, deal, num_neurons, squares)["within"] for deal in deals]
    null = np.asarray(means[1:])
    return result | {
        "within_null": float(null.mean()),
        "within_null_high": float(np.quantile(null, 0.95)),
        "p": float((1 + (null >= means[0] - 1e-9).sum()) / (1 + num_permutations)),
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
