"""A training's whole state to a checkpoint and back, bit for bit.

Enters: a `Training` and a folder. Leaves: the checkpoint of the last place (head, optimisers,
average, random generators, sampler's place, the epoch so far, history) and of the best epoch. The
first process writes; all of them read, so they need a common file system.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from dsts_pipeline.base.children import BudgetOver, StopRequest, TrainingStopped
from dsts_pipeline.base.errors import CheckpointError, DataError
from dsts_pipeline.base.files import read_signed, sha256_json, sign, write_atomic, write_json
from dsts_pipeline.learn.training import Best, Training

# ---- checkpoints on disk -------------------------------------------------------------------------
#
# A folder with `last-*.safetensors`, `best-*.safetensors` and, replaced atomically after them,
# `state.json`, which names both files and their digests, and bears one of itself; all are compared
# on resuming. So a checkpoint is there whole or not at all: a process killed, or a disk filled, in
# the middle of saving leaves the one before. Nothing that is loaded can run code.

FORMAT = 1
Tensors = dict[str, Tensor]


class CheckpointFolder:
    """The checkpoint of one training.

    Args:
        path: The folder, made when something is saved.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._lock: int | None = None

    @property
    def state_file(self) -> Path:
        """What marks a checkpoint complete."""
        return self.path / "state.json"

    def lock(self) -> None:
        """Keep other processes from training here until this one ends or calls `unlock`.

        Raises:
            CheckpointError: One does.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise CheckpointError(
                f"{self.path}: another process trains with these very settings here; wait for it "
                "or stop it"
            ) from None
        self._lock = descriptor

    def unlock(self) -> None:
        """Let others train here."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def save_tensors(self, kind: str, step: int, tensors: Tensors) -> dict[str, str]:
        """Write `<kind>-<step>.safetensors`; returns the record that `save` takes."""
        content = save({name: value.contiguous().cpu() for name, value in tensors.items()})
        name = f"{kind}-{step}.safetensors"
        write_atomic(self.path / name, content)
        return {"file": name, "sha256": hashlib.sha256(content).hexdigest()}

    def save(self, values: dict[str, Any], files: dict[str, dict[str, str]]) -> None:
        """Make `values`, with the files that `save_tensors` recorded, the checkpoint.

        Raises:
            OSError: The disk is full, for example; the checkpoint before is whole.
        """
        record = {"format": FORMAT, "values": values, "files": files}
        write_json(self.state_file, sign(record))
        kept = {record["file"] for record in files.values()}
        for path in [*self.path.glob("*.safetensors"), *self.path.glob(".*.tmp")]:
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, Any], dict[str, dict[str, str]]] | None:
        """Values and files of the checkpoint; None where there is none.

        Raises:
            CheckpointError: It is damaged or of another format.
        """
        if not self.state_file.exists():
            return None
        try:
            record = read_signed(self.state_file)
        except DataError as error:
            raise CheckpointError(f"{error}; {self._remedy}") from None
        if not isinstance(record, dict) or record.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.state_file} is no checkpoint of format {FORMAT}; {self._remedy}"
            )
        return record["values"], record["files"]

    def load_tensors(self, record: dict[str, str]) -> Tensors:
        """The tensors of one of the checkpoint's files.

        Raises:
            CheckpointError: The file is missing or not the one that was written.
        """
        path = self.path / record["file"]
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != record["sha256"]:
                raise CheckpointError(
                    f"{path} is damaged: its SHA-256 is not the one in state.json; {self._remedy}"
                )
            return load(content)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path}: not readable ({error}); {self._remedy}") from None

    def remove(self) -> None:
        """Delete the checkpoint; what else lies in its folder stays."""
        self.state_file.unlink(missing_ok=True)
        names = "*.safetensors", ".*.tmp", ".lock"
        for path in [path for name in names for path in self.path.glob(name)]:
            path.unlink(missing_ok=True)
        self.unlock()
        if self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def _remedy(self) -> str:
        return f"delete {self.path} to train from the start"


# ---- the name of a training ----------------------------------------------------------------------
#
# No training resumes another one's state: its folder is named by everything that decides the final
# weights. The initial values stand for how the head was built, the sources' digest for what is done
# with them.

PACKAGE = Path(__file__).resolve().parents[1]
SOURCES = "feed", "head", "learn"


