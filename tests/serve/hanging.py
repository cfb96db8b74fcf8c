"""A decoder that never answers, in a module that decode processes import at once."""

from __future__ import annotations

import time


def sleep_for_ever(job: object) -> None:
    time.sleep(600)
