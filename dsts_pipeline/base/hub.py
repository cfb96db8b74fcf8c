"""The Hugging Face hub by the package huggingface_hub, and what it refuses, in a line.

With the package's own cache, login and variables (HF_HUB_OFFLINE, HF_TOKEN, HF_HOME, HF_ENDPOINT).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dsts_pipeline.base.errors import UserError, import_extra

PREFIX = "hub:"
# As huggingface_hub has it, whose own error for other names is no UserError.
_REPOSITORY = re.compile(
    r"(?=.{3,96}$)(?!.*(?:--|\.\.|\.git$|[-./]/|[-.]$))[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*",
    re.ASCII,
)
_NOT_YOURS = "or you may not use it; correct the name, or log in by `hf auth login`"


def import_hub(purpose: str) -> Any:
    """The package.

    Args:
        purpose: What needs it, for the message.

    Raises:
        MissingExtraError: It is not installed.
    """
    import_extra("huggingface_hub.errors", purpose)
    return import_extra("huggingface_hub", purpose)


def is_repository(name: str) -> bool:
    """Whether `name` is OWNER/NAME."""
    return _REPOSITORY.fullmatch(name) is not None


def own_weights(name: str, weights: str | None) -> str | None:
    """The weights of a model called `name`; a model of the hub has its own.

    Raises:
        ValueError: Others are named for a model of the hub.
    """
    if not name.startswith(PREFIX):
        return weights
    if weights not in (None, name, "random"):
        raise ValueError(
            f"name is {name} and weights {weights}: a model of the hub has its own weights; "
            "expected weights null, or random"
        )
    return weights or name


@contextmanager
def telling(hub: Any, what: str, *, lacks: UserError, instead: str) -> Iterator[None]:
    """Say what the hub refuses, and what to do, in a line.

    Args:
        hub: The package.
        what: The repository, and what was asked for, as the user named it.
        lacks: Raised where the repository has no such file, with the hub's words behind it.
        instead: What to give where there is no network, such as "a bundle's folder".
    """
    errors = hub.errors
    try:
        yield
    except errors.RevisionNotFoundError:
        raise UserError(f"{what}: there is no such branch, tag or commit") from None
    except (errors.RepositoryNotFoundError, errors.LocalTokenNotFoundError):
        raise UserError(f"{what}: no such repository, {_NOT_YOURS}") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(
            f"{what}: not in the cache, and the hub can't be reached or HF_HUB_OFFLINE is set; try "
            f"again with a network, or give {instead}"
        ) from None
    except errors.EntryNotFoundError as error:
        raise type(lacks)(f"{lacks} ({_first_line(error)})") from None
    except errors.HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise UserError(f"{what}: refused, {_NOT_YOURS}") from None
        raise UserError(f"{what}: the hub refuses: {_first_line(error)}") from None
    except (OSError, errors.OfflineModeIsEnabled) as error:
        if getattr(error, "filename", None) is not None:
            raise  # of this machine's disk
        raise UserError(f"{what}: the hub can't be reached: {_first_line(error)}") from None
    except Exception as error:  # of the HTTP client, which is another one in each release
        if "http" not in type(error).__module__:
            raise
        raise UserError(f"{what}: the hub can't be reached: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
