"""Who writes which shard: locks that end with the process, however it ends.

POSIX record locks on single bytes of one file: byte k belongs to shard k. The kernel drops them
when the process dies, decode processes do not inherit them, and on NFS they also hold between
hosts. They are the process's: two writers of one process do not exclude each other, and closing
any descriptor of the lock file in that process drops them all.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dsts_pipeline.base.progress import console
from dsts_pipeline.feature_store import layout

_FINISH_BYTE = 2**40
_HELD = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class ShardLocks:
    """Locks on the shards of one store; `close` drops all of them.

    Where the file system has no locks a line says so once, and every lock is granted: shards are
    deterministic and appear by rename, so that two writers of one only waste time.
    """

    def __init__(self, store: Path) -> None:
        self._store, self.are_real = store, True
        self._descriptor = os.open(
            store / layout.LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )

    def try_lock(self, shard: int) -> bool:
        """Lock a shard; False if another process holds it."""
        return self._lock(shard, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def unlock(self, shard: int) -> None:
        """Give a shard free."""
        if self.are_real and self._descriptor >= 0:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, shard)

    @contextmanager
    def finishing(self) -> Iterator[None]:
        """Wait until no other process is finishing this store, and keep others from it."""
        self._lock(_FINISH_BYTE, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self.unlock(_FINISH_BYTE)

    def close(self) -> None:
        """Drop all locks."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _lock(self, byte: int, operation: int) -> bool:
        if not self.are_real:
            return True
        try:
            fcntl.lockf(self._descriptor, operation, 1, byte)
        except OSError as error:
            if error.errno in _HELD:
                return False
            if error.errno not in _UNSUPPORTED:
                raise
            self.are_real = False
            console.print(
                f"{self._store}: no locks here ({error.strerror}); run one `extract` at a time",
                soft_wrap=True,
            )
        return True
