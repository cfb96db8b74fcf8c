"""Rules of mirroring: labels, and pairs that do not fit the classes."""

from __future__ import annotations

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.clips.flips import FlipRule
from tests.pipeline import params_of

NAMES = ("Moving left", "Moving right", "Holding", "Dropping")


def test_allowed_keeps_every_label():
    assert [FlipRule().map_label(n) for n in range(4)] == [0, 1, 2, 3]


def test_mapped_pairs_swap_and_others_stay():
    rule = FlipRule("label_mapped", ((0, 1),))
    assert [rule.map_label(n) for n in range(4)] == [1, 0, 2, 3]
    rule.check(NAMES)


def test_forbidden_has_no_label():
    with pytest.raises(SettingsError, match="dataset.flip is forbidden"):
        FlipRule("forbidden").map_label(0)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (((0, 4),), "no class 4; expected 0 to 3"),
        (((0, 1), (1, 2)), r"\[1, 2\] repeats a class"),
        (((2, 2),), r"\[2, 2\] repeats a class"),
        (((0, 2),), "'Moving left' with 'Holding', which is not its mirror image"),
    ],
)
def test_pairs_that_do_not_fit_are_named(pairs, message):
    with pytest.raises(SettingsError, match=message):
        FlipRule("label_mapped", pairs).check(NAMES)


@pytest.mark.parametrize(
    "overrides",
    [["dataset.flip=label_mapped"], ["dataset.flip_pairs=[[0, 1]]"]],
)
def test_pairs_and_kind_must_agree(repository, overrides):
    with pytest.raises(SettingsError, match="expected pairs with label_mapped, and none otherwise"):
        load_settings(params_of(), overrides)
