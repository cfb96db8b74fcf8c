"""The tables that `dvc plots show` draws."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from dsts_pipeline.base.files import write_atomic
from stages import places


def write_plot_tables(tables: Mapping[str, str]) -> None:
    """Write CSV texts by path below outputs/evaluation/plots; what lay there before is removed."""
    shutil.rmtree(places.PLOT_TABLES, ignore_errors=True)  # of heads that are gone
    for name, text in tables.items():
        write_atomic(places.PLOT_TABLES / name, text.encode())
