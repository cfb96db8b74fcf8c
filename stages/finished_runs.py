"""Where a finished run's outputs lie: a folder, or a git revision's, taken from DVC's cache."""

from __future__ import annotations

import subprocess
from pathlib import Path

from dsts_pipeline.base.errors import DataError
from stages import places

NEEDED = (places.EVALUATION, places.HEADS)


def outputs_of(run: str, scratch: Path) -> Path:
    """The outputs folder of `run`.

    Args:
        run: an outputs folder, a folder that holds one, or a git revision whose results DVC's
            cache has (the name of a `dvc exp run`, too).
        scratch: where a revision's results are put.

    Raises:
        DataError: It is neither, or the results of the revision are not in the cache.
    """
    for folder in (Path(run), Path(run) / places.OUTPUTS):
        if (folder / places.METRICS.relative_to(places.OUTPUTS)).is_file():
            return folder
    if Path(run).is_dir():
        raise DataError(f"{run}: holds no evaluated run; run `python cli.py evaluate` there")
    if not _is_revision(run):
        raise DataError(f"{run}: neither a folder nor a git revision; name one of these")
    return _take_out(run, scratch)


def _is_revision(run: str) -> bool:
    asked = ["git", "rev-parse", "--verify", "--quiet", "--end-of-options", f"{run}^{{commit}}"]
    return subprocess.run(asked, capture_output=True, check=False).returncode == 0


def _take_out(revision: str, scratch: Path) -> Path:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException

    target = scratch / revision.replace("/", "_")
    try:
        cached = DVCFileSystem(".", rev=revision)
        for place in NEEDED:
            cached.get(place.as_posix(), (target / place.name).as_posix(), recursive=True)
    except (DvcException, OSError) as error:
        raise DataError(
            f"{revision}: its results are not at hand ({error}); `git checkout {revision}` and "
            "`dvc repro` make them again, `dvc pull` fetches them from a remote"
        ) from None
    return target
