"""Decoders that never answer, or break, in a module that decode processes import at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any


def sleep_for_ever(job: object) -> None:
    time.sleep(600)


def break_on_request(job: Any) -> Any:
    """Decode, unless the file's content is an order to meet an error that nobody foresaw."""
    from dsts_pipeline.serve.video_jobs import work

    if Path(job.path).read_bytes() == b"break":
        getattr(None, "decode")  # noqa: B009
    return work(job)
