"""What one head said about every clip, in memory and in one columnar file.

Enters: clip ids, labels, class probabilities and, for heads that route, the chosen neurons, a row
per view. Leaves: a checked `Predictions`, a row per clip, and an npz file of its arrays by name,
with a digest of all of them that is compared when it is read. It loads without running code (no
pickle).
"""

from __future__ import annotations

import hashlib
import io
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.base.files import write_atomic
from dsts_pipeline.metrics.accuracy import top_k_hits

_ROW_SUM_TOLERANCE = 1e-2
_DIGEST = "sha256"
# What a damaged archive raises besides, depending on where it is hit.
_DAMAGE = (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, struct.error)


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers of one head, one row a clip.

    Args:
        clip_ids: n distinct names.
        labels: true classes, int `[n]`, each in 0..K-1.
        probabilities: float32 `[n, K]`, rows summing to one.
        neurons: chosen neuron per layer, int16 `[n, L]`; None for heads that do not route. Of a
            clip's first view, where there are several.
        view_clips: clip (0..n-1) of each view, int64 `[m]`, where clips have several views and
            the head routes; `average_views` gives it.
        view_neurons: chosen neurons of each view, int16 `[m, L]`; with `view_clips` or None.

    Raises:
        DataError: Shapes disagree, a label is out of range, an id repeats, or a probability is
            not a finite number (which would otherwise count as a wrong answer in silence).
    """

    clip_ids: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    neurons: np.ndarray | None = None
    view_clips: np.ndarray | None = None
    view_neurons: np.ndarray | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "clip_ids", tuple(str(name) for name in self.clip_ids))
        set_field(self, "labels", np.asarray(self.labels, np.int64))
        set_field(self, "probabilities", np.asarray(self.probabilities, np.float32))
        if self.neurons is not None:
            set_field(self, "neurons", np.asarray(self.neurons, np.int16))
        if self.view_clips is not None and self.view_neurons is not None:
            set_field(self, "view_clips", np.asarray(self.view_clips, np.int64))
            set_field(self, "view_neurons", np.asarray(self.view_neurons, np.int16))
        self._check()

    def _check(self) -> None:
        num_clips = len(self.clip_ids)
        if self.probabilities.ndim != 2 or self.labels.shape != (num_clips,):
            raise DataError(f"predictions: expected [n, K] and [n] for n = {num_clips}, got {self}")
        if self.probabilities.shape[0] != num_clips or num_clips == 0:
            raise DataError(
                f"predictions: expected one row per clip and at least one, got {self}; "
                "evaluate a split that has clips"
            )
        if self.neurons is not None and (self.neurons.ndim, len(self.neurons)) != (2, num_clips):
            raise DataError(f"predictions: expected neurons [n, L], n = {num_clips}, got {self}")
        if self.neurons is not None and self.neurons.size and self.neurons.min() < 0:
            raise DataError("predictions: a chosen neuron is negative; expected 0..N-1")
        self._check_views()
        if len(set(self.clip_ids)) != num_clips:
            twice = next(name for name in self.clip_ids if self.clip_ids.count(name) > 1)
            raise DataError(f"predictions: clip {twice!r} appears twice; evaluate each clip once")
        self._check_values()

    def _check_views(self) -> None:
        if self.view_clips is None and self.view_neurons is None:
            return
        if self.view_clips is None or self.view_neurons is None or self.neurons is None:
            raise DataError("predictions: routes of views need their clips, and those of clips")
        clips = set(self.view_clips.tolist())
        shape = (len(self.view_clips), self.neurons.shape[1])
        if self.view_neurons.shape != shape or clips != set(range(len(self))):
            raise DataError(
                f"predictions: expected neurons {list(shape)} of views of all {len(self)} clips, "
                f"got {list(self.view_neurons.shape)} of {len(clips)} clips"
            )

    def _check_values(self) -> None:
        bad = ~np.isfinite(self.probabilities).all(axis=1)
        bad |= np.abs(self.probabilities.sum(axis=1, dtype=np.float64) - 1) > _ROW_SUM_TOLERANCE
        if bad.any():
            raise DataError(
                f"predictions: clip {self.clip_ids[int(bad.argmax())]!r} and {int(bad.sum()) - 1} "
                "more have probabilities that are not finite or do not sum to one; pass softmax "
                "output of a head whose training did not diverge"
            )
        outside = (self.labels < 0) | (self.labels >= self.num_classes)
        if outside.any():
            row = int(outside.argmax())
            raise DataError(
                f"predictions: clip {self.clip_ids[row]!r} has label {int(self.labels[row])}, "
                f"expected 0..{self.num_classes - 1}"
            )

    def __repr__(self) -> str:
        neurons = None if self.neurons is None else list(self.neurons.shape)
        return (
            f"Predictions(clips={len(self.clip_ids)}, labels={list(self.labels.shape)}, "
            f"probabilities={list(self.probabilities.shape)}, neurons={neurons})"
        )

    def __len__(self) -> int:
        return len(self.clip_ids)

    @property
    def num_classes(self) -> int:
        """K."""
        return int(self.probabilities.shape[1])

    @cached_property
    def predicted(self) -> np.ndarray:
        """The most probable class of each clip, int64 `[n]`; ties go to the lowest index."""
        return self.probabilities.argmax(axis=1)

    def hits(self, k: int = 1) -> np.ndarray:
        """Whether each clip's true class is among the k most probable: bool `[n]`."""
        return top_k_hits(self.probabilities, self.labels, k)

    def routes(self) -> tuple[np.ndarray, np.ndarray]:
        """Chosen neurons `[m, L]` and the class `[m]` of every view that was routed."""
        assert self.neurons is not None
        if self.view_clips is None or self.view_neurons is None:
            return self.neurons, self.labels
        return self.view_neurons, self.labels[self.view_clips]

    def of_clips(self, names: Collection[str]) -> Predictions:
        """The rows of the named clips alone, in their order, without the routes of other views."""
        rows = np.asarray([name in names for name in self.clip_ids])
        return Predictions(
            tuple(name for name in self.clip_ids if name in names),
            self.labels[rows],
            self.probabilities[rows],
            None if self.neurons is None else self.neurons[rows],
        )

    def save(self, path: str | Path) -> None:
        """Write the arrays that there are to `path` (npz, compressed, whole or not at all)."""
        arrays = {
            "clip_ids": np.asarray(self.clip_ids, dtype=np.str_),
            "labels": self.labels,
            "probabilities": self.probabilities,
        }
        if self.neurons is not None:
            arrays["neurons"] = self.neurons
        if self.view_clips is not None and self.view_neurons is not None:
            arrays |= {"view_clips": self.view_clips, "view_neurons": self.view_neurons}
        arrays[_DIGEST] = np.asarray(_digest(arrays))
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **arrays)
        write_atomic(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> Predictions:
        """Read a file that `save` wrote.

        Raises:
            DataError: The file is missing, damaged or holds other arrays.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {name: file[name] for name in file.files}
            expected = arrays.pop(_DIGEST, None)  # files of earlier releases have none
            if expected is not None and str(expected) != _digest(arrays):
                raise ValueError("changed after it was written, its digest does not hold")
            names = ("neurons", "view_clips", "view_neurons")
            optional = {name: arrays[name] for name in names if name in arrays}
            clip_ids = tuple(arrays["clip_ids"].tolist())
            return cls(clip_ids, arrays["labels"], arrays["probabilities"], **optional)
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; run `python cli.py evaluate`") from None
        except (OSError, ValueError, KeyError, EOFError, *_DAMAGE) as error:
            raise DataError(
                f"{path}: not a predictions file ({error}); run `python cli.py evaluate` again"
            ) from None


def _digest(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def align(first: Predictions, second: Predictions) -> Predictions:
    """`second` with its rows in the order of `first`.

    Raises:
        DataError: The two cover different clips or disagree on a label, so that comparing them
            clip by clip would mean nothing.
    """
    if set(first.clip_ids) != set(second.clip_ids):
        odd = sorted(set(first.clip_ids) ^ set(second.clip_ids))
        raise DataError(
            f"predictions cover different clips: {len(odd)} are in one only, such as {odd[0]!r}; "
            "evaluate both heads on the same store and split"
        )
    place = {name: row for row, name in enumerate(second.clip_ids)}
    rows = np.asarray([place[name] for name in first.clip_ids])
    if not np.array_equal(first.labels, second.labels[rows]):
        raise DataError("predictions disagree on labels; evaluate both heads on the same store")
    neurons = None if second.neurons is None else second.neurons[rows]
    views = None if second.view_clips is None else np.argsort(rows)[second.view_clips]
    return Predictions(
        first.clip_ids,
        first.labels,
        second.probabilities[rows],
        neurons,
        view_clips=views,
        view_neurons=second.view_neurons,
    )


def join_folds(parts: Sequence[Predictions]) -> Predictions:
    """The answers of several heads on clips of their own as one, without routes.

    A neuron of one head is none of another's.

    Raises:
        DataError: Two of them answered one clip.
    """
    return Predictions(
        tuple(name for part in parts for name in part.clip_ids),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.probabilities for part in parts]),
    )


def softmax(logits: ArrayLike) -> np.ndarray:
    """Class probabilities `[n, K]` (float32) of logits `[n, K]`, computed in float64."""
    values = np.asarray(logits, np.float64)
    powers = np.exp(values - values.max(axis=1, keepdims=True))
    return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)


# ---- what figures are made of -------------------------------------------------------------------


@dataclass(frozen=True)
class HeadResult:
    """One head's answers and what the tables say about it.

    Args:
        title: name for people, such as "DSTS head (N = 10, L = 3)".
        predictions: its answers on the split.
        num_parameters: of the head alone, without the backbone.
        num_neurons: N; needed where `predictions.neurons` is given.
        temporal_share: per layer and neuron, the share of channels whose gate is open to the
            temporal operator, `[L][N]`; None where there are no gates.
        features: pooled maps of each clip's first view `[n, C]`, in the predictions' order; None
            leaves out how similar the clips of a neuron are.
        without_time: class probabilities `[n, K]` on the same maps with their order in time taken
            away; None leaves out which classes need time.
    """

    title: str
    predictions: Predictions
    num_parameters: int
    num_neurons: int | None = None
    temporal_share: Sequence[Sequence[float]] | None = None
    features: np.ndarray | None = None
    without_time: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name, width in (("features", None), ("without_time", self.predictions.num_classes)):
            array = getattr(self, name)
            if array is None:
                continue
            if len(array) != len(self.predictions) or width not in (None, array.shape[1]):
                raise ValueError(f"{name} {array.shape} do not fit {self.predictions}")


@dataclass(frozen=True)
class Denominators:
    """Out of how many: `evaluated` clips have predictions, `failed` could not be decoded or
    extracted (in any view), `missing` are annotated but had no usable file. The three are
    disjoint, and count clips, however many views a clip has."""

    evaluated: int
    failed: int = 0
    missing: int = 0


# ---- several views of a clip, one answer --------------------------------------------------------
#
# Choice: the mean of the views' class probabilities, not of their logits, as is usual with test
# crops: a view that is sure then weighs no more than its probability says. Everything that is
# counted afterwards counts clips. What a head's neurons did is counted view by view instead: each
# view is routed by itself, and a mean of routes is no route.


def average_views(
    clip_ids: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    neurons: np.ndarray | None = None,
) -> Predictions:
    """One row per clip, in the order of the clips' first views.

    `p(clip) = 1 / V sum_v p(view v)` over the V views that there are.

    Args:
        clip_ids: m names; the views of a clip share one.
        labels: int `[m]`.
        probabilities: `[m, K]`, rows summing to one.
        neurons: chosen neuron per layer, int `[m, L]`, or None.

    Raises:
        DataError: Views of one clip have different labels, or see `Predictions`.
    """
    names = np.asarray(clip_ids, dtype=np.str_)
    labels = np.asarray(labels)
    _, first, clip_of_row, counts = np.unique(
        names, return_index=True, return_inverse=True, return_counts=True
    )
    if len(first) == len(names):
        return Predictions(tuple(clip_ids), labels, probabilities, neurons)
    appearance = np.argsort(first)
    clip_of_row = np.argsort(appearance)[clip_of_row]
    first = first[appearance]
    counts = counts[appearance]
    if (odd := labels != labels[first][clip_of_row]).any():
        clip = str(names[int(odd.argmax())])
        raise DataError(f"clip {clip!r}: its views have different labels; extract again")
    sums = np.zeros((len(first), np.shape(probabilities)[1]), dtype=np.float64)
    np.add.at(sums, clip_of_row, probabilities)
    return Predictions(
        clip_ids=tuple(names[first].tolist()),
        labels=labels[first],
        probabilities=sums / counts[:, None],
        neurons=None if neurons is None else np.asarray(neurons)[first],
        view_clips=None if neurons is None else clip_of_row,
        view_neurons=neurons,
    )


@dataclass(frozen=True)
class ViewCounts:
    """How many views the clips of a split have.

    Args:
        per_clip: views planned for a clip (the most, should they differ).
        num_clips: clips of which at least one view exists.
        incomplete: `(clip id, views that exist, views planned)` of clips that lack some.
        failed: ids of clips that have no view at all.
        num_joined: stored views, one after another in time, that one of these views is made of.
    """

    per_clip: int
    num_clips: int
    incomplete: tuple[tuple[str, int, int], ...]
    failed: tuple[str, ...]
    num_joined: int = 1

    def describe(self) -> dict[str, Any] | None:
        """What metrics.json says under "views"; None where every clip has one, of one stored."""
        if self.per_clip <= 1 and self.num_joined == 1:
            return None
        lacking = [
            {"id": name, "stored": stored, "planned": planned}
            for name, stored, planned in self.incomplete
        ]
        joined = {"joined": self.num_joined} if self.num_joined > 1 else {}
        described = {"per_clip": self.per_clip, "averaged": "probabilities", "incomplete": lacking}
        return described | joined


def count_views(
    clip_ids: Sequence[str], failures: Sequence[Mapping[str, Any]], *, num_joined: int = 1
) -> ViewCounts:
    """Count the views of a split's clips.

    Args:
        clip_ids: the clip of each view that exists.
        failures: an entry with the clip's "id" for each view that failed.
        num_joined: see `ViewCounts`.
    """
    stored = Counter(str(name) for name in clip_ids)
    lost = Counter(str(failure["id"]) for failure in failures)
    planned = stored + lost
    return ViewCounts(
        per_clip=max(planned.values(), default=0),
        num_clips=len(stored),
        incomplete=tuple(
            (name, stored[name], planned[name]) for name in sorted(lost) if name in stored
        ),
        failed=tuple(name for name in sorted(lost) if name not in stored),
        num_joined=num_joined,
    )
