"""The commands behind docs/claims.md run from nothing: regimes, and the search of the rate."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from benchmarks.claims.figures import Figures
from benchmarks.claims.regimes import BY_NAME, OTHER_RATES, ROOT
from benchmarks.claims.search import Search

pytestmark = pytest.mark.long


def run_small(folder, *arguments, settings=()):
    """`run` at a size that takes a minute, from nothing, in `folder`."""
    small = {
        "dataset.render.num_train": 48,
        "dataset.render.num_test": 48,
        "dataset.render.num_workers": 1,
        "pretrain.num_clips": 96,
        "pretrain.num_heldout": 48,
        "pretrain.num_workers": 1,
        "head.width": 4,
        "train.num_epochs": 1,
        "train.batch_size": 8,
        "evaluate.num_bootstrap": 100,
    }
    command = [sys.executable, "-m", "benchmarks.claims", "run", *arguments]
    command += ["--home", str(folder), "--results", str(folder / "results"), "--set"]
    command += [f"{key}={value}" for key, value in small.items()] + list(settings)
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("name", ["something_generic", "diving_generic"])
def test_a_regime_is_made_from_nothing(name, tmp_path):
    run_small(tmp_path, "--regimes", name, "--seeds", "1")
    figures = Figures.read(BY_NAME[name], tmp_path / "results")
    assert len(figures.routes("full")[0]["layers"]) == 3
    assert len(figures.differences) == 18 and 0 <= figures.top1("full") <= 100
    weights = tmp_path / "weights" / "diving_pose.safetensors"
    assert weights.exists() == (name == "diving_generic")


def test_the_search_is_made_by_its_commands(tmp_path):
    regime, results = BY_NAME["something_generic"], tmp_path / "results"
    listed = yaml.safe_load((ROOT / "configs/experiment/claims.yaml").read_text())["ablate"]
    wanted = "full", "neurons_1", "attentive_probe"
    left_out = [one["name"] for one in listed["variants"] if one["name"] not in wanted]
    settings = [
        f"ablate.leave_out=[{','.join(left_out)}]",
        "train.heldout_fraction=0.5",
        "train.num_epochs=3",
    ]
    steps = [regime.at(rate).name for rate in OTHER_RATES]
    run_small(tmp_path, "--regimes", regime.name, *steps, "--seeds", "1", settings=settings)
    search = Search(Figures.read(regime, results), results)
    assert set(search.before.variants) == set(wanted)
    run_small(tmp_path, "--regimes", steps[-1], "--chosen", "--seeds", "2", settings=settings)
    last = Figures.read(regime.at(OTHER_RATES[-1]), results)
    for name in wanted:
        chose_it = name == "full" or search.rate(name) == OTHER_RATES[-1]
        assert list(last.runs(name)) == ([0, 1] if chose_it else [0])
