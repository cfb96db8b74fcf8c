"""Python with few packages: `python tests/without.py torch,numpy CODE` finds no others.

The standard library and what the named packages import by themselves are there, too, as far as
`BROUGHT` tells.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from typing import Any

# What packages of the base install import of others, so that it is there wherever they are.
BROUGHT = {
    "torch": ("torchgen", "functorch", "typing_extensions", "sympy", "mpmath"),
    "zarr": (
        "numcodecs",
        "google_crc32c",
        "donfig",
        "yaml",
        "msgspec",
        "packaging",
        "typing_extensions",
    ),
    "pydantic": ("pydantic_core", "annotated_types", "typing_inspection", "typing_extensions"),
    "rich": ("markdown_it", "mdurl", "pygments"),
    "typer": ("click", "shellingham", "annotated_doc"),
}
OURS = ("dsts_pipeline", "stages", "cli", "tests")


class Filtered:
    """A finder that finds nothing but what is allowed."""

    def __init__(self, finder: Any, packages: Sequence[str]) -> None:
        brought = [name for package in packages for name in BROUGHT.get(package, ())]
        self._finder = finder
        self._allowed = {*packages, *brought, *OURS, *sys.stdlib_module_names}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)  # what tells of installed versions

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        package = name.partition(".")[0]
        if package in self._allowed or package.startswith("_"):
            return self._finder.find_spec(name, path, target)
        return None


if __name__ == "__main__":
    allowed, code, *rest = sys.argv[1:]
    sys.meta_path[:] = [Filtered(finder, allowed.split(",")) for finder in sys.meta_path]
    sys.path.insert(0, ".")
    sys.argv = [code, *rest]
    if code.endswith(".py"):
        runpy.run_path(code, run_name="__main__")
    else:
        exec(code, {"__name__": "__main__"})
