"""Predictions on disk and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest

from dsts_pipeline.base.errors import DataError
from dsts_pipeline.metrics.predictions import Predictions, align, softmax


def _make(num_clips=4, num_classes=3, neurons=True):
    generator = np.random.default_rng(0)
    return Predictions(
        clip_ids=tuple(f"clip {i} <b>é</b>" for i in range(num_clips)),
        labels=generator.integers(num_classes, size=num_clips),
        probabilities=softmax(generator.normal(size=(num_clips, num_classes))),
        neurons=generator.integers(5, size=(num_clips, 2)) if neurons else None,
    )


@pytest.mark.parametrize("neurons", [True, False])
def test_save_and_load_round_trip(tmp_path, neurons):
    before = _make(neurons=neurons)
    before.save(tmp_path / "deep" / "dsts.npz")
    after = Predictions.load(tmp_path / "deep" / "dsts.npz")
    assert after.clip_ids == before.clip_ids
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.probabilities, before.probabilities)
    assert after.probabilities.dtype == np.float32
    if neurons:
        assert after.neurons.dtype == np.int16
        np.testing.assert_array_equal(after.neurons, before.neurons)
    else:
        assert after.neurons is None


def test_same_predictions_same_bytes(tmp_path):
    _make().save(tmp_path / "a.npz")
    _make().save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_missing_and_damaged_files_say_what_to_run(tmp_path):
    with pytest.raises(DataError, match="no such file; run `python cli.py evaluate`"):
        Predictions.load(tmp_path / "none.npz")
    path = tmp_path / "dsts.npz"
    _make().save(path)
    for content in (b"", b"nonsense", path.read_bytes()[:200]):
        path.write_bytes(content)
        with pytest.raises(DataError, match="not a predictions file"):
            Predictions.load(path)


def test_a_file_with_pickled_objects_is_not_run(tmp_path):
    path = tmp_path / "evil.npz"
    np.savez(path, clip_ids=np.array([{}], dtype=object))
    with pytest.raises(DataError, match="not a predictions file"):
        Predictions.load(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, r"expected \[n, K\] and \[n\] for n = 3"),
        ({"labels": [0, 1, 2]}, "clip 'c' has label 2, expected 0..1"),
        ({"clip_ids": ("a", "b", "a")}, "'a' appears twice"),
        ({"probabilities": [[0.5, 0.5], [np.nan, 1], [1, 0]]}, "clip 'b' and 0 more"),
        ({"probabilities": [[0.5, 0.5], [0.5, 0.5], [3, 1]]}, "clip 'c' and 0 more"),
        ({"neurons": [[0], [1]]}, r"expected neurons \[n, L\], n = 3"),
        ({"neurons": [[0], [-1], [1]]}, "negative"),
    ],
)
def test_inconsistent_predictions_are_refused(change, message):
    fields = {
        "clip_ids": ("a", "b", "c"),
        "labels": [0, 1, 0],
        "probabilities": [[0.5, 0.5]] * 3,
    }
    with pytest.raises(DataError, match=message):
        Predictions(**(fields | change))


def test_no_clips_at_all_are_refused():
    with pytest.raises(DataError, match="at least one"):
        Predictions((), np.zeros(0, int), np.zeros((0, 3)))


def test_align_reorders_by_clip_and_refuses_other_clips():
    first = _make()
    rows = np.array([2, 0, 3, 1])
    second = Predictions(
        tuple(first.clip_ids[row] for row in rows),
        first.labels[rows],
        first.probabilities[rows],
        first.neurons[rows],
    )
    again = align(first, second)
    np.testing.assert_array_equal(again.probabilities, first.probabilities)
    np.testing.assert_array_equal(again.neurons, first.neurons)
    with pytest.raises(DataError, match="1 are in one only"):
        align(first, _make(num_clips=5))


def test_softmax_of_large_logits_is_finite():
    np.testing.assert_allclose(softmax([[1e4, 0.0], [-1e4, -1e4]]), [[1, 0], [0.5, 0.5]])


def test_a_changed_bit_is_refused_or_changes_nothing(tmp_path):
    """Dates of the archive's members are the only bytes that say nothing."""
    path, before = tmp_path / "dsts.npz", _make(num_clips=40)
    before.save(path)
    content, refused = path.read_bytes(), 0
    for byte in range(0, len(content), 2):
        changed = bytearray(content)
        changed[byte] ^= 1 << byte % 7
        path.write_bytes(bytes(changed))
        try:
            after = Predictions.load(path)
        except DataError as error:
            assert "not a predictions file" in str(error)
            refused += 1
            continue
        assert after.clip_ids == before.clip_ids
        np.testing.assert_array_equal(after.labels, before.labels)
        np.testing.assert_array_equal(after.probabilities, before.probabilities)
        np.testing.assert_array_equal(after.neurons, before.neurons)
    assert refused > len(content) / 4


def test_rolled_answers_are_refused_and_files_without_a_digest_are_read(tmp_path):
    path = tmp_path / "dsts.npz"
    _make().save(path)
    arrays = dict(np.load(path))
    probabilities = arrays["probabilities"]
    np.savez(path, **(arrays | {"probabilities": np.roll(probabilities, 1, axis=0)}))
    with pytest.raises(DataError, match="its digest does not hold"):
        Predictions.load(path)
    del arrays["sha256"]  # as earlier releases wrote it
    np.savez(path, **arrays)
    np.testing.assert_array_equal(Predictions.load(path).probabilities, probabilities)
