"""Plans fitted to few clips keep their keys, and go through the batches that they did alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.learn.ablation import RunPlan, Runs, stream_of
from tests.learn.recipes import recipe
from tests.stages.ready_store import make_ready

HEAD = HeadSettings(num_neurons=2, num_layers=1, width=4)


def plan(name="full", kind="dsts", **options):
    return RunPlan(name, kind, HEAD, recipe(num_epochs=1, **options))


def fit(folder, *plans, num_train=12, groups=None):
    sizes = {"num_train": num_train, "num_test": 32 - num_train}
    store = open_store(make_ready(folder, **sizes, groups=groups))
    sizes = store.map_shape[0], len(store.class_names)
    runs = Runs(folder / "runs", Path("checkpoints"), store.fingerprint, sizes, None, {})
    (fitted,) = runs.fit(plans, [store])
    return fitted


@pytest.mark.parametrize(
    ("num_train", "options"),
    [
        (24, {"batch_size": 8, "heldout_fraction": 0.25}),
        (24, {"batch_size": 12, "heldout_fraction": 0.0}),
        (12, {"batch_size": 32, "heldout_fraction": 0.5, "udl": False}),
        (12, {"batch_size": 3, "heldout_fraction": 0.5}),
    ],
)
def test_what_trained_before_keeps_its_recipe_and_key(tmp_path, num_train, options):
    asked = plan(**options), plan("linear_probe", "linear_probe", **options | {"udl": False})
    fitted = fit(tmp_path, *asked, num_train=num_train)
    assert [one.recipe for one in fitted] == [one.recipe for one in asked]
    assert [one.key("s", None) for one in fitted] == [one.key("s", None) for one in asked]


def test_variants_of_the_same_batches_are_cut_alike(tmp_path):
    few = {"batch_size": 32, "heldout_fraction": 0.1}
    probe = plan("linear_probe", "linear_probe", udl=False, **few)
    larger = plan("larger", udl=False, **few | {"batch_size": 64})
    full, cut, as_set = fit(tmp_path, plan(**few), probe, larger)
    assert (full.recipe.train.batch_size, full.recipe.train.heldout_fraction) == (6, 0.0)
    assert cut.recipe.train == full.recipe.train and cut.adapted == full.adapted != ""
    assert as_set.recipe.train.batch_size == 64, "one batch of all clips needs no cut"
    assert as_set.adapted.endswith("can't choose an epoch: none is held out, the last epoch counts")


def test_what_was_told_is_no_part_of_the_key(tmp_path):
    (fitted,) = fit(tmp_path, plan(batch_size=32, heldout_fraction=0.1))
    as_set = plan(batch_size=6, heldout_fraction=0.0)
    assert fitted.adapted and fitted.key("s", None) == as_set.key("s", None)


GROUPS = [f"player {number % 4}" for number in range(32)]


@pytest.mark.parametrize(
    ("options", "own_batches"),
    [
        ({"validation_by": "group"}, {"udl"}),
        ({"class_balanced": True}, {"udl"}),
        ({}, set()),
    ],
)
def test_only_what_goes_through_other_batches_trains_in_a_pass_of_its_own(
    tmp_path, options, own_batches
):
    few = options | {"batch_size": 4, "heldout_fraction": 0.0}
    nothing_upstream = HEAD.model_copy(update={"num_layers": 0})
    plans = [
        plan("udl", **few),
        plan("plain", **few, udl=False),
        plan("probe", "linear_probe", **few, udl=False),
        dataclasses.replace(plan("no layers", **few), head=nothing_upstream),
    ]
    fitted = fit(tmp_path, *plans, num_train=24, groups=GROUPS)
    common = stream_of(fitted[1])
    assert {one.name for one in fitted if stream_of(one) != common} == own_batches
    assert [one.key("s", None) for one in fitted] == [one.key("s", None) for one in plans]


@pytest.mark.parametrize(("groups", "told"), [(None, "tell no groups"), (["a"] * 32, "one group")])
def test_batches_of_different_groups_that_cannot_be_are_told_before_a_training(
    tmp_path, groups, told
):
    options = {"batch_size": 4, "heldout_fraction": 0.0, "validation_by": "group"}
    with pytest.raises(SettingsError, match=told):
        fit(tmp_path, plan(**options), num_train=24, groups=groups)
    fit(tmp_path, plan(**options, udl=False), num_train=24, groups=groups)
