"""Learning curves by DVCLive, for `dvc plots show` and `dvc metrics diff`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# What takes time differs from run to run and is no result: history.json has it.
NOT_LOGGED = ("epoch", "layers", "best", "seconds")


@contextmanager
def log_curves(folder: Path) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Give a function that logs one entry of a training's history as DVCLive's next step."""
    os.environ.setdefault("DVC_NO_ANALYTICS", "true")
    from dvclive import Live

    with Live(str(folder), dvcyaml=False, save_dvc_exp=False) as live:

        def log(entry: dict[str, Any]) -> None:
            for name, value in entry.items():
                if name not in NOT_LOGGED:
                    live.log_metric(name, value)
            for number, layer in enumerate(entry.get("layers", ()), start=1):
                for name in ("entropy", "dead", "saturated_share"):
                    if layer[name] is not None:
                        live.log_metric(f"layer_{number}/{name}", layer[name])
            live.next_step()

        yield log
