"""Learning curves: DVCLive for `dvc plots show` and `dvc metrics diff`; TensorBoard on request.

A training that goes on after a stop logs its earlier epochs again, so curves are always whole.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dsts_pipeline.base.errors import SettingsError

# What takes time differs from run to run and is no result: history.json has it.
NOT_LOGGED = ("epoch", "layers", "best", "seconds")
Log = Callable[[dict[str, Any]], None]


@contextmanager
def log_curves(folder: Path, board: Path | None = None, is_first: bool = True) -> Iterator[Log]:
    """Give a function that logs one entry of a training's history as the next step.

    Args:
        folder: DVCLive's.
        board: TensorBoard's, emptied first; None for none.
        is_first: Whether this process logs.

    Raises:
        SettingsError: TensorBoard is asked for and not installed.
    """
    if not is_first:
        yield lambda entry: None
        return
    writer = None if board is None else _open_board(board)
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    from dvclive import Live

    with Live(str(folder), dvcyaml=False, save_dvc_exp=False) as live:

        def log(entry: dict[str, Any]) -> None:
            for name, value in figures_of(entry).items():
                live.log_metric(name, value)
                if writer is not None:
                    writer.add_scalar(name, value, entry["epoch"])
            live.next_step()

        try:
            yield log
        finally:
            if writer is not None:
                writer.close()


def figures_of(entry: dict[str, Any]) -> dict[str, float]:
    """What of a history's entry is plotted, by name."""
    figures = {name: value for name, value in entry.items() if name not in NOT_LOGGED}
    for number, layer in enumerate(entry.get("layers", ()), start=1):
        for name in ("entropy", "dead", "saturated_share"):
            if layer[name] is not None:
                figures[f"layer_{number}/{name}"] = layer[name]
    return figures


def _open_board(board: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError(
            "train.tensorboard is true and TensorBoard is not installed; run "
            '`pip install -c constraints.txt -e ".[tensorboard]"` or set it to false'
        ) from None
    shutil.rmtree(board, ignore_errors=True)
    return SummaryWriter(str(board))
