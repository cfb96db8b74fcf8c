"""Learning curves of four loggers: whole after a stop, read back from what each one wrote."""

from __future__ import annotations

import struct
import sys

import pytest
from rich.console import Console

from dsts_pipeline.base.errors import MissingExtraError
from dsts_pipeline.learn import loggers
from dsts_pipeline.learn.loggers import log_curves

LAYER = {"usage": [0.5, 0.5], "entropy": 0.69, "dead": 0, "saturated_share": None}
HISTORY = [
    {"epoch": epoch, "train_loss": 2.0 - epoch, "best": True, "seconds": 1.0, "layers": [LAYER]}
    for epoch in range(3)
]
SETTINGS = {"seed": 3, "head": {"width": 16, "taps": ["a"]}, "train": {"num_epochs": 3}}
NAMES = ["layer_1/dead", "layer_1/entropy", "train_loss"]
LOSSES = [(0, 2.0), (1, 1.0), (2, 0.0)]


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Whatever the machine that tests run on has in its environment."""
    for name in ("WANDB_MODE", "WANDB_PROJECT", "MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


def train(root, *names, until=3, settings=SETTINGS):
    """A training that logs and is stopped before its end if `until` says so."""
    try:
        with log_curves(names, root, settings) as log:
            for entry in HISTORY[:until]:
                log(entry)
            if until < 3:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


# ---- what each one wrote -------------------------------------------------------------------------


def read_dvclive(root):
    folder = root / "dvclive" / "plots" / "metrics"
    names = sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.tsv")
    )
    lines = (folder / "train_loss.tsv").read_text().split()
    numbers = lines[-2 * (len(lines) // 2 - 1) :]
    return names, [(int(a), float(b)) for a, b in zip(numbers[::2], numbers[1::2], strict=True)]


def read_tensorboard(root):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(root / "tensorboard"))
    board.Reload()
    points = [(event.step, event.value) for event in board.Scalars("train_loss")]
    return sorted(board.Tags()["scalars"]), points


def records_of(path):
    """The records of a .wandb file: those of a LevelDB log, each a message of wandb's protocol."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = path.read_bytes()
    place, parts = 7, b""
    while place < len(content):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, size, kind = struct.unpack_from("<IHB", content, place)
        parts += content[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # a whole record, or its last part
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def wandb_files(root):
    found = (root / "wandb").glob("offline-run-*/run-*.wandb")
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def read_wandb(root):
    points, names = [], set()
    for record in records_of(wandb_files(root)[-1]):
        if not record.HasField("history"):
            continue
        items = {(i.key or "/".join(i.nested_key)): i.value_json for i in record.history.item}
        names |= {name for name in items if not name.startswith("_")}
        points.append((record.history.step.num, float(items["train_loss"])))
    return sorted(names), points


def runs_of_mlflow(root):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / 'mlflow' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dsts-pipeline")
    return client, client.search_runs([experiment.experiment_id], order_by=["start_time ASC"])


def read_mlflow(root):
    client, runs = runs_of_mlflow(root)
    run = runs[-1]
    history = client.get_metric_history(run.info.run_id, "train_loss")
    points = sorted((point.step, point.value) for point in history)
    return sorted(run.data.metrics), points


READERS = {
    "dvclive": (read_dvclive, "dvclive"),
    "tensorboard": (read_tensorboard, "tensorboard"),
    "wandb": (read_wandb, "wandb"),
    "mlflow": (read_mlflow, "mlflow"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_curves_are_whole_after_a_stop(tmp_path, name):
    read, package = READERS[name]
    pytest.importorskip(package, reason="the optional package is not installed")
    train(tmp_path, name, until=2)
    train(tmp_path, name)  # what went on tells its earlier epochs again
    assert read(tmp_path) == (NAMES, LOSSES)


@pytest.mark.slow
def test_a_run_of_wandb_keeps_its_id_until_it_is_finished(tmp_path):
    pytest.importorskip("wandb")
    train(tmp_path, "wandb", until=1)
    train(tmp_path, "wandb", until=2, settings=SETTINGS | {"seed": 4})  # another training
    train(tmp_path, "wandb", settings=SETTINGS | {"seed": 4})
    train(tmp_path, "wandb", settings=SETTINGS | {"seed": 4})
    first, other, again, last = (path.stem for path in wandb_files(tmp_path))
    assert other == again and len({first, other, last}) == 3
    run = next(r.run for r in records_of(wandb_files(tmp_path)[-1]) if r.HasField("run"))
    assert run.project == "dsts-pipeline"
    config = {item.key: item.value_json for item in run.config.update}
    assert config["seed"] == "4" and config["head"] == '{"width":16,"taps":["a"]}'


@pytest.mark.slow
def test_a_run_of_mlflow_goes_on_until_it_is_finished(tmp_path):
    pytest.importorskip("mlflow")
    train(tmp_path, "mlflow", until=1)
    _, (run,) = runs_of_mlflow(tmp_path)
    assert run.info.status == "KILLED"
    assert run.data.params["head.taps"] == "['a']" and run.data.params["train.num_epochs"] == "3"
    train(tmp_path, "mlflow")
    client, (same,) = runs_of_mlflow(tmp_path)
    assert same.info.run_id == run.info.run_id and same.info.status == "FINISHED"
    train(tmp_path, "mlflow", until=1)
    client, runs = runs_of_mlflow(tmp_path)
    assert len(runs) == 2
    client.delete_run(runs[-1].info.run_id)  # a run that the user threw away is not written to
    train(tmp_path, "mlflow")
    assert read_mlflow(tmp_path) == (NAMES, LOSSES)


# ---- together ------------------------------------------------------------------------------------


def test_several_at_once(tmp_path):
    for _ in range(2):
        train(tmp_path, "dvclive", "tensorboard")
    assert read_dvclive(tmp_path) == read_tensorboard(tmp_path) == (NAMES, LOSSES)


def test_other_processes_log_nothing(tmp_path):
    with log_curves(["dvclive", "tensorboard"], tmp_path, {}, is_first=False) as log:
        log(HISTORY[0])
    assert not any(tmp_path.iterdir())


def test_the_folder_that_dvc_expects_is_there_without_dvclive_and_holds_no_other_curves(tmp_path):
    train(tmp_path, "dvclive")
    train(tmp_path)
    assert (tmp_path / "dvclive").is_dir() and not any((tmp_path / "dvclive").iterdir())


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_missing_package_is_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    told = rf'{name} of train.loggers needs {name}, .*pip install .*"dsts-pipeline\[{name}\]"'
    with pytest.raises(MissingExtraError, match=told):
        train(tmp_path, name)


def test_a_missing_package_is_told_before_anything_is_trained(monkeypatch):
    loggers.require_packages(["dvclive", "tensorboard"])
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"wandb of train.loggers needs wandb"):
        loggers.require_packages(["dvclive", "wandb"])


class Failing:
    """A service on a bad day."""

    moments = ("open", "log", "close")

    def __init__(self, when):
        self.when = when
        self.calls = []

    def __call__(self, folder, settings):
        self._note("open")
        return self

    def log(self, figures, epoch):
        self._note("log")

    def close(self, *, finished):
        self._note("close")

    def _note(self, moment):
        self.calls.append(moment)
        if moment == self.when:
            raise ConnectionError("no [route] to host")


@pytest.mark.parametrize("when", Failing.moments)
def test_a_failing_logger_is_told_once_and_kills_no_training(tmp_path, monkeypatch, capsys, when):
    failing = Failing(when)
    monkeypatch.setitem(loggers.LOGGERS, "wandb", failing)
    monkeypatch.setattr(loggers, "console", Console(stderr=True, width=300))
    train(tmp_path, "wandb", "dvclive")
    assert read_dvclive(tmp_path) == (NAMES, LOSSES)
    told = capsys.readouterr().err
    assert told.count("wandb fails and is left out") == 1
    assert "(ConnectionError: no [route] to host)" in told
    assert failing.calls.count(when) == 1


def test_an_error_of_dvclive_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setitem(loggers.LOGGERS, "dvclive", Failing("log"))
    with pytest.raises(ConnectionError):
        train(tmp_path, "dvclive")
