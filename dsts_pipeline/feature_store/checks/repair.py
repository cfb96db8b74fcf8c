"""Making room for a repair: damaged shards go, the manifest before them; the writer does the rest.

A store without a manifest is unfinished, so a repair may be stopped at any instant: whoever goes
on writes the shards that are not there.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import StoreError
from dsts_pipeline.base.files import fsync_directory, sign, write_json
from dsts_pipeline.feature_store import layout


@contextmanager
def keep_writers_out(store: Path) -> Iterator[None]:
    """Hold the lock of every shard at once (byte k of the lock file: shard k).

    Raises:
        StoreError: another process is writing the store.
    """
    path = store / layout.LOCK_NAME
    if not path.exists():  # No writer was ever here.
        yield
        return
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            raise
        raise StoreError(
            f"{store}: another process is writing this store; wait for it or stop it"
        ) from None
    try:
        yield
    finally:
        os.close(descriptor)


def remove_damaged(store: str | Path, shards: Iterable[int]) -> None:
    """Take away the manifest, then every file of these shards, so that a writer makes them anew.

    Raises:
        StoreError: another process is writing the store.
    """
    store = Path(store)
    with keep_writers_out(store):
        (store / layout.MANIFEST_NAME).unlink(missing_ok=True)
        fsync_directory(store)
        for shard in shards:
            # The sidecar first: without it no writer trusts what is left of the shard.
            names = [layout.name_sidecar(shard), *layout.name_shard_files(shard, "int8")]
            for name in names:
                (store / name).unlink(missing_ok=True)
        for folder in ("shards", "maps"):
            if (store / folder).is_dir():
                fsync_directory(store / folder)


def keep_provenance(before: bytes, repaired: Mapping[str, Any], store: str | Path) -> bool:
    """Put the old provenance back if the repaired store has the very files of the old manifest.

    Args:
        before: the sound manifest of the store before the repair, as it was in its file.
        repaired: the manifest that the repair ended with.

    Returns:
        Whether all shards came out with their recorded digests.
    """
    old = json.loads(before)
    same = all(old[key] == repaired[key] for key in ("fingerprint", "files", "shards", "failures"))
    if same:  # the rest follows from these, and is what the repair found it to be
        kept = {**repaired, "provenance": old["provenance"]}
        write_json(Path(store) / layout.MANIFEST_NAME, sign(kept))
    return same
