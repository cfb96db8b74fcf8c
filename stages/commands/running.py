"""What every command has: the options --params, --set and --debug, and plain words for problems.

Enters: a stage's name and the options. Leaves: its function in stages/ has run, or an error of one
or two lines and an exit status: 0 done, 2 a problem that the message explains, 99 saved on SIGTERM,
130 interrupted.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from dsts_pipeline.base.errors import UserError

Params = Annotated[Path, typer.Option("--params", metavar="FILE", help="Settings file (YAML).")]
Overrides = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Replace one setting for this call; repeatable."
    ),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
PARAMS_FILE = Path("params.yaml")


def run_stage(
    stage: str, params: Path, overrides: list[str], debug: bool, /, **options: Any
) -> None:
    """Load the settings and run a stage with them (and the command's own options).

    Args:
        stage: "file" of stages/, whose function `run` it is, or "file.function".
    """
    with told_plainly(debug):
        from dsts_pipeline.base.params import load_settings

        settings: Any = load_settings(params, overrides)
        file, _, function = stage.partition(".")
        getattr(import_module(f"stages.{file}"), function or "run")(settings, **options)


@contextmanager
def told_plainly(debug: bool) -> Iterator[None]:
    """Turn problems that a user can act on into one or two lines and an exit status."""
    # Threads wait for each other by spinning; if for long, they keep a busy machine's cores from
    # the one that they wait for, if not at all, an idle machine sleeps. Read as torch is imported.
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    try:
        yield
    except UserError as error:
        if debug:
            raise
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_status) from None
    except KeyboardInterrupt:
        if debug:
            raise
        typer.echo("interrupted; the same command goes on from what is finished", err=True)
        raise typer.Exit(130) from None
    except OSError as error:
        from dsts_pipeline.base.files import NO_ROOM

        if debug or error.errno not in (*NO_ROOM, errno.EACCES, errno.EROFS):
            raise
        typer.echo(f"error: {_tell_refusal(error)}", err=True)
        raise typer.Exit(UserError.exit_status) from None


def _tell_refusal(error: OSError) -> str:
    """What the disk refuses, with the file; libraries that write by themselves name none."""
    from dsts_pipeline.base.files import NO_ROOM, explain_refusal, tell_free

    if error.errno not in NO_ROOM:
        return f"{error.filename or 'disk'}: {error.strerror}; write elsewhere, or ask for access"
    cure = "free space, then run the same command again: it goes on from what is finished"
    if error.filename is not None:
        told = explain_refusal(error, error.filename)
        return f"{told.filename}: {told.strerror}; {cure}"
    places = [Path.cwd(), Path(tempfile.gettempdir())]
    free = ", ".join(f"{place}: {tell_free(place)}" for place in places)
    return f"{error.strerror} (of {free}); {cure}"
