"""A training's whole state to a checkpoint and back, bit for bit.

Enters: a `Training` and a folder. Leaves: the checkpoint of the last place (head, optimisers,
average, random generators, sampler's place, the epoch so far, history) and of the best epoch. The
first process writes; all of them read, so they need a common file system.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError
from dsts_pipeline.learn.checkpoints import CheckpointFolder
from dsts_pipeline.learn.identity import training_key
from dsts_pipeline.learn.stopping import StopRequest, TrainingStopped
from dsts_pipeline.learn.training import Best, Training


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
        self.training, self.options = training, options
        self.folder: CheckpointFolder | None = None
        self._best_file: dict[str, str] | None = None
        self._best_epoch: int | None = None
        if options is None:
            return
        decided_by = {
            "options": dataclasses.asdict(training.options),
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
            self._best_epoch, self._best_file = self.training.best.epoch, files["best"]
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
        """Save; leave where that is asked for, unless all is done anyway."""
        if self.options is None:
            return
        self.save()
        asked = self.options.stop is not None and self.options.stop.requested
        if self.training.processes.any(asked):
            self._leave()

    def save(self) -> None:
        """Save the training as it is; the checkpoint before stays whole if that fails."""
        training = self.training
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
        raise TrainingStopped(
            f"asked to stop: training saved after step {self.training.num_steps} in "
            f"{self.folder.path}; the same command goes on from there",
            self.options.stop.exit_status,
        )

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
        training, stepper = self.training, self.training.stepper
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
            "loss_scale": dataclasses.asdict(stepper.scale),
            "options": dataclasses.asdict(training.options),
            "best": None,
        }
        if training.best is not None:
            values["best"] = {"loss": training.best.loss, "epoch": training.best.epoch}
        return values, tensors

    def _restore(self, values: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        training, stepper = self.training, self.training.stepper
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
        for name, value in values["loss_scale"].items():
            setattr(stepper.scale, name, value)
        training.epoch, training.num_steps = values["epoch"], values["num_steps"]
        training.history = values["history"]
        training.tally.load(values["tally"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
