"""Wrong combinations are explained before a map is read: every map of these stores is damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.head import DSTSHead, LinearProbe, save_head
from dsts_pipeline.learn import check_clips, train_head
from tests.learn.recipes import how, recipe
from tests.learn.small_feed import ordered_feed
from tests.pipeline import params_of, run_cli, tell_plainly
from tests.stages.ready_store import QUICK, damage_clips, make_ready

PARAMS = params_of()


@pytest.fixture(scope="module")
def damaged(tmp_path_factory) -> Path:
    """A run's folder whose store opens and can't be read: but for the first clips."""
    folder = tmp_path_factory.mktemp("damaged")
    damage_clips(make_ready(folder), 16)
    return folder


def refuse(folder: Path, *command: str, **settings: object) -> str:
    """The message; nothing was written and no map was read, else a damaged one had been told."""
    before = sorted(folder.rglob("*"))
    told = tell_plainly(run_cli(folder, *command, **QUICK | settings))
    assert sorted(folder.rglob("*")) == before
    return told


def test_a_sound_combination_meets_the_damage(damaged):
    told = tell_plainly(run_cli(damaged, "train-head", **QUICK))
    assert "maps/c." in told and "damaged" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"head__num_layers": 0},
            "udl.enabled is true and head.num_layers 0: a head without layers",
        ),
        (
            {"head__bottleneck": 2},
            "head: bottleneck=2 and width=4 are two readings of the paper's size; set one of them "
            "to None (null)",
        ),
        (
            {"head__bottleneck": 7, "head__width": "null"},
            "head: bottleneck=7 is above in_channels=6",
        ),
        (
            {"head__readout": "attentive"},
            "head: 6 channels are no multiple of 8 attention heads; choose a number of heads that "
            "divides them (head.readout_heads)",
        ),
        (
            {"head__common_neuron": True, "head__specialization": "conv3d"},
            "head: common_neuron=True adds neurons by their fusions",
        ),
        (
            {"train__early_stopping_epochs": 2, "train__heldout_fraction": 0.0},
            "there is nothing to judge an epoch by",
        ),
    ],
)
def test_is_told_before_anything_runs(damaged, settings, expected):
    assert expected in refuse(damaged, "train-head", **settings)


def test_heads_of_another_store_are_refused_before_the_maps_are_read(damaged, tmp_path):
    shutil.copytree(damaged, tmp_path / "run")
    probe = tmp_path / "run" / "outputs" / "heads" / "linear_probe"
    save_head(probe, LinearProbe(6, 9), {"store": "0" * 32, "title": "a probe of 9 classes"})
    told = refuse(tmp_path / "run", "evaluate")
    assert f"trained on store {'0' * 32}, the features are those of" in told


def test_weights_of_another_head_are_refused_before_the_maps_are_read(damaged, tmp_path):
    shutil.copytree(damaged, tmp_path / "run")
    folder = tmp_path / "run" / "outputs" / "heads" / "dsts"
    fingerprint = Path(json.loads((damaged / "outputs/features.json").read_text())["store"]).name
    for neurons in (2, 3):
        save_head(tmp_path / f"{neurons}", DSTSHead.paper(6, 4, num_neurons=neurons), {})
    save_head(folder, DSTSHead.paper(6, 4, num_neurons=2), {"store": fingerprint, "title": "DSTS"})
    shutil.copy(tmp_path / "3" / "head.safetensors", folder / "head.safetensors")
    assert "damaged, or of another head" in refuse(tmp_path / "run", "evaluate")


# ---- the same in code -------------------------------------------------------------------------


def test_settings_that_do_not_fit_together_are_never_loaded():
    with pytest.raises(SettingsError, match="no upstream parameters"):
        load_settings(PARAMS, ["head.num_layers=0"])
    assert load_settings(PARAMS, ["head.num_layers=0", "udl.enabled=false"]).head.num_layers == 0


def labelled_store(labels, num_classes=4):
    store = ordered_feed(len(labels)).store
    store.labels, store.location = np.asarray(labels), "stores/x"
    store.class_names = tuple(f"class{k}" for k in range(num_classes))
    return store


def check(labels, *, paired=True, world_size=1, num_classes=4, **options):
    store = labelled_store(labels, num_classes)
    chosen = recipe(num_epochs=1, **{"batch_size": 8} | options)
    check_clips(store, np.arange(len(labels)), chosen, paired=paired, world_size=world_size)


def test_a_class_that_the_store_does_not_name_is_told_with_its_clip():
    with pytest.raises(SettingsError, match="clip clip3 is of class 3, and the store names 3"):
        check(np.arange(32) % 4, num_classes=3)


def test_the_least_number_of_clips_is_what_it_says():
    check(np.arange(16) % 4)
    with pytest.raises(SettingsError, match="15 training clips, .* at least 16 .* at most 7, or"):
        check(np.arange(15) % 4)
    check(np.arange(3) % 4, paired=False)
    check(np.arange(32) % 4, world_size=2)
    with pytest.raises(SettingsError, match="8 on each of 2 processes; expected at least 32"):
        check(np.arange(31) % 4, world_size=2)


def test_early_stopping_without_a_held_out_clip():
    with pytest.raises(SettingsError, match="holds out none of 16 training clips"):
        check(np.arange(16), num_classes=16, heldout_fraction=0.1, early_stopping_epochs=1)


@pytest.mark.parametrize(
    ("sizes", "expected"), [((6, 5), "5 classes, and the store's maps have 4"), ((7, 4), "7 chan")]
)
def test_a_head_for_other_maps_or_classes(sizes, expected):
    with pytest.raises(SettingsError, match=expected):
        train_head(LinearProbe(*sizes), ordered_feed(), **how(num_epochs=1))
