"""Float maps -> what is stored: float16, bfloat16, float32, or int8 with a scale per channel.

Enters: one map `[C, T, H, W]` of any float type. Leaves: an array of `STORED_DTYPES` and, for
int8, its scales. The way back is `StoredMaps.to_float`.

    bfloat16    the upper half of a float32, rounded to nearest, ties to even; kept as uint16
    int8        stored = round(x / scale), ties to even, scale = max|x| / 127 per map and channel,
                both in float32; a channel of zeros (or of less than 1e-43) has scale 0

Choice: symmetric scales, because zero (half of a ReLU map) then stays exactly zero. Every map is
taken as float32 first, so that one rule of rounding holds whatever the caller hands in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

STORED_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}
OnOverflow = Literal["error", "fail", "saturate"]
STORED_TYPES = tuple(STORED_DTYPES)
INT8_LIMIT = 127
_BFLOAT16_INFINITY = 0x7F80
_EXPONENTS = {"float16": 0x7C00, "bfloat16": _BFLOAT16_INFINITY}
_BFLOAT16_LARGEST = 0x7F7F
_BLOCK = 2**14


@dataclass(frozen=True)
class StoredMaps:
    """Some maps in the storage type, the form that preloading and transport keep.

    Args:
        maps: `[n, C, T, H, W]`, of `STORED_DTYPES[stored_type]`.
        scales: float32 `[n, C]` where the type is int8, else None.
        stored_type: "float16", "bfloat16", "float32" or "int8".
    """

    maps: np.ndarray
    scales: np.ndarray | None
    stored_type: str

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, chosen: slice | np.ndarray) -> StoredMaps:
        """Some of the maps, chosen as NumPy does."""
        scales = None if self.scales is None else self.scales[chosen]
        return StoredMaps(self.maps[chosen], scales, self.stored_type)

    @property
    def nbytes(self) -> int:
        """Bytes that the maps and their scales take."""
        return self.maps.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def to_float(self, out: np.ndarray | None = None) -> np.ndarray:
        """The maps as numbers: float16 as it is, everything else as float32.

        Args:
            out: where to put them; float16 maps may go into float32 too. By default the same
                memory is returned where nothing has to be converted.
        """
        if self.stored_type in ("float16", "float32"):
            if out is None:
                return self.maps
            np.copyto(out, self.maps)
            return out
        if out is None:
            out = np.empty(self.maps.shape, dtype=np.float32)
        if self.stored_type == "bfloat16":
            np.left_shift(self.maps, np.uint32(16), out=out.view(np.uint32), dtype=np.uint32)
        elif self.scales is not None:
            np.multiply(self.maps, self.scales[:, :, None, None, None], out=out)
        return out


# ---- one map, encoded --------------------------------------------------------------------------


class UnstorableMap(Exception):
    """A map that a storage type can't hold.

    Attributes:
        channel: the first channel that is concerned. value: its first such value.
        overflows: False where the source itself is NaN or Inf: no storage type helps then.
    """

    def __init__(self, channel: int, value: float, stored_type: str, overflows: bool) -> None:
        self.channel = channel
        self.value = value
        self.overflows = overflows
        super().__init__(
            f"channel {channel} of its map holds {value:g}, "
            + (f"which overflows {stored_type}" if overflows else "which is no number to store")
        )


@dataclass(frozen=True)
class EncodedMap:
    """One map as it is stored.

    Args:
        stored: `[C, T, H, W]` of `STORED_DTYPES[stored_type]`.
        scales: float32 `[C]` for int8, else None.
        num_saturated: how many values were cut to the type's largest finite one.
    """

    stored: np.ndarray
    scales: np.ndarray | None
    num_saturated: int = 0


def encode_map(
    source: np.ndarray, stored_type: str, on_overflow: OnOverflow = "error"
) -> EncodedMap:
    """Convert one map for storage.

    Args:
        source: `[C, T, H, W]`, any float type.
        stored_type: one of `STORED_TYPES`.
        on_overflow: "saturate" cuts finite values that the type can't hold to its largest finite
            one and counts them; with the others such a value makes the map unstorable.

    Raises:
        UnstorableMap: NaN or Inf in the source, or a value that overflows the type.
    """
    is_stored_so = source.dtype == np.float16 and stored_type == "float16"
    with np.errstate(over="ignore"):
        values = np.ascontiguousarray(source, dtype=np.float16 if is_stored_so else np.float32)
    encoded = _convert(values, stored_type)
    if stored_type in _EXPONENTS and _has_finite_bits(encoded.stored, _EXPONENTS[stored_type]):
        return encoded
    lost = ~_is_finite(values, encoded.stored, stored_type)
    if not lost.any():
        return encoded
    void = lost & ~np.isfinite(source)
    if on_overflow != "saturate" or void.any():
        place = np.unravel_index(int(np.argmax(void if void.any() else lost)), lost.shape)
        raise UnstorableMap(int(place[0]), float(source[place]), stored_type, not void.any())
    limit = np.float32(largest_finite(stored_type))
    cut = _convert(np.clip(values, -limit, limit), stored_type)
    return EncodedMap(cut.stored, cut.scales, int(lost.sum()))


def largest_finite(stored_type: str) -> float:
    """The largest value that a storage type holds.

    int8's is one step below float32's: 127 times its scale, rounded, must still be finite.
    """
    if stored_type == "bfloat16":
        return float(np.uint32(_BFLOAT16_LARGEST << 16).view(np.float32))
    if stored_type == "int8":
        return float(np.nextafter(np.finfo(np.float32).max, np.float32(0)))
    return float(np.finfo(np.float16 if stored_type == "float16" else np.float32).max)


def measure_quantization(source: np.ndarray, encoded: EncodedMap) -> dict[str, Any]:
    """Sums over one int8 map from which its store's quantisation error follows.

    Errors are those of the float32 numbers that a reader gets; they are summed in float64.
    """
    assert encoded.scales is not None
    error = encoded.stored * encoded.scales[:, None, None, None]
    error -= source
    return {
        "error_squares": _sum_squares(error),
        "value_squares": _sum_squares(source),
        "largest_error": float(max(error.max(), -error.min())),
    }


def _sum_squares(values: np.ndarray) -> float:
    """In float64, in blocks that stay in the processor's cache."""
    flat = values.reshape(-1)
    blocks = (flat[start : start + _BLOCK] for start in range(0, len(flat), _BLOCK))
    return math.fsum(float(np.square(block, dtype=np.float64).sum()) for block in blocks)


