"""Take something out of a run: features as one file, or the trained head with what belongs to it.

A format is a module with `write(settings, out, **options)`; its keywords are the options that it
knows. A new one is a line in `FORMATS`, and its options in the command.
"""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from dsts_pipeline.base.errors import SettingsError
from dsts_pipeline.base.settings import Settings


class Format(NamedTuple):
    """Who writes it, and how names of its files end; none: it is a folder."""

    module: str
    suffixes: tuple[str, ...]


FORMATS = {
    "hdf5": Format("stages.export_hdf5", (".h5", ".hdf5")),
    "bundle": Format("stages.export_bundle", ()),
    "onnx": Format("stages.export_onnx", (".onnx",)),
    "program": Format("stages.export_program", (".pt2",)),
}


def run(settings: Settings, *, out: Path, format: str | None = None, **options: Any) -> None:
    """Write `out` in `format`; without one, in that whose names end as `out` does.

    Args:
        options: Of the format; those that are None were not given.

    Raises:
        SettingsError: There is no such format, the name does not fit it, or it has no such option.
    """
    name = format or _guess(out)
    if name not in FORMATS:
        raise SettingsError(f"format {name}: expected one of {', '.join(FORMATS)}")
    chosen = FORMATS[name]
    if chosen.suffixes and out.suffix not in chosen.suffixes:
        raise SettingsError(f"{out}, format {name}: expected a name that ends {_list(chosen)}")
    write = import_module(chosen.module).write
    given = {option: value for option, value in options.items() if value is not None}
    if unknown := given.keys() - inspect.signature(write).parameters.keys():
        option = f"--{sorted(unknown)[0].replace('_', '-')}"
        raise SettingsError(f"{option} has no meaning for format {name}; leave it out")
    write(settings, out, **given)


def _guess(out: Path) -> str:
    for name, chosen in FORMATS.items():
        if out.suffix in (chosen.suffixes or ("",)):
            return name
    endings = ", ".join(f"{_list(chosen)} ({name})" for name, chosen in FORMATS.items())
    raise SettingsError(
        f"{out}: expected a name that ends {endings}; or say the format by --format"
    )


def _list(chosen: Format) -> str:
    return f"in {' or '.join(chosen.suffixes)}" if chosen.suffixes else "without a suffix"
