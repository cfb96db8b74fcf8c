"""A run with feed.views=joined is the run of a store whose maps were joined by hand."""

from __future__ import annotations

import contextlib
import re

import numpy as np
import pytest
from safetensors.torch import load_file

from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.base.files import read_signed, write_json
from dsts_pipeline.base.params import load_settings
from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store
from dsts_pipeline.feature_store.opening import record_store
from dsts_pipeline.metrics import Predictions
from dsts_pipeline.metrics.summary import denominator_sentence
from stages import ablate, evaluate, export, finetune, search, train_head
from tests.pipeline import params_of
from tests.stages.ready_store import QUICK, make_ready

pytestmark = pytest.mark.slow
HEADS = ("linear_probe", "dsts")
SMALL = QUICK | {"train__loggers": "[]", "evaluate__num_bootstrap": 100, "ablate__num_seeds": 1}
SMALL |= {"ablate__grid": '["head.num_neurons=3"]'}


def settings_of(**changes):
    given = SMALL | changes
    return load_settings(
        params_of(), [f"{key.replace('__', '.')}={value}" for key, value in given.items()]
    )


def make_segments(folder, by_hand) -> None:
    """The maps of `by_hand`, each cut into two views of half of its time."""
    channels, steps, *area = by_hand.map_shape
    clips = zip(by_hand.video_ids, by_hand.labels.tolist(), by_hand.splits.tolist(), strict=True)
    plan = StorePlan(
        {"import": {"of": "tests"}, "views": {"segments": 2}},
        clips=[(*clip, view) for clip in clips for view in range(2)],
        class_names=by_hand.class_names,
        map_shape=(channels, steps // 2, *area),
        samples_per_shard=32,
    )
    maps = by_hand.read(np.arange(len(by_hand)))
    halves = np.stack(np.split(maps, 2, axis=2), axis=1).reshape(-1, *plan.map_shape)
    with StoreWriter(folder / "stores", plan) as writer:
        for shard in writer.claims():
            places = writer.shard_clips(shard)
            writer.write_shard(shard, halves[places.start : places.stop])
        path = writer.finish({"command": "tests"}).parent
    record = record_store(open_store(path).manifest, path)
    write_json(folder / "outputs" / "features.json", record)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of both, trained and evaluated."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("by_hand", "joined")}
    by_hand = open_store(make_ready(folders["by_hand"]))
    make_segments(folders["joined"], by_hand)
    for name, folder in folders.items():
        settings = settings_of(feed__views="joined" if name == "joined" else "separate")
        with contextlib.chdir(folder):
            train_head.run(settings)
            evaluate.run(settings)
    return folders


def test_heads_and_answers_are_the_same(runs):
    for name in HEADS:
        folders = [folder / "outputs" / "heads" / name for folder in runs.values()]
        ours, theirs = (load_file(folder / "head.safetensors") for folder in folders)
        assert ours.keys() == theirs.keys() and all((ours[k] == theirs[k]).all() for k in ours)
        extras = [read_signed(folder / "head.json")["extra"] for folder in folders]
        assert [extra.get("joined_views") for extra in extras] == [None, 2]
        answers = [
            Predictions.load(folder / "outputs/evaluation/predictions" / f"{name}.npz")
            for folder in runs.values()
        ]
        np.testing.assert_array_equal(answers[0].probabilities, answers[1].probabilities)
    metrics = read_signed(runs["joined"] / "outputs/evaluation/metrics.json")
    assert metrics["views"] == {
        "per_clip": 1,
        "averaged": "probabilities",
        "incomplete": [],
        "joined": 2,
    }
    assert denominator_sentence(metrics).endswith("Each map is of 2 views, joined in time.")


def test_separate_views_are_not_scored_by_a_head_of_joined_ones(runs, monkeypatch):
    monkeypatch.chdir(runs["joined"])
    with pytest.raises(CheckpointError, match="set feed.views to joined, or run"):
        evaluate.run(settings_of())
    monkeypatch.chdir(runs["by_hand"])
    with pytest.raises(Exception, match="one view in time"):
        evaluate.run(settings_of(feed__views="joined"))


def test_ablate_and_search_train_on_joined_maps_and_keep_the_readings_apart(
    runs, monkeypatch, capsys
):
    tables = []
    trials = []
    for name, folder in runs.items():
        views = "joined" if name == "joined" else "separate"
        monkeypatch.chdir(folder)
        ablate.run(settings_of(feed__views=views))
        found = read_signed(folder / "outputs/ablation/results.json")["variants"]
        answers = [variant["runs"][0]["predictions"] for variant in found.values()]
        loaded = [Predictions.load(folder / "outputs/ablation" / place) for place in answers]
        tables.append([one.probabilities.tobytes() for one in loaded])
        space = '["train.learning_rate=0.001,0.01"]'
        search.run(settings_of(feed__views=views, search__space=space, search__num_trials=1))
        record = (folder / "outputs/search/trials.json").read_text()
        trials.append(re.findall(r'"heldout_[a-z]+": [0-9.e-]+', record))
    assert tables[0] == tables[1] and len(set(tables[0])) == 2
    assert trials[0] == trials[1] and trials[0]
    told = "2 trainings, {} of them finished before".format
    assert capsys.readouterr().err.count(told(0)) == 2
    ablate.run(settings_of(feed__views="joined"))
    assert told(2) in capsys.readouterr().err
    ablate.run(settings_of())
    assert told(0) in capsys.readouterr().err, "on separate views it is another training"


def test_a_file_of_features_holds_them_separately_and_a_head_is_exported_on_joined(
    runs, monkeypatch, tmp_path, capsys
):
    monkeypatch.chdir(runs["joined"])
    export.run(settings_of(feed__views="joined"), out=tmp_path / "maps.h5")
    assert open_store(tmp_path / "maps.h5").map_shape == (6, 2, 3, 4)
    export.run(settings_of(), out=tmp_path / "head.pt2")
    assert "equals PyTorch on 32 clips" in " ".join(capsys.readouterr().err.split())


def test_finetuning_refuses_joined_views(runs, monkeypatch):
    monkeypatch.chdir(runs["joined"])
    with pytest.raises(SettingsError, match="finetune trains on one view of a clip at a time"):
        finetune.run(settings_of(feed__views="joined"))
    with pytest.raises(CheckpointError, match="trained on joined maps of 2 views"):
        finetune.run(settings_of(finetune__head="outputs/heads/dsts"))
