"""Run a tool of mmaction2's wheel, unmodified: `python -m dsts_pipeline.mmaction2 train ...`.

Enters: the tool's name and its own arguments. This package, imported first, has put what stands in
for the missing parts of the wheel in place before the tool's first import, so that this also works
where OpenCV's system libraries are missing, and where a config names a base of another package and
pkg_resources is not installed.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from dsts_pipeline.extract.mmaction_compat import zoo_folder


def tool_names() -> dict[str, Path]:
    """The wheel's tools by name, such as train and test."""
    return {path.stem: path for path in sorted((zoo_folder().parents[1] / "tools").glob("*.py"))}


def main(arguments: list[str]) -> None:
    """Run the tool that the first argument names with the others."""
    tools = tool_names()
    if not arguments or arguments[0] not in tools:
        found = arguments[0] if arguments else "nothing"
        sys.exit(
            f"error: {found} is no tool of mmaction2; expected one of {', '.join(tools)}, then its "
            "own arguments: python -m dsts_pipeline.mmaction2 train CONFIG"
        )
    path = str(tools[arguments[0]])
    sys.argv = [path, *arguments[1:]]
    runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