def digest_weights(head: nn.Module) -> str:
    """SHA-256 over all names, types and values of `head`."""
    digest = hashlib.sha256()
    for name, value in sorted(head.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@cache
def digest_sources(folders: tuple[str, ...] = SOURCES) -> str:
    """SHA-256 over the package's code in `folders`; by default what training on maps runs.

    Taken once by a process, so that a file that changes while it runs doesn't rename what it made.
    """
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted((PACKAGE / folder).rglob("*.py")):
            digest.update(str(path.relative_to(PACKAGE)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def training_key(head: nn.Module, decided_by: dict[str, Any]) -> str:
    """Name of the training that starts at `head` as it is.

    Args:
        decided_by: JSON values: options, data, number of processes, kind of device.
    """
    parts = {
        "head": type(head).__name__,
        "config": getattr(head, "config", None),
        "weights": digest_weights(head),
        "sources": digest_sources(),
        "torch": torch.__version__,
    }
    return sha256_json(parts | decided_by)[:16]


# ---- saving and resuming -------------------------------------------------------------------------


@dataclasses.dataclass
class CheckpointOptions:
    """Where and how often a training is saved.

    Args:
        root: Folder in which each training has one of its own, named by what decides it.
        identity: JSON values that name the data, and whatever else decides the training.
        every_batches: Saved after so many batches, and after every epoch; None: epochs alone.
        stop: A request to save and leave.
        used: The folders that trainings with these options had; see `remove_checkpoints`.
    """

    root: Path
    identity: dict[str, Any] = dataclasses.field(default_factory=dict)
    every_batches: int | None = None
    stop: StopRequest | None = None
    used: list[Path] = dataclasses.field(default_factory=list)


def remove_checkpoints(options: CheckpointOptions) -> None:
    """Delete the checkpoints of the trainings that were made with `options`."""
    for path in options.used:
        CheckpointFolder(path).remove()
    if options.root.is_dir() and not any(options.root.iterdir()):
        options.root.rmdir()


class Keeper:
    """Saves a training and restores it; with no options it does neither.

    Used as a context, it keeps others from training in its folder meanwhile.
    """

    def __init__(self, training: Training, options: CheckpointOptions | None) -> None:
        self.training = training
        self.options = options
        self.folder: CheckpointFolder | None = None
        self._best_file: dict[str, str] | None = None
        self._best_epoch: int | None = None
        if options is None:
            return
        decided_by = {
            "recipe": training.recipe.to_json(),
            "data": self._sampler_state()["digest"],
            "identity": options.identity,
            "world_size": training.processes.world_size,
            "device": training.processes.device.type,
        }
        self.folder = CheckpointFolder(options.root / training_key(training.head, decided_by))
        options.used.append(self.folder.path)

    def __enter__(self) -> Keeper:
        if self.folder is not None and self.training.processes.is_first:
            self.folder.lock()
        return self

    def __exit__(self, *_: object) -> None:
        if self.folder is not None:
            self.folder.unlock()

    def resume(self) -> bool:
        """Bring the training to where the checkpoint is; False where there is none.

        Raises:
            CheckpointError: It is damaged, or of another training.
        """
        found = None if self.folder is None else self.folder.load()
        if found is None or self.folder is None:
            return False
        values, files = found
        if (of := values.get("training")) != self.folder.path.name:
            raise CheckpointError(
                f"{self.folder.path} holds the checkpoint of another training ({of}): of another "
                "head, other settings or other clips; delete it to train from the start"
            )
        try:
            self._restore(values, self.folder.load_tensors(files["last"]))
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                f"{self.folder.path} does not fit this training ({error!r}); delete it to train "
                "from the start"
            ) from None
        if values["best"] is not None:
            tensors = self.folder.load_tensors(files["best"])
            on_device = {n: v.to(self.training.processes.device) for n, v in tensors.items()}
            self.training.best = Best(**values["best"], values=on_device)
            self._best_epoch = self.training.best.epoch
            self._best_file = files["best"]
        self._note_place()
        return True

    def after_batch(self) -> None:
        """Save where a checkpoint is due; leave where that is asked for."""
        if self.options is None:
            return
        every = self.options.every_batches
        asked = self.options.stop is not None and self.options.stop.requested
        stop = self.training.processes.any(asked)
        if stop or (every and self.training.num_steps % every == 0):
            self.save()
        if stop:
            self._leave()

    def after_epoch(self) -> None:
        """Save; leave where that is asked for, or no time is left for the next epoch."""
        if self.options is None:
            return
        self.save()
        if self.options.stop is not None and not self.training.is_done:
            self.options.stop.end_epoch()
        asked = self.options.stop is not None and self.options.stop.requested
        if self.training.processes.any(asked):
            self._leave()

    def save(self) -> None:
        """Save the training as it is; the checkpoint before stays whole if that fails."""
        training = self.training
        training.catch_up()
        training.watch.check_weights(training)
        if self.folder is None or not training.processes.is_first:
            return
        values, tensors = self._capture()
        best = training.best
        if best is not None and best.epoch != self._best_epoch:
            self._best_file = self.folder.save_tensors("best", best.epoch + 1, best.values)
            self._best_epoch = best.epoch
        files = {"last": self.folder.save_tensors("last", training.num_steps, tensors)}
        if self._best_file is not None:
            files["best"] = self._best_file
        self.folder.save(values, files)
        self._note_place()

    def _leave(self) -> None:
        assert self.folder is not None and self.options is not None
        assert self.options.stop is not None
        saved = (
            f"training saved after step {self.training.num_steps} in {self.folder.path}; the same "
            "command goes on from there"
        )
        if self.options.stop.budget.is_over:
            raise BudgetOver(f"no time for another epoch: {saved}")
        raise TrainingStopped(f"asked to stop: {saved}", self.options.stop.exit_status)

    def _note_place(self) -> None:
        assert self.folder is not None
        self.training.watch.last_good = (
            f"{self.folder.path} (epoch {self.training.epoch}, step {self.training.num_steps})"
        )

    def _sampler_state(self) -> dict[str, Any]:
        """The cursor's state as the first process sees it: the digest names its process."""
        cursor = self.training.cursor
        first = dataclasses.replace(self.training.sampler, rank=0)
        return cursor.state_dict() | {"digest": first.digest}

    def _capture(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        training = self.training
        stepper = training.stepper
        assert stepper.generator is not None
        tensors = {f"head/{n}": v for n, v in training.head.state_dict().items()}
        tensors |= stepper.upstream.tensors("upstream/") | stepper.downstream.tensors("downstream/")
        tensors["random/noise"] = stepper.generator.get_state()
        tensors["random/torch"] = torch.get_rng_state()
        if training.processes.device.type == "cuda":
            tensors["random/cuda"] = torch.cuda.get_rng_state(training.processes.device)
        if training.average is not None:
            tensors |= {f"average/{n}": v for n, v in training.average.values.items()}
        assert self.folder is not None
        values = {
            "training": self.folder.path.name,
            "epoch": training.epoch,
            "num_steps": training.num_steps,
            "sampler": self._sampler_state(),
            "tally": training.tally.state(),
            "history": training.history,
            "loss_scale": stepper.scale.state(),
            "recipe": training.recipe.to_json(),
            "best": None,
        }
        if training.best is not None:
            best = training.best
            values["best"] = {"accuracy": best.accuracy, "loss": best.loss, "epoch": best.epoch}
        return values, tensors

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        training = self.training
        stepper = training.stepper
        assert stepper.generator is not None
        training.head.load_state_dict(_below("head/", tensors))
        stepper.upstream.load_tensors(_below("upstream/", tensors))
        stepper.downstream.load_tensors(_below("downstream/", tensors))
        stepper.generator.set_state(tensors["random/noise"])
        torch.set_rng_state(tensors["random/torch"])
        if training.processes.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"], training.processes.device)
        if training.average is not None:
            training.average.load(_below("average/", tensors), values["num_steps"])
        own = {"digest": training.sampler.digest}  # the digest names the process
        if values["sampler"]["digest"] == self._sampler_state()["digest"]:
            training.cursor.load_state_dict(values["sampler"] | own)
        else:
            training.cursor.load_state_dict(values["sampler"])
        stepper.scale.load(values["loss_scale"])
        training.epoch = values["epoch"]
        training.num_steps = values["num_steps"]
        training.history = values["history"]
        training.tally.load(values["tally"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
