"""Say what backbone.weights stands for, downloaded where it is an address: what DVC compares.

DVC can't depend on what a setting names, which need not be a file. It runs this before every run of
the pipeline, and reruns what depends on the result where that differs from the last one.
"""

from __future__ import annotations

import time
from pathlib import Path

from dsts_pipeline.base.files import read_json, sha256_file, write_json
from dsts_pipeline.base.progress import console
from dsts_pipeline.base.settings import Settings
from dsts_pipeline.extract.downloads import describe_weights
from stages import common

_SETTLED_SECONDS = 2.0


def run(settings: Settings) -> None:
    """Write kind, digest and size to outputs/weights.json.

    Raises:
        CheckpointError: There is no such file, it cannot be fetched, or it is another one.
    """
    chosen = settings.backbone
    known = Digests(common.WEIGHTS_DIGESTS)
    found = describe_weights(chosen.weights, sha256=chosen.weights_sha256, digest=known.of)
    known.save()
    write_json(common.WEIGHTS, found)
    sha256 = found.get("sha256")
    kind = found.get("model", found["kind"])
    told = f"{kind}, sha256 {sha256[:12]}..." if sha256 else kind
    console.print(f"backbone.weights: {told}", soft_wrap=True, markup=False, highlight=False)


class Digests:
    """SHA-256 of files, kept by place, size and time of change, so that none is read twice."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known = read_json(path) if path.is_file() else {}
        self._used: dict[str, list[str | int]] = {}

    def of(self, path: Path) -> str:
        """The digest of the file at `path`."""
        state = path.stat()
        place = str(path.resolve())
        mark: list[str | int] = [state.st_size, state.st_mtime_ns, state.st_ino]
        *known, sha256 = self._known.get(place, [None])
        if known != mark:
            sha256 = sha256_file(path)
        # A file that has just been written may change again within the clock's grain.
        if time.time() - state.st_mtime > _SETTLED_SECONDS:
            self._used[place] = [*mark, sha256]
        return str(sha256)

    def save(self) -> None:
        """Keep what was asked for."""
        write_json(self._path, self._used)
