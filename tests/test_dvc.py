"""The pipeline under DVC, in a copy of the repository with a git history of its own."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import safetensors.torch
from ruamel.yaml import YAML

from tests.pipeline import ROOT, TINY, WEIGHTS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not WEIGHTS.exists(), reason="the embedded weights are not here"),
]
COPIED = "dsts_pipeline stages configs .dvc .dvcignore .gitignore cli.py dvc.yaml params.yaml"
ALL = ["prepare", "extract", "train-head", "evaluate", "report"]


def run(folder: Path, *command: str) -> str:
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "DVC_NO_ANALYTICS": "true",
        "GIT_AUTHOR_NAME": "t",
        "GIT_AUTHOR_EMAIL": "t@example.org",
        "GIT_COMMITTER_NAME": "t",
        "GIT_COMMITTER_EMAIL": "t@example.org",
    }
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def set_values(path: Path, values: dict[str, object]) -> None:
    """Change a YAML file, keeping its comments."""
    yaml = YAML()
    content = yaml.load(path.read_text())
    for key, value in values.items():
        *sections, name = key.split(".")
        target = content
        for section in sections:
            target = target[section]
        target[name] = value
    with path.open("w") as file:
        yaml.dump(content, file)


def stages_to_run(folder: Path) -> list[str]:
    """Stages that `dvc repro` would run, were it not for what their inputs become."""
    status = json.loads(run(folder, "dvc", "status", "--json"))
    return [name for name in ALL if name in status]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A committed copy whose pipeline has run at the smallest size."""
    folder = tmp_path_factory.mktemp("dvc")
    for name in COPIED.split():
        source = ROOT / name
        if source.is_dir():
            leave = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local")
            shutil.copytree(source, folder / name, ignore=leave)
        else:
            shutil.copy(source, folder / name)
    values = {key: value for key, value in TINY.items() if key != "backbone.weights"}
    config = folder / "configs" / "config.yaml"
    defaults = YAML().load(config.read_text())["defaults"]
    chosen = {
        group: option for entry in defaults if entry != "_self_" for group, option in entry.items()
    }
    for key, value in values.items():  # in the groups, too: `dvc exp run -S` composes from them
        group, _, rest = key.partition(".")
        if group in chosen:
            set_values(folder / "configs" / group / f"{chosen[group]}.yaml", {rest: value})
        else:
            set_values(config, {key: value})
    set_values(folder / "params.yaml", values)
    run(folder, "git", "init", "-q")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", "start")
    run(folder, "dvc", "repro")
    run(folder, "git", "add", ".")
    run(folder, "git", "commit", "-q", "-m", "first run")
    return folder


def test_second_run_has_nothing_to_do(copy):
    told = run(copy, "dvc", "repro")
    assert [line for line in told.splitlines() if "Running stage" in line] == [
        "Running stage 'weights':"
    ]
    assert stages_to_run(copy) == []


def test_run_leaves_only_the_lock_file_to_git(copy):
    files = run(copy, "git", "show", "--name-only", "--format=", "HEAD").split()
    assert files == ["dvc.lock"]
    assert run(copy, "git", "status", "--porcelain") == ""


def test_metrics_and_plots_are_shown(copy):
    shown = json.loads(run(copy, "dvc", "metrics", "show", "--json"))[""]["data"]
    assert list(shown) == ["outputs/evaluation/headline.json"], "more would not fit a terminal"
    figures = shown["outputs/evaluation/headline.json"]["data"]
    assert 0 <= figures["dsts"]["top1"] <= 1 and figures["evaluated"] == 24
    page = run(copy, "dvc", "plots", "show").strip().splitlines()[-1]
    text = Path(page.removeprefix("file://")).read_text()
    assert "Accuracy of the DSTS head" in text
    for title in ("Accuracy by class", "Reliability", "Confusion by head", "Classes by neuron"):
        assert title in text
    assert "<DVC_METRIC" not in text and "var spec = {}" not in text, "a plot that is empty"


