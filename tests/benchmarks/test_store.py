"""The summary of the feature store's benchmark."""

from __future__ import annotations

import pytest

from benchmarks.store import summarise


def test_a_way_that_was_held_up_has_a_ratio_to_divide_by():
    found = summarise([{"base": (0.01, 0.01), "held up": (100.0, 1.0)}], 1000, "base")
    assert found["held up"]["ratio"] == pytest.approx(1e-4)
    assert found["held up"]["ratios"] == pytest.approx([1e-4])
