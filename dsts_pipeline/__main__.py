"""`dsts COMMAND` and `python -m dsts_pipeline COMMAND`: the command line, from anywhere.

In a project it is the project's own cli.py, which may have been changed there; elsewhere the one
that the package carries.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from dsts_pipeline.base.project import find_template, is_project


def main() -> None:
    """Run cli.py, which finds stages/ beside itself."""
    here = Path.cwd()
    sys.path.insert(0, str(here if is_project(here) else find_template()))
    import_module("cli").app(prog_name="dsts")


if __name__ == "__main__":
    main()
