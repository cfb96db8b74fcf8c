"""Learning curves, by the loggers that `train.loggers` names: DVCLive, TensorBoard, W&B, MLflow.

Enters: a training's history, an entry at a time. Leaves: each logger's files below the outputs. A
training that goes on after a stop logs its earlier epochs again, so curves are always whole and of
one run.

Nothing is sent anywhere unless WANDB_MODE or MLFLOW_TRACKING_URI says so, and nothing is asked on
the terminal. DVCLive's files are what DVC expects of the stage: an error of it ends the command.
The other loggers are the user's: one that fails is told of once and left out from then on.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from dsts_pipeline.base.errors import UserError, import_extra, tell_briefly
from dsts_pipeline.base.files import read_json, sha256_json, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import LoggerName

# What takes time differs from run to run and is no result: history.json has it.
NOT_LOGGED = ("epoch", "layers", "best", "seconds")
PROJECT = "dsts-pipeline"
Log = Callable[[dict[str, Any]], None]


class Logger(Protocol):
    """A logger of one training; made with its folder and the settings of the training."""

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        """The figures of an epoch, from 0."""

    def close(self, *, finished: bool) -> None:
        """No more is to come now; unless `finished`, the same training may go on later."""


def figures_of(entry: dict[str, Any]) -> dict[str, float]:
    """What of a history's entry is plotted, by name."""
    figures = {name: value for name, value in entry.items() if name not in NOT_LOGGED}
    for number, layer in enumerate(entry.get("layers", ()), start=1):
        for name in ("entropy", "dead", "saturated_share"):
            if layer[name] is not None:
                figures[f"layer_{number}/{name}"] = layer[name]
    return figures


@contextmanager
def log_curves(
    names: Sequence[LoggerName],
    root: Path,
    settings: Mapping[str, Any],
    *,
    is_first: bool = True,
) -> Iterator[Log]:
    """Give a function that logs one entry of a training's history as the next epoch.

    Args:
        names: Of the loggers.
        root: Each one's files are in `root`/name.
        settings: All that decides the training, as plain values; which W&B and MLflow show.
        is_first: Whether this process logs.

    Raises:
        MissingExtraError: The package of a logger is not installed.
    """
    if not is_first:
        yield lambda entry: None
        return
    # What an earlier training left there is of other weights; DVC expects the folder in any case.
    shutil.rmtree(root / "dvclive", ignore_errors=True)
    (root / "dvclive").mkdir(parents=True)
    opened = [_Opened(name, root / name, settings) for name in dict.fromkeys(names)]

    def log(entry: dict[str, Any]) -> None:
        for one in opened:
            one.log(figures_of(entry), entry["epoch"])

    finished = False
    try:
        yield log
        finished = True
    finally:
        for one in opened:
            one.close(finished=finished)


def require_packages(names: Sequence[LoggerName]) -> None:
    """Look whether the loggers can be had, before anything is trained.

    Raises:
        MissingExtraError: The package of one is not installed.
    """
    for name in names:
        _require(name)


def _require(name: LoggerName) -> None:
    import_extra(name, f"{name} of train.loggers")  # each package goes by its logger's name


class _Opened:
    """A logger, left out once it fails."""

    def __init__(self, name: LoggerName, folder: Path, settings: Mapping[str, Any]) -> None:
        self._name = name
        self._logger: Logger | None = None
        self._try(lambda: self._open(folder, settings))

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        if (logger := self._logger) is not None:
            self._try(lambda: logger.log(figures, epoch))

    def close(self, *, finished: bool) -> None:
        if (logger := self._logger) is not None:
            self._try(lambda: logger.close(finished=finished))

    def _open(self, folder: Path, settings: Mapping[str, Any]) -> None:
        _require(self._name)
        self._logger = LOGGERS[self._name](folder, settings)

    def _try(self, act: Callable[[], None]) -> None:
        try:
            act()
        except UserError:
            raise
        except Exception as error:  # whatever a service or its client makes of a bad day
            if self._name == "dvclive":
                raise
            self._logger = None
            console.print(
                f"train.loggers: {self._name} fails and is left out from here on; the training "
                f"goes on ({tell_briefly(error)})",
                soft_wrap=True,
                markup=False,
            )


