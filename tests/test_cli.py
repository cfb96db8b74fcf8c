"""The command line: help, bad input told plainly, interruption."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dsts_pipeline.base.settings import RenderSettings
from dsts_pipeline.stick import render_embedded
from tests.pipeline import ROOT, command_of, run_cli, tell_plainly

COMMANDS = (
    "compare weights "
    "doctor prepare extract train-head evaluate report ablate pretrain verify stores export "
    "import-features results show predict demo-app finetune pretrain-backbone "
    "search push export-annotations convert-checkpoint"
).split()
RENDER = RenderSettings(
    num_train=6, num_test=4, size_px=32, num_frames=6, difficulty=1.0, seed=3, num_workers=1
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A small sound data set in Diving48's layout."""
    render_embedded(tmp_path / "data", RENDER)
    return tmp_path / "data"


def prepare(folder: Path, root: Path, *arguments: str, **settings: object):
    values = {"dataset__root": root, "dataset__render": "null"} | settings
    return run_cli(folder, "prepare", *arguments, **values)


def change_annotation(root: Path, split: str, **values: object) -> None:
    path = root / f"Diving48_V2_{split}.json"
    items = json.loads(path.read_text())
    items[1] |= values
    path.write_text(json.dumps(items))


# ---- help -------------------------------------------------------------------------------------


def test_help_lists_every_command(tmp_path):
    run = run_cli(tmp_path, "--help")
    assert run.returncode == 0
    assert all(command in run.stdout for command in (*COMMANDS, "new", "use"))


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_an_example_and_the_common_options(tmp_path, command):
    run = run_cli(tmp_path, command, "--help")
    assert run.returncode == 0
    for text in (f"Example: python cli.py {command}", "--params", "--set", "--debug"):
        assert text in run.stdout


@pytest.mark.parametrize(("command", "program"), [("new", "dsts"), ("use", "python cli.py")])
def test_help_of_what_has_no_settings_to_replace(tmp_path, command, program):
    told = run_cli(tmp_path, command, "--help").stdout
    assert f"Example: {program} {command}" in told and "--set" not in told


def test_help_shows_every_paragraph_whole_and_as_it_is_written(monkeypatch):
    import typer.main
    from typer import rich_utils
    from typer.testing import CliRunner

    import cli

    monkeypatch.setattr(rich_utils, "MAX_WIDTH", 2000)  # no line is broken because it is long
    known = typer.main.get_command(cli.app).commands
    assert known.keys() == {*COMMANDS, "new", "use"}
    for name, command in known.items():
        run = CliRunner().invoke(cli.app, [name, "--help"])
        lines = [line.strip() for line in run.stdout.splitlines()]
        for paragraph in inspect.cleandoc(command.help).split("\n\n"):
            assert " ".join(paragraph.split()).replace("`", "") in lines, f"{name}: {paragraph}"
        for option in command.params:
            told = " ".join((option.help or "").split()).replace("`", "")
            assert any(told in line for line in lines), f"{name} {option.name}: {told}"


# ---- bad input --------------------------------------------------------------------------------


def test_unknown_setting(tmp_path):
    message = tell_plainly(run_cli(tmp_path, "train-head", head__num_neuron=4))
    assert "head.num_neuron is not a setting; did you mean head.num_neurons?" in message


def test_debug_shows_the_traceback(tmp_path):
    run = run_cli(tmp_path, "show", "--debug", head__num_neuron=4)
    assert run.returncode != 0
    assert "Traceback" in run.stderr and "SettingsError" in run.stderr


def test_missing_data_root(tmp_path):
    message = tell_plainly(prepare(tmp_path, Path("nowhere")))
    assert "nowhere does not exist" in message and "dataset.root" in message


def test_annotation_that_names_a_missing_file(tmp_path, data):
    change_annotation(data, "train", vid_name="not_there")
    message = tell_plainly(prepare(tmp_path, data))
    assert "1 of 10 annotated clips" in message
    assert "not_there (the video file is missing: looked for " in message
    assert "dataset.max_problem_fraction" in message
    assert not (tmp_path / "outputs" / "clips.json").exists()


def test_undecodable_file(tmp_path, data):
    (data / "rgb" / "stick_test_00002.mp4").write_bytes(b"no video " * 200)
    message = tell_plainly(prepare(tmp_path, data))
    assert "1 of 10 annotated clips" in message and "stick_test_00002" in message


def test_tolerated_problem_is_listed_in_the_index(tmp_path, data):
    (data / "rgb" / "stick_test_00002.mp4").unlink()
    run = prepare(tmp_path, data, dataset__max_problem_fraction=0.2)
    assert run.returncode == 0, run.stderr
    assert "1 unusable" in run.stderr
    problems = json.loads((tmp_path / "outputs" / "clips.json").read_text())["problems"]
    assert [problem["clip_id"] for problem in problems] == ["stick_test_00002"]


def test_class_out_of_range(tmp_path, data):
    change_annotation(data, "train", label=48)
    message = tell_plainly(prepare(tmp_path, data))
    assert "Diving48_V2_train.json: item 1" in message
    assert "label 48 is out of range" in message and "0 to 47" in message


def test_empty_split(tmp_path, data):
    (data / "Diving48_V2_test.json").write_text("[]")
    message = tell_plainly(prepare(tmp_path, data))
    assert "Diving48_V2_test.json: the test split is empty" in message


def test_damaged_annotation_file(tmp_path, data):
    (data / "Diving48_V2_test.json").write_text("[{")
    assert "Diving48_V2_test.json: not a JSON file" in tell_plainly(prepare(tmp_path, data))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("extract", "outputs/clips.json: no such file"),
        ("train-head", "outputs/features.json: no such file"),
        ("evaluate", "outputs/features.json: no such file"),
        ("report", "outputs/features.json: no such file"),
        ("verify", "outputs/features.json: no such file"),
        ("results", "outputs/evaluation/metrics.json: no results yet"),
    ],
)
def test_stage_before_its_turn(tmp_path, command, expected):
    assert expected in tell_plainly(run_cli(tmp_path, command))


def test_missing_weights(tmp_path, data):
    assert prepare(tmp_path, data).returncode == 0
    message = tell_plainly(run_cli(tmp_path, "extract", backbone__weights="none.safetensors"))
    assert "none.safetensors: no such weights file" in message


# ---- settings and interruption ----------------------------------------------------------------


def test_shown_settings_can_be_given_back(tmp_path):
    first = run_cli(tmp_path, "show", head__num_neurons=7, train__learning_rate="1e-4")
    assert first.returncode == 0, first.stderr
    (tmp_path / "mine.yaml").write_text(first.stdout)
    command = [sys.executable, str(ROOT / "cli.py"), "show", "--params", "mine.yaml"]
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert second.stdout == first.stdout
    assert "num_neurons: 7" in first.stdout


def test_interrupt_ends_in_one_line(tmp_path):
    settings = {"dataset__render__num_train": 5000, "dataset__render__num_workers": 2}
    process = subprocess.Popen(
        command_of("prepare", **settings),
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    videos = tmp_path / "data" / "stick_diving" / "rgb"
    deadline = time.monotonic() + 120
    while len(list(videos.glob("*.mp4"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, stderr = process.communicate(timeout=240)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert stderr.strip().splitlines()[-1].startswith("interrupted;")
    assert not list(tmp_path.rglob("*.tmp"))
