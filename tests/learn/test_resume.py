"""A stopped training goes on bit for bit, wherever it was stopped; nothing half-saved is used."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from dsts_pipeline.base.children import StopRequest
from dsts_pipeline.base.errors import CheckpointError, SettingsError
from dsts_pipeline.learn import CheckpointOptions, TrainingStopped, remove_checkpoints, training
from dsts_pipeline.learn import resume as identity
from tests.learn.train_process import VARIANTS, new_head, train_variant

ALONE = [name for name in VARIANTS if name != "joined"]


def same(first, second):
    assert set(first) == set(second)
    return all(torch.equal(value, second[name]) for name, value in first.items())


def without_times(history):
    return [{k: v for k, v in entry.items() if k != "seconds"} for entry in history]


class Counter:
    """Counts batches read and raises at one of them, as a crash would."""

    def __init__(self, stop_at=None):
        self.count, self.stop_at = 0, stop_at

    def __call__(self):
        self.count += 1
        if self.count == self.stop_at:
            raise InterruptedError


@pytest.fixture(scope="module")
def unstopped():
    """Values, history and number of batches read of every variant, never stopped nor saved."""
    found = {}
    for name in ALONE:
        counter = Counter()
        head, history = train_variant(name, counter, None)
        found[name] = head.state_dict(), without_times(history), counter.count
        start = new_head(name).state_dict()
        assert all(
            not torch.equal(start[key], value)
            for key, value in found[name][0].items()
            if key.endswith(("kernel", "weight", "gate_logits"))
        ), f"{name} ends with the values it began with"
    return found


@pytest.mark.long
@pytest.mark.parametrize("name", ALONE)
def test_crash_changes_nothing(name, tmp_path, unstopped):
    """Crashes while a batch is read: in steps, evaluations and final statistics."""
    values, history, count = unstopped[name]
    for stop_at in random.Random(os.urandom(8)).sample(range(1, count + 1), 4):
        options = CheckpointOptions(tmp_path / "saved", every_batches=2)
        with pytest.raises(InterruptedError):
            train_variant(name, Counter(stop_at), options)
        seen = Counter()
        head, again = train_variant(name, seen, options)
        assert same(head.state_dict(), values) and without_times(again) == history, stop_at
        if stop_at > count // 2:
            assert seen.count < count, stop_at
        remove_checkpoints(options)
    assert not any(tmp_path.iterdir())


def test_stop_requests_after_every_batch(tmp_path, unstopped):
    """One batch a run: every batch is a place to go on from, the last of an epoch too."""
    values, history, _ = unstopped["udl"]
    request = StopRequest(77)
    request.requested = True
    options = CheckpointOptions(tmp_path, stop=request)
    steps = []
    while True:
        try:
            head, again = train_variant("udl", lambda: None, options)
        except TrainingStopped as stopped:
            assert stopped.exit_status == 77
            steps.append(str(stopped).split(" in ")[0])
            assert len(steps) < 100
            continue
        break
    # 7 batches and an end in each of 2 epochs; the very end stops, too, with all done.
    assert [int(step.split()[-1]) for step in steps] == [*range(1, 8), *range(7, 15), 14]
    assert same(head.state_dict(), values) and without_times(again) == history


def test_finished_training_comes_to_its_end_at_once(tmp_path, unstopped):
    options = CheckpointOptions(tmp_path)
    for _ in range(2):
        counter = Counter()
        head, history = train_variant("plain", counter, options)
        assert same(head.state_dict(), unstopped["plain"][0])
    assert counter.count < unstopped["plain"][2] / 2  # final statistics only


def start(folder, variant, *flags):
    root = str(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.learn.train_process", str(folder), variant, *flags],
        cwd=root,
        env=os.environ | {"PYTHONPATH": root},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_reads(process, count):
    for _ in range(count):
        if not process.stdout.readline():
            return


@pytest.mark.long
@pytest.mark.parametrize("name", ["udl", "options"])
def test_kill_9_at_random_moments(name, tmp_path, unstopped):
    values, history, count = unstopped[name]
    moments = random.Random(os.urandom(8))
    told = []
    for _ in range(3):
        process = start(tmp_path, name)
        reads, delay = moments.randint(8, count // 2), moments.random() * 0.02
        wait_for_reads(process, reads)
        time.sleep(delay)
        process.kill()
        process.communicate()
        told.append((reads, delay, process.returncode))
        assert process.returncode in (-signal.SIGKILL, 0), told
    process = start(tmp_path, name)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, (told, errors)
    assert "goes on from" in errors or told[-1][2] == 0, told
    assert same(load_file(tmp_path / f"{name}.safetensors"), values), told
    assert without_times(json.loads((tmp_path / f"{name}.json").read_text())) == history, told


@pytest.mark.slow
def test_sigterm_saves_and_exits_to_be_requeued(tmp_path, unstopped):
    values, _, count = unstopped["udl"]
    process = start(tmp_path, "udl")
    wait_for_reads(process, count // 3)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 99, errors
    assert "asked to stop: training saved after step" in errors
    process = start(tmp_path, "udl")
    reads = process.communicate(timeout=120)[0].count("read")
    assert process.returncode == 0 and reads < count
    assert same(load_file(tmp_path / "udl.safetensors"), values)


@pytest.mark.long
def test_full_disk_while_saving_keeps_the_checkpoint_before(tmp_path, unstopped):
    """Writes fail for real (file size limit) from a batch on; the training goes on afterwards."""
    values, _, count = unstopped["udl"]
    process = start(tmp_path, "udl", f"fail_after={count // 2}")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "OSError" in errors
    folder = next((tmp_path / "checkpoints").iterdir())
    state = json.loads((folder / "state.json").read_text())
    assert state["values"]["num_steps"] > 0
    assert not list(folder.glob(".*.tmp"))
    process = start(tmp_path, "udl")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0 and f"step {state['values']['num_steps']}" in errors
    assert same(load_file(tmp_path / "udl.safetensors"), values)


def stopped_at(tmp_path, count, name="udl", **changes):
    options = CheckpointOptions(tmp_path, every_batches=2)
    with pytest.raises(InterruptedError):
        train_variant(name, Counter(count), options, **changes)
    return options, options.used[0]


@pytest.mark.parametrize("kind", ["last", "best"])
def test_flipped_bit_is_seen(kind, tmp_path, unstopped):
    options, folder = stopped_at(tmp_path, 18)
    path = next(folder.glob(f"{kind}-*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{path.name} is damaged: .*delete .* to train from"):
        train_variant("udl", lambda: None, options)
    remove_checkpoints(options)
    head, _ = train_variant("udl", lambda: None, options)
    assert same(head.state_dict(), unstopped["udl"][0])


def change_a_digit(path):
    """One that decides how the training goes on, and that nothing else would contradict."""
    state = json.loads(path.read_text())
    state["values"]["tally"]["num_correct"] += 1
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "state.json").write_text("{"), "not a JSON file"),
        (lambda folder: (folder / "state.json").write_text('{"format": 9}'), "format 1"),
        (lambda folder: next(folder.glob("last-*")).unlink(), "not readable"),
        (lambda folder: change_a_digit(folder / "state.json"), "its digest does not hold"),
    ],
)
def test_damaged_state_is_seen(damage, message, tmp_path):
    options, folder = stopped_at(tmp_path, 18)
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        train_variant("udl", lambda: None, options)


def test_other_settings_never_resume_this_state(tmp_path):
    """Whatever decides the training has a folder of its own."""
    _, folder = stopped_at(tmp_path, 18)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    others = [{"learning_rate": 0.01}, {"seed": 4}, {"heldout_fraction": 0.3}, {"num_epochs": 4}]
    for changes in others:
        _, other = stopped_at(tmp_path, 1, **changes)
        assert other != folder
    options = CheckpointOptions(tmp_path, identity={"store": "another"})
    with pytest.raises(InterruptedError):
        train_variant("udl", Counter(18), options)
    assert options.used[0] not in (folder, other)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_two_trainings_in_one_folder_are_refused(tmp_path):
    second = CheckpointOptions(tmp_path)

    def on_read():
        with pytest.raises(CheckpointError, match="another process trains with these very"):
            train_variant("plain", lambda: None, second)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_variant("plain", on_read, CheckpointOptions(tmp_path))


def test_divergence_names_step_clips_and_the_last_good_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "MAX_LOSS", 50.0)
    options = CheckpointOptions(tmp_path, every_batches=1)
    expected = (
        r"diverged: the loss is [\d.e+]+ in epoch 0, step 2 \(batch 2; its clips: clip\d+, clip\d+"
        rf", clip\d+, clip\d+.*\); last good checkpoint: {tmp_path}/\w+ \(epoch 0, step 1\)"
    )
    changes = {"learning_rate": 1e3, "optimizer": "sgd", "schedule": "constant"}
    with pytest.raises(SettingsError, match=expected):
        train_variant("plain", lambda: None, options, **changes)


@pytest.mark.parametrize("every_batches", [None, 2])
def test_a_loss_that_is_read_later_names_its_own_step(tmp_path, monkeypatch, every_batches):
    """As on a GPU; before a checkpoint all are read, so none holds what has diverged."""
    monkeypatch.setattr(training, "MAX_LOSS", 50.0)
    monkeypatch.setattr(training, "most_unread", lambda device: 3)
    options = CheckpointOptions(tmp_path, every_batches=every_batches)
    changes = {"learning_rate": 1e3, "optimizer": "sgd", "schedule": "constant"}
    made = []
    monkeypatch.setattr(
        training.Tally, "add", lambda *given, add=training.Tally.add: made.append(add(*given))
    )
    with pytest.raises(
        SettingsError, match=r"in epoch 0, step 2 \(batch 2; its clips.*checkpoint: none"
    ):
        train_variant("plain", lambda: None, options, **changes)
    assert len(made) == (every_batches or 3)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_checkpoint_of_another_head_is_refused(tmp_path):
    """Copied to where this training looks for its own, as a rename by hand would."""
    _, folder = stopped_at(tmp_path / "one", 18)
    options, other = stopped_at(tmp_path / "two", 18, seed=4)
    for path in folder.iterdir():
        (other / path.name).write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=rf"of another training \({folder.name}\): of anoth"):
        train_variant("udl", lambda: None, options, seed=4)


def test_code_that_changes_while_a_process_runs_does_not_rename_its_trainings(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(identity, "PACKAGE", tmp_path)
    (tmp_path / "head").mkdir()
    source = tmp_path / "head" / "gates.py"
    source.write_text("before")
    identity.digest_sources.cache_clear()
    try:
        first = identity.digest_sources()
        source.write_text("after")
        assert identity.digest_sources() == first
        identity.digest_sources.cache_clear()  # as another process would
        assert identity.digest_sources() != first
    finally:
        identity.digest_sources.cache_clear()