def test_all_figures_of_two_commits_can_be_compared(copy):
    command = "dvc metrics diff HEAD --all --json --targets outputs/evaluation/metrics.json"
    changes = json.loads(run(copy, *command.split()))["outputs/evaluation/metrics.json"]
    assert changes["heads.dsts.calibration.equal_width.ece"]["diff"] == 0
    assert {"heads.dsts.top5", "heads.attentive_probe.top1"} <= set(changes)


@pytest.mark.parametrize(
    ("file", "key", "value", "expected"),
    [
        ("params.yaml", "head.num_neurons", 4, ["train-head"]),
        ("params.yaml", "report.title", "Other", ["report"]),
        ("params.yaml", "evaluate.num_bootstrap", 101, ["evaluate"]),
        ("params.yaml", "backbone.num_frames", 8, ["extract"]),
        ("params.yaml", "store.dtype", "float32", ["extract"]),
        ("params.yaml", "dataset.render.seed", 9, ["prepare"]),
    ],
)
def test_setting_reaches_the_first_stage_that_reads_it(copy, file, key, value, expected):
    kept = (copy / file).read_text()
    set_values(copy / file, {key: value})
    try:
        assert stages_to_run(copy) == expected
    finally:
        (copy / file).write_text(kept)


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        ("dsts_pipeline/head/layer.py", ["train-head", "evaluate", "report"]),
        ("dsts_pipeline/learn/udl.py", ["train-head"]),
        ("dsts_pipeline/report/page.py", ["report"]),
        ("dsts_pipeline/base/settings.py", []),
        ("cli.py", []),
    ],
)
def test_work_on_code_never_reaches_the_costly_cache(copy, file, expected):
    kept = (copy / file).read_text()
    (copy / file).write_text(kept + "\n# changed\n")
    try:
        assert stages_to_run(copy) == expected
    finally:
        (copy / file).write_text(kept)


@pytest.mark.long
def test_queued_experiments_use_the_maps_that_are_there(copy):
    """As docs/ablations.md says."""
    rest = ["-C", "outputs", "-C", "stores", "evaluate"]
    for name, setting in (("two", "head.num_neurons=2"), ("no-udl", "experiment=without_udl")):
        run(copy, "dvc", "exp", "run", "--queue", "-n", name, "-S", setting, *rest)
    told = run(copy, "dvc", "exp", "run", "--run-all", "-j", "1")
    assert told.count("Running stage 'train-head'") == 2
    for stage in ("prepare", "extract"):
        assert told.count(f"Stage '{stage}' didn't change, skipping") == 2
    shown = run(copy, "dvc", "exp", "show", "--only-changed", "--csv")
    rows = list(csv.DictReader(shown.splitlines()))
    changed = {row["Experiment"]: (row["head.num_neurons"], row["udl.enabled"]) for row in rows}
    assert (changed["two"], changed["no-udl"]) == (("2", "True"), ("10", "False"))
    assert len(rows[0]) < 25, "more columns would not fit a terminal"
    page = run(copy, "dvc", "plots", "diff", "two", "no-udl").strip().splitlines()[-1]
    text = Path(page.removeprefix("file://")).read_text()
    assert '"rev": "two"' in text and '"rev": "no-udl"' in text
    assert run(copy, "git", "status", "--porcelain") == ""


def test_experiment_composes_retrains_and_compares(copy):
    store = sorted((copy / "stores").iterdir())
    before = {p: p.stat().st_mtime_ns for p in store[0].rglob("*.json")}
    told = run(copy, "dvc", "exp", "run", "-S", "head.num_neurons=5")
    assert "Running stage 'train-head'" in told and "Running stage 'extract'" not in told
    assert sorted((copy / "stores").iterdir()) == store
    assert {p: p.stat().st_mtime_ns for p in store[0].rglob("*.json")} == before
    head = json.loads((copy / "outputs/heads/dsts/head.json").read_text())
    assert head["arguments"]["num_neurons"] == 5
    changed = json.loads(run(copy, "dvc", "params", "diff", "--json"))
    assert list(changed["params.yaml"]) == ["head.num_neurons"]
    difference = run(copy, "dvc", "metrics", "diff", "--all", "--json")
    assert "outputs/evaluation/headline.json" in json.loads(difference)


