"""The stores and loaders that benchmarks/store.py compares: each written and read in its own way.

A format writes maps (float16 `[n, C, T, H, W]`) into a folder and gives its ways of reading:
functions of row numbers. Those called "block" read neighbouring rows, which no training does.
"""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import zarr

from dsts_pipeline.feature_store import StorePlan, StoreWriter, open_store

Read = Callable[[np.ndarray], object]
ZARRS = "zarrs.ZarrsCodecPipeline"
ZARR_PYTHON = "zarr.core.codec_pipeline.BatchedCodecPipeline"
_CRC32C = {"name": "crc32c"}
_ZSTD = {"name": "zstd", "configuration": {"level": 1, "checksum": False}}
_ZARR_CODECS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "checksum": [_CRC32C],
    "zstd + checksum": [_ZSTD, _CRC32C],
}


@dataclass(frozen=True)
class Format:
    """One way to keep maps.

    Args:
        name: as the table shows it. form: what is done to a map ("none", "checksum", ...).
        write: puts maps into a (new) folder. readers: opens a folder, gives its ways by name.
    """

    name: str
    form: str
    write: Callable[[Path, np.ndarray], None]
    readers: Callable[[Path], Mapping[str, Read]] = field(default=lambda folder: {})


def list_formats(samples_per_shard: int, num_threads: int) -> list[Format]:
    """All formats that are compared; the first is the memmap."""
    formats = [Format("memmap", "none", _write_memmap, _read_memmap)]
    for form, codec in (("checksum", "none"), ("zstd + checksum", "zstd")):
        formats.append(_format_ours(form, codec, samples_per_shard, num_threads))
    for form in _ZARR_CODECS:
        formats.append(_format_zarr("zarr-python", ZARR_PYTHON, form, samples_per_shard))
        if _is_installed("zarrs"):
            formats.append(_format_zarr("zarrs", ZARRS, form, samples_per_shard))
    formats += [_format_hdf5("none"), _format_hdf5("checksum")]
    if _is_installed("webdataset"):
        formats.append(_format_webdataset(samples_per_shard))
    return formats


def _is_installed(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


def _write_memmap(folder: Path, maps: np.ndarray) -> None:
    np.save(folder / "maps.npy", maps)


def _read_memmap(folder: Path) -> dict[str, Read]:
    maps = np.load(folder / "maps.npy", mmap_mode="r")
    kept: dict[int, np.ndarray] = {}

    def into_same_memory(rows: np.ndarray) -> np.ndarray:
        out = kept.setdefault(len(rows), np.empty((len(rows), *maps.shape[1:]), maps.dtype))
        return np.take(maps, rows, axis=0, out=out, mode="clip")

    return {"memmap": lambda rows: maps[rows], "memmap, memory reused": into_same_memory}


def _format_ours(form: str, codec: str, samples_per_shard: int, num_threads: int) -> Format:
    def write(folder: Path, maps: np.ndarray) -> None:
        clips = [(str(row), 0, "train") for row in range(len(maps))]
        shape = tuple(maps.shape[1:])
        plan = StorePlan(
            {}, clips, ("class",), shape, samples_per_shard=samples_per_shard, codec=codec
        )
        with StoreWriter(folder, plan) as writer:
            for shard in writer.pending_shards():
                positions = writer.shard_clips(shard)
                writer.write_shard(shard, maps[positions.start : positions.stop])
            writer.finish({})

    def readers(folder: Path) -> dict[str, Read]:
        (path,) = folder.iterdir()
        threads = {1: "1 thread", num_threads: f"{num_threads} threads"}
        ways: dict[str, Read] = {}
        for number, text in threads.items():
            ways[f"ours, {text}"] = open_store(path, num_threads=number).read
            if codec == "none":
                unchecked = open_store(path, num_threads=number, verify_checksums=False)
                ways[f"ours, {text}, not verified"] = unchecked.read
        return ways

    return Format("ours", form, write, readers)


def _format_zarr(name: str, pipeline: str, form: str, samples_per_shard: int) -> Format:
    def write(folder: Path, maps: np.ndarray) -> None:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.create_array(
                folder,
                shape=maps.shape,
                dtype=maps.dtype,
                chunks=(1, *maps.shape[1:]),
                shards=(samples_per_shard, *maps.shape[1:]),
                compressors=_ZARR_CODECS[form] or None,
            )
            for start in range(0, len(maps), samples_per_shard):
                array[start : start + samples_per_shard] = maps[start : start + samples_per_shard]

    def readers(folder: Path) -> dict[str, Read]:
        with zarr.config.set({"codec_pipeline.path": pipeline}):
            array = zarr.open_array(folder, mode="r")

        def block(rows: np.ndarray) -> object:
            start = min(int(rows[0]), array.shape[0] - len(rows))
            return array[start : start + len(rows)]

        def loop(rows: np.ndarray) -> np.ndarray:
            out = np.empty((len(rows), *array.shape[1:]), array.dtype)
            for place, row in enumerate(rows.tolist()):
                out[place] = array[row]
            return out

        def selection(rows: np.ndarray) -> np.ndarray:
            return array.oindex[rows]

        ways = {"loop": loop, "selection": selection, "block": block}
        return {f"{name}, {way}": read for way, read in ways.items()}

    return Format(name, form, write, readers)


def _format_hdf5(form: str) -> Format:
    def write(folder: Path, maps: np.ndarray) -> None:
        with h5py.File(folder / "maps.h5", "w") as file:
            chunks = (1, *maps.shape[1:])
            file.create_dataset("maps", data=maps, chunks=chunks, fletcher32=form == "checksum")

    def readers(folder: Path) -> dict[str, Read]:
        maps = h5py.File(folder / "maps.h5", "r")["maps"]

        def loop(rows: np.ndarray) -> np.ndarray:
            out = np.empty((len(rows), *maps.shape[1:]), maps.dtype)
            for place, row in enumerate(rows.tolist()):
                maps.read_direct(out, np.s_[row], np.s_[place])
            return out

        return {"h5py, loop": loop}

    return Format("h5py", form, write, readers)


def _format_webdataset(samples_per_shard: int) -> Format:
    def write(folder: Path, maps: np.ndarray) -> None:
        for start in range(0, len(maps), samples_per_shard):
            with tarfile.open(folder / f"{start // samples_per_shard:06d}.tar", "w") as tar:
                for row in range(start, min(start + samples_per_shard, len(maps))):
                    content = io.BytesIO()
                    np.save(content, maps[row])
                    entry = tarfile.TarInfo(f"{row:08d}.npy")
                    entry.size = content.tell()
                    content.seek(0)
                    tar.addfile(entry, content)

    def readers(folder: Path) -> dict[str, Read]:
        stream = _stream(folder)
        return {"webdataset, stream": lambda rows: np.stack([next(stream) for _ in rows])}

    return Format("webdataset", "none", write, readers)


def _stream(folder: Path) -> Iterator[np.ndarray]:
    """Samples for ever; like every streaming loader it shuffles within a buffer only."""
    import webdataset

    shards = sorted(str(path) for path in folder.iterdir())
    data = webdataset.WebDataset(shards, shardshuffle=False, empty_check=False)
    data = data.shuffle(32, seed=0).decode().to_tuple("npy")
    while True:
        for (sample,) in data:
            yield sample


def sync(folder: Path) -> None:
    """Wait until all files of a folder are on the disk: the promise that our writer makes."""
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fsync(descriptor)
            os.close(descriptor)
