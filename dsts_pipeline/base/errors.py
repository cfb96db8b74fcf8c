"""Errors that a user can act on: what was found, what was expected, what to do.

The command line prints the message of a `UserError` without a traceback and exits with its
`exit_status`; everything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import traceback
from pathlib import Path


class UserError(Exception):
    """A problem in the input, the settings or the machine, told in one or two lines."""

    exit_status = 2


class SettingsError(UserError):
    """A setting is unknown, of the wrong type or out of range."""


class DataError(UserError):
    """A data root, an annotation file or a video is missing, damaged or inconsistent."""


class StoreError(UserError):
    """A feature store is unfinished, damaged or belongs to other settings."""


class CheckpointError(UserError):
    """Saved weights do not fit the model or the settings that they are loaded into."""


class BundleError(UserError):
    """A bundle is damaged, of another version, or its parts do not belong together."""


class ExportError(UserError):
    """A model cannot be exported, or what was exported does not say what PyTorch says."""


class BusyError(UserError):
    """Another process is writing what this one would write."""


def tell_briefly(error: BaseException) -> str:
    """Type and message of an error that nobody foresaw, in one line, such as "KeyError: 'pts'"."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:200]}".rstrip(": ")


def tell_trace(error: BaseException) -> str:
    """Where it happened, in one line for a log that goes on: the innermost call first."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return " < ".join(f"{Path(f.filename).name}:{f.lineno} in {f.name}" for f in frames)
