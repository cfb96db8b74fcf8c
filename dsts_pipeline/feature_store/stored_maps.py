"""Maps as they lie in a store, and the numbers that they stand for.

Preloading and transport keep this form: int8 and bfloat16 stay a quarter and half of float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STORED_DTYPES: dict[str, np.dtype] = {
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(np.uint16),
    "float32": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
}


@dataclass(frozen=True)
class StoredMaps:
    """Some maps in the storage type.

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
