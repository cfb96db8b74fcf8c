"""Seeds: every random stream has a name, and the same name gives the same stream."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *names: str | int) -> int:
    """A 63-bit seed for the stream `names` under the run's `seed`.

    Streams of different names are independent: adding one never shifts another.
    """
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
