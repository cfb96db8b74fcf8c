"""Storage types: rounding, scales, overflow, compared with definitions written out literally."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from dsts_pipeline.feature_store.shards import compress_zstd, decompress_zstd, largest_frame_bytes
from dsts_pipeline.feature_store.stored_types import (
    STORED_DTYPES,
    STORED_TYPES,
    StoredMaps,
    UnstorableMap,
    encode_map,
    largest_finite,
    measure_quantization,
)

SHAPE = (4, 2, 3, 3)


def make_map(seed: int = 0, spread: float = 20.0) -> np.ndarray:
    """float32, of very different sizes."""
    random = np.random.default_rng(seed)
    return (random.standard_normal(SHAPE) * np.exp(random.uniform(-spread, spread, SHAPE))).astype(
        np.float32
    )


def decode(encoded, stored_type) -> np.ndarray:
    scales = None if encoded.scales is None else encoded.scales[None]
    return StoredMaps(encoded.stored[None], scales, stored_type).to_float()[0]


def nearest_bfloat16(value: np.float32) -> int:
    """Of the two bit patterns around a value the nearer one; of equally near ones the even one."""
    below = int(value.view(np.uint32)) >> 16
    both = [below, below + 1]
    exact = [Fraction(float(np.uint32(bits << 16).view(np.float32))) for bits in both]
    away = [abs(Fraction(float(value)) - one) for one in exact]
    if away[0] == away[1]:
        return next(bits for bits in both if bits % 2 == 0)
    return both[int(away[1] < away[0])]


def test_bfloat16_is_the_nearest_with_ties_to_even():
    source = make_map()
    source.reshape(-1)[:4] = [1 + 2**-8, 1 + 3 * 2**-8, -1 - 2**-8, 0.0]  # ties, and zero
    stored = encode_map(source, "bfloat16").stored
    assert stored.dtype == np.uint16
    expected = [nearest_bfloat16(value) for value in source.reshape(-1)]
    assert stored.reshape(-1).tolist() == expected
    back = decode(encode_map(source, "bfloat16"), "bfloat16")
    assert np.all(np.abs(back - source) <= np.abs(source) * 2**-8)


def test_int8_is_the_nearest_step_and_zero_stays_zero():
    source = make_map(spread=2.0)
    source[1] = 0
    source[2, 0] = 0
    encoded = encode_map(source, "int8")
    assert encoded.scales.dtype == np.float32 and encoded.scales[1] == 0
    np.testing.assert_array_equal(
        encoded.scales, np.abs(source).max(axis=(1, 2, 3)) / np.float32(127)
    )
    for channel in range(4):
        scale = encoded.scales[channel]
        steps = source[channel] / scale if scale else np.zeros(SHAPE[1:])
        assert encoded.stored[channel].tolist() == np.round(steps).astype(int).tolist()
    back = decode(encoded, "int8")
    assert (back[source == 0] == 0).all()
    limits = encoded.scales[:, None, None, None] * 0.500001
    assert (np.abs(back - source) <= limits).all()


def test_int8_of_numbers_too_small_for_a_scale_is_zero():
    source = np.full(SHAPE, 1e-45, np.float32)
    source[0] = 1e-41
    back = decode(encode_map(source, "int8"), "int8")
    assert np.isfinite(back).all() and np.abs(back - source).max() < 1e-41


def test_quantization_sums():
    source = make_map(spread=2.0)
    encoded = encode_map(source, "int8")
    sums = measure_quantization(source, encoded)
    error = (
        encoded.stored.astype(float) * encoded.scales[:, None, None, None].astype(float) - source
    )
    assert sums["error_squares"] == pytest.approx((error**2).sum())
    assert sums["value_squares"] == pytest.approx((source.astype(float) ** 2).sum())
    assert sums["largest_error"] == pytest.approx(np.abs(error).max())


@pytest.mark.parametrize("stored_type", STORED_TYPES)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("on_overflow", ["error", "fail", "saturate"])
def test_nan_and_inf_of_the_source_are_never_stored(stored_type, value, on_overflow):
    source = make_map(spread=1.0)
    source[2, 1, 0, 0] = value
    with pytest.raises(UnstorableMap, match="channel 2 .* is no number to store") as caught:
        encode_map(source, stored_type, on_overflow)
    assert not caught.value.overflows


def test_the_largest_int8_map_is_finite_when_it_is_read():
    source = np.full(SHAPE, largest_finite("int8"), np.float32)
    assert np.isfinite(decode(encode_map(source, "int8"), "int8")).all()
    with pytest.raises(UnstorableMap, match="overflows int8"):
        encode_map(np.full(SHAPE, np.finfo(np.float32).max), "int8")


# The largest number that still rounds to a finite one, and the next float that does not.
EDGES = {"float16": 65520.0, "bfloat16": float(np.uint32(0x7F7F8000).view(np.float32))}


@pytest.mark.parametrize("stored_type", EDGES)
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_begins_where_rounding_reaches_infinity(stored_type, sign):
    source = np.zeros(SHAPE, np.float32)
    edge = np.float32(EDGES[stored_type])
    source[3, 0, 1, 1] = sign * np.nextafter(edge, np.float32(0))
    largest = np.float32(largest_finite(stored_type))
    assert decode(encode_map(source, stored_type), stored_type)[3, 0, 1, 1] == sign * largest
    source[3, 0, 1, 1] = sign * edge
    with pytest.raises(UnstorableMap, match=f"channel 3 .* overflows {stored_type}") as caught:
        encode_map(source, stored_type)
    assert caught.value.overflows and caught.value.value == sign * edge
    cut = encode_map(source, stored_type, "saturate")
    assert cut.num_saturated == 1
    assert decode(cut, stored_type)[3, 0, 1, 1] == sign * largest


@pytest.mark.parametrize("stored_type", ["float32", "int8"])
def test_numbers_beyond_float32_overflow(stored_type):
    source = np.ones(SHAPE)
    source[1, 0, 0, :2] = 1e300
    with pytest.raises(
        UnstorableMap, match=f"channel 1 .* 1e\\+300, which overflows {stored_type}"
    ):
        encode_map(source, stored_type)
    cut = encode_map(source, stored_type, "saturate")
    assert cut.num_saturated == 2
    assert decode(cut, stored_type)[1, 0, 0, 0] == pytest.approx(np.finfo(np.float32).max)


@pytest.mark.parametrize("stored_type", STORED_TYPES)
def test_float64_and_views_are_taken_as_float32(stored_type):
    source = make_map(spread=1.0)
    wide = np.asfortranarray(source.astype(np.float64))
    first, second = encode_map(source, stored_type), encode_map(wide, stored_type)
    assert first.stored.dtype == STORED_DTYPES[stored_type]
    assert first.stored.tobytes() == second.stored.tobytes()


@pytest.mark.parametrize("size", [1, 100, 300, 70_000])
def test_zstd_there_and_back(size):
    content = np.random.default_rng(size).integers(0, 256, size).astype(np.uint8)
    frame = compress_zstd(content, 1)
    assert len(frame) <= largest_frame_bytes(size)
    target = np.empty(size, np.uint8)
    decompress_zstd(frame, target)
    assert target.tobytes() == content.tobytes()


def test_damaged_and_foreign_frames_are_refused():
    frame = compress_zstd(np.arange(200, dtype=np.uint8), 1)
    for damaged in (frame[:-3], frame[:5], b"", b"\0" * 30, frame[:9] + b"\xff" * 30):
        with pytest.raises(ValueError, match="zstd frame"):
            decompress_zstd(damaged, np.empty(200, np.uint8))
    for size in (199, 201):
        with pytest.raises(ValueError, match=f"frame of 200 bytes, not {size}"):
            decompress_zstd(frame, np.empty(size, np.uint8))
