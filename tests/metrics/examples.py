"""Answers for tests: random ones, and ones that are given clip by clip."""

from __future__ import annotations

import numpy as np

from dsts_pipeline.metrics import Predictions


def random_answers(seed, num_clips=200, num_classes=7, present=None, sharpness=2.0):
    """Probabilities without ties, a head that is right more often than chance; float64 `[n, K]`.

    `present` are the classes that have clips; heads answer the others, too.
    """
    generator = np.random.default_rng(seed)
    present = np.arange(num_classes) if present is None else np.asarray(present)
    labels = present[generator.integers(len(present), size=num_clips)]
    logits = sharpness * generator.standard_normal((num_clips, num_classes))
    logits[np.arange(num_clips), labels] += 1.5
    powers = np.exp(logits)
    return powers / powers.sum(axis=1, keepdims=True), labels


def sure_answers(labels, answers, num_classes, prefix="clip", **columns):
    """Predictions that give all probability to `answers`."""
    ids = tuple(f"{prefix}{number}" for number in range(len(labels)))
    return Predictions(ids, np.asarray(labels), np.eye(num_classes)[list(answers)], **columns)