def _convert(values: np.ndarray, stored_type: str) -> EncodedMap:
    if values.dtype == STORED_DTYPES[stored_type]:
        return EncodedMap(values, None)
    import torch  # Rounds as NumPy does, 15 times as fast; late, since readers do without it.

    tensor = torch.from_numpy(values if values.flags.writeable else values.copy())
    if stored_type == "float16":
        return EncodedMap(tensor.to(torch.float16).numpy(), None)
    if stored_type == "bfloat16":
        bits = tensor.to(torch.bfloat16).view(torch.int16)
        return EncodedMap(bits.numpy().view(np.uint16), None)
    scales = tensor.abs().amax(dim=(1, 2, 3)).numpy() / np.float32(INT8_LIMIT)
    divisors = torch.from_numpy(np.where(scales > 0, scales, np.float32(np.inf)))
    steps = (tensor / divisors[:, None, None, None]).round_()
    # A subnormal scale is itself rounded, and the quotient may then exceed 127.
    return EncodedMap(steps.clamp_(-INT8_LIMIT, INT8_LIMIT).to(torch.int8).numpy(), scales)


def _has_finite_bits(stored: np.ndarray, exponent: int) -> bool:
    """Whether no number of 16 bits has all bits of its exponent set, as Inf and NaN have."""
    return stored.size == 0 or int((stored.view(np.uint16) & 0x7FFF).max()) < exponent


def _is_finite(values: np.ndarray, stored: np.ndarray, stored_type: str) -> np.ndarray:
    if stored_type == "float16":
        return np.isfinite(stored)
    if stored_type == "bfloat16":
        return np.isfinite(values) & ((stored & _BFLOAT16_INFINITY) != _BFLOAT16_INFINITY)
    if stored_type == "int8":
        return np.abs(values) <= np.float32(largest_finite("int8"))  # False for NaN, too
    return np.isfinite(values)
