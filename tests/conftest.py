"""What all tests share: where the repository is, and one thread per process."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported anywhere: tests run side by side, and threads would only fight.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell starts what it puts into the background with SIGINT ignored, which programs inherit: then
# none that the tests start could be interrupted.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return Path(__file__).resolve().parents[1]