@pytest.mark.long
def test_weights_of_any_kind_reach_what_depends_on_them(copy):
    """A file changed in place, weights that were never trained, none, and the embedded ones."""
    kept = (copy / "params.yaml").read_text()
    own = copy / "own.safetensors"
    try:
        shutil.copy(WEIGHTS, own)
        set_values(copy / "params.yaml", {"backbone.weights": own.name})
        run(copy, "dvc", "repro", "extract")
        os.utime(own)
        told = run(copy, "dvc", "repro", "extract")
        assert "Running stage 'weights'" in told and "Running stage 'extract'" not in told
        state = safetensors.torch.load_file(own)
        safetensors.torch.save_file({name: value * 1.5 for name, value in state.items()}, own)
        stores = len(list((copy / "stores").iterdir()))
        assert "Running stage 'extract'" in run(copy, "dvc", "repro", "extract")
        assert len(list((copy / "stores").iterdir())) == stores + 1
        set_values(copy / "params.yaml", {"backbone.weights": "random"})
        run(copy, "dvc", "repro", "train-head")
        assert "baseline" not in heads_of(copy), "no classifier to begin with"
        set_values(copy / "params.yaml", {"backbone.weights": None})
        told = run(copy, "dvc", "repro", "weights")
        assert json.loads((copy / "outputs/weights.json").read_text()) == {"kind": "none"}
    finally:
        (copy / "params.yaml").write_text(kept)
        own.unlink(missing_ok=True)
        run(copy, "dvc", "repro")


def start_dvc(folder: Path) -> subprocess.Popen[str]:
    """`dvc repro` up to the trained heads, in a process group of its own."""
    bin_folder = Path(sys.executable).parent
    return subprocess.Popen(
        ["dvc", "repro", "train-head"],
        cwd=folder,
        env=os.environ | {"PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def heads_of(folder: Path) -> dict[str, bytes]:
    return {p.parent.name: p.read_bytes() for p in folder.glob("outputs/heads/*/head.safetensors")}


@pytest.mark.long
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_training_under_dvc_goes_on_where_it_was_stopped(copy, sent):
    """The whole process group is stopped; DVC deletes the stage's outputs, checkpoints stay."""
    values = {"train.num_epochs": 20 + sent, "train.checkpoint_every_batches": 2}
    set_values(copy / "params.yaml", values)
    first = start_dvc(copy)
    deadline = time.monotonic() + 120
    while not list(copy.glob("outputs/heads/linear_probe/head.json")) or not any(
        json.loads(path.read_text())["values"]["epoch"] < values["train.num_epochs"]
        for path in copy.glob("outputs/checkpoints/*/state.json")
    ):
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()
        time.sleep(0.05)
    os.killpg(first.pid, sent)
    first.communicate(timeout=60)
    assert first.returncode != 0
    assert len(list(copy.glob("outputs/checkpoints/*/state.json"))) == 2
    second = start_dvc(copy)
    told, _ = second.communicate(timeout=240)
    assert second.returncode == 0, told
    assert "Training linear probe: goes on from" in told
    assert "Training DSTS head: goes on from" in told
    assert not (copy / "outputs/checkpoints").exists()
    assert len((copy / "outputs/dvclive/plots/metrics/train_loss.tsv").read_text().split()) == (
        2 * (values["train.num_epochs"] + 1)
    )
    resumed = heads_of(copy)
    run(copy, "dvc", "repro", "--force", "--single-item", "train-head")
    assert heads_of(copy) == resumed and len(resumed) == 3


@pytest.mark.long
def test_training_by_two_processes_from_the_command_line(copy):
    values = {"train.num_epochs": 2, "train.batch_size": 8, "train.device": "cpu"}
    settings = [f"--set={key}={value}" for key, value in values.items()]
    run(copy, sys.executable, "cli.py", "train-head", "--devices", "2", *settings)
    assert len(heads_of(copy)) == 3
    history = json.loads((copy / "outputs/heads/dsts/history.json").read_text())["epochs"]
    assert len(history) == 2
