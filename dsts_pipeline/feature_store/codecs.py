"""zstd: bytes in, a smaller frame out, and back. The zarr v3 `zstd` codec, without its checksum.

Choice: numcodecs, because zarr-python needs it anyway; it releases the interpreter's lock.
The frame's bytes may differ between versions of the zstd library (the maps never do), so a store
that is repaired after an update may hold other bytes than before; its manifest then says so.

Source: https://datatracker.ietf.org/doc/html/rfc8878#section-3.1.1
"""

from __future__ import annotations

import numpy as np
from numcodecs.zstd import Zstd

_MAGIC = b"\x28\xb5\x2f\xfd"


def compress_zstd(content: np.ndarray, level: int) -> bytes:
    """A zstd frame of contiguous bytes (uint8 `[n]`)."""
    return Zstd(level=level).encode(content)


def decompress_zstd(frame: bytes | memoryview, target: np.ndarray) -> None:
    """Unpack a frame into `target`, contiguous and of exactly the content's size.

    Raises:
        ValueError: no zstd frame, a damaged one, or one of another size.
    """
    content = target.reshape(-1).view(np.uint8)
    found = _content_bytes(bytes(frame[:18]))
    if found != content.nbytes:
        raise ValueError(f"a zstd frame of {found} bytes, not {content.nbytes}")
    try:
        Zstd().decode(frame, out=content)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"a damaged zstd frame ({error})") from None


def largest_frame_bytes(num_bytes: int) -> int:
    """Upper bound of a frame's size (ZSTD_compressBound)."""
    small = ((128 * 1024) - num_bytes) >> 11 if num_bytes < 128 * 1024 else 0
    return num_bytes + (num_bytes >> 8) + small


def _content_bytes(header: bytes) -> int | None:
    """Size of the content, as the frame's header states it; None where it does not."""
    if len(header) < 6 or not header.startswith(_MAGIC):
        return None
    descriptor = header[4]
    is_single_segment = bool(descriptor & 0x20)
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    if size == 0:
        return None
    return int.from_bytes(header[start : start + size], "little") + (256 if size == 2 else 0)
