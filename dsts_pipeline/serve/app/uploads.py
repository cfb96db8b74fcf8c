"""A request's body -> a temporary file, cut off as soon as it is too large or too slow.

The file's name is ours: what a visitor calls it is never part of a path.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from starlette.requests import ClientDisconnect, Request

from dsts_pipeline.base.files import NO_ROOM
from dsts_pipeline.serve.app.limits import Limits


class UploadRefused(Exception):
    """A file that is not taken.

    Attributes:
        status: Of the HTTP answer.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@asynccontextmanager
async def received_file(request: Request, folder: Path, limits: Limits) -> AsyncIterator[Path]:
    """The body as a file below `folder`, deleted at the end of the block.

    Raises:
        UploadRefused: It is too large, too slow, empty, or was broken off, or the disk is full.
    """
    promised = request.headers.get("content-length", "")
    if promised.isdecimal() and int(promised) > limits.upload_bytes:
        raise UploadRefused(413, _too_large(limits))
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".upload")
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            num_bytes = 0
            try:
                async with asyncio.timeout(limits.upload_seconds):
                    async for block in request.stream():
                        num_bytes += len(block)
                        if num_bytes > limits.upload_bytes:
                            raise UploadRefused(413, _too_large(limits))
                        file.write(block)
            except TimeoutError:
                seconds = f"{limits.upload_seconds:g}"
                raise UploadRefused(408, f"the file took longer than {seconds} s") from None
            except ClientDisconnect:
                raise UploadRefused(400, "the upload was broken off") from None
            except OSError as error:
                if error.errno not in NO_ROOM:
                    raise
                raise UploadRefused(507, "there is no room for the file here") from None
        if not num_bytes:
            raise UploadRefused(400, "the file is empty")
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _too_large(limits: Limits) -> str:
    return f"the file is larger than {limits.upload_bytes / 2**20:g} MiB"
