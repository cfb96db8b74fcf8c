"""Plans fitted to few clips: those that trained before stay what they are, keys included."""

from __future__ import annotations

from pathlib import Path

import pytest

from dsts_pipeline.base.settings import HeadSettings
from dsts_pipeline.feature_store import open_store
from dsts_pipeline.learn.ablation import RunPlan, Runs, stream_of
from tests.learn.recipes import recipe
from tests.stages.ready_store import make_ready

HEAD = HeadSettings(num_neurons=2, num_layers=1, width=4)


def plan(name="full", kind="dsts", **options):
    return RunPlan(name, kind, HEAD, recipe(num_epochs=1, **options))


def fit(folder, *plans, num_train=12):
    store = open_store(make_ready(folder, num_train=num_train, num_test=32 - num_train))
    sizes = store.map_shape[0], len(store.class_names)
    runs = Runs(folder / "runs", Path("checkpoints"), store.fingerprint, sizes, None, {})
    (fitted,) = runs.fit(plans, [store])
    return fitted


@pytest.mark.parametrize(
    ("num_train", "options"),
    [
        (24, {"batch_size": 8, "heldout_fraction": 0.25}),
        (24, {"batch_size": 12, "heldout_fraction": 0.0}),
        (12, {"batch_size": 32, "heldout_fraction": 0.1, "udl": False}),
        (12, {"batch_size": 4, "heldout_fraction": 0.1}),
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
    assert as_set.recipe == larger.recipe and not as_set.adapted, "it trained before"


def test_what_was_told_is_no_part_of_the_key(tmp_path):
    (fitted,) = fit(tmp_path, plan(batch_size=32, heldout_fraction=0.1))
    as_set = plan(batch_size=6, heldout_fraction=0.0)
    assert fitted.adapted and fitted.key("s", None) == as_set.key("s", None)


def test_pairs_of_different_groups_take_a_pass_of_their_own():
    plain = plan("plain")
    by_clip = plan("by clip", udl=True)
    by_group = plan("by group", udl=True, validation_by="group")
    off = plan("off", udl=False, validation_by="group")
    assert stream_of(plain) == stream_of(by_clip) == stream_of(off) != stream_of(by_group)
