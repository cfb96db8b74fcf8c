"""One writer a store: a lock that ends with the process, however it ends."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.feature_store import layout


def lock_store(store: Path) -> int:
    """Lock a store for writing and return the descriptor; closing it unlocks.

    A POSIX record lock: the kernel drops it when the process dies, forked decode workers do not
    inherit it, and it also holds between hosts on NFS.

    Raises:
        StoreError: another process holds the lock.
    """
    descriptor = os.open(store / layout.LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise StoreError(
            f"{store}: another process is writing this store; wait for it or stop it"
        ) from None
    return descriptor