class DvcLive:
    """For `dvc plots show` and `dvc metrics diff`."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("DVC_NO_ANALYTICS", "true")
        from dvclive import Live

        self._live = Live(str(folder), dvcyaml=False, save_dvc_exp=False)

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._live.log_metric(name, value)
        self._live.next_step()

    def close(self, *, finished: bool) -> None:
        self._live.end()


class TensorBoard:
    """Files of events, begun anew."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        for name, value in figures.items():
            self._writer.add_scalar(name, value, epoch)

    def close(self, *, finished: bool) -> None:
        self._writer.close()


class WandB:
    """A run of Weights & Biases: a folder for `wandb sync`, or online where WANDB_MODE says so.

    After a stop the run has the id that it had. Online, epochs that it has are left out; offline
    the new folder holds all of them.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # which also keeps it from asking
        os.environ.setdefault("WANDB_MODE", "offline")
        import wandb

        self._run_of = _RunOfTraining(folder, settings)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=self._run_of.id or uuid.uuid4().hex[:12],
            resume="allow",
            reinit="create_new",
            dir=folder.parent,
            config=dict(settings),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self._run_of.begin(self._run.id)
        self._num_known = self._run.step

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        if epoch >= self._num_known:
            self._run.log(dict(figures), step=epoch)

    def close(self, *, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
        if finished:
            self._run_of.end()


class MLflow:
    """A run of MLflow, in `folder`/mlflow.db or where MLFLOW_TRACKING_URI says."""

    _PARAMS_A_CALL = 100  # MLflow takes no more

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # not for minutes
        os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
        logging.getLogger("alembic").setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        folder.mkdir(parents=True, exist_ok=True)
        self._run_of = _RunOfTraining(folder, settings)
        place = f"sqlite:///{folder.resolve() / 'mlflow.db'}"
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI", place))
        self._run_id = self._go_on() or self._begin(folder, settings)
        self._run_of.begin(self._run_id)
        known = self._client.get_metric_history(self._run_id, "train_loss")
        self._num_known = max((point.step + 1 for point in known), default=0)

    def _go_on(self) -> str | None:
        """The run of before a stop, unless it was deleted."""
        if self._run_of.id is None:
            return None
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(self._run_of.id)
        except MlflowException:
            return None
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(self._run_of.id, status="RUNNING")
        return self._run_of.id

    def _begin(self, folder: Path, settings: Mapping[str, Any]) -> str:
        from mlflow.entities import Param

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self._client.get_experiment_by_name(name)
        if found is None:
            experiment = self._client.create_experiment(name)
        else:
            experiment = found.experiment_id
        run_id: str = self._client.create_run(experiment).info.run_id
        params = [Param(key, str(value)) for key, value in flatten(settings).items()]
        for start in range(0, len(params), self._PARAMS_A_CALL):
            part = params[start : start + self._PARAMS_A_CALL]
            self._client.log_batch(run_id, params=part)
        return run_id

    def log(self, figures: Mapping[str, float], epoch: int) -> None:
        if epoch < self._num_known:
            return
        for name, value in figures.items():
            self._client.log_metric(self._run_id, name, value, step=epoch)

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")
        if finished:
            self._run_of.end()


LOGGERS: dict[LoggerName, Callable[[Path, Mapping[str, Any]], Logger]] = {
    "dvclive": DvcLive,
    "tensorboard": TensorBoard,
    "wandb": WandB,
    "mlflow": MLflow,
}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted keys.

    Examples:
        >>> flatten({"seed": 0, "head": {"width": 16}})
        {'seed': 0, 'head.width': 16}
    """
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


class _RunOfTraining:
    """Which run of a service a training that was not brought to its end has.

    Attributes:
        id: The run's; None where the last training of these settings was finished, or there was
            none.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self._file = folder / "unfinished.json"
        self._training = sha256_json(dict(settings))
        self.id: str | None = None
        if self._file.exists():
            record = read_json(self._file)
            self.id = record["run"] if record["training"] == self._training else None

    def begin(self, run: str) -> None:
        """Note it for a training that goes on."""
        write_json(self._file, {"training": self._training, "run": run})

    def end(self) -> None:
        """The training has come to its end."""
        self._file.unlink(missing_ok=True)
