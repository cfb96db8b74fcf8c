"""Checkpoints of a training on disk: tensors in safetensors files, the rest in `state.json`.

Enters: tensors by name and JSON values. Leaves: a folder with `last-*.safetensors`,
`best-*.safetensors` and, replaced atomically after them, `state.json`, which names both files and
their digests, and bears one of itself; all are compared on resuming. So a checkpoint is there whole
or not at all: a process killed, or a disk filled, in the middle of saving leaves the one before.
Nothing that is loaded can run code.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from dsts_pipeline.base.errors import CheckpointError, DataError
from dsts_pipeline.base.files import read_signed, sign, write_atomic, write_json

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
