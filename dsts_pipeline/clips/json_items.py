"""A long JSON list, item by item: of a file of 100 MB only a block is in memory at a time.

Enters: a file that holds one JSON list (a byte-order mark is accepted). Leaves: its items in order.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from dsts_pipeline.base.errors import DataError

_BLOCK_BYTES = 1 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


def iterate_items(
    path: Path, object_hook: Callable[[dict[str, Any]], Any] | None = None
) -> Iterator[Any]:
    """The items of the list in `path`; `object_hook` as in `json.loads`.

    Raises:
        DataError: The file is missing, is no JSON, or holds something else than a list.
    """
    try:
        with open(path, "rb") as file:
            yield from _Scanner(path, file, object_hook).items()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected a JSON list there") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); replace it by a sound copy") from None


class _Scanner:
    def __init__(self, path: Path, file: BinaryIO, object_hook: Any) -> None:
        self._path, self._file = path, file
        self._to_text = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder(object_hook=object_hook).raw_decode
        self._text, self._at, self._ended = "", 0, False

    def items(self) -> Iterator[Any]:
        if self._next_character() != "[":
            kind = type(json.loads(self._rest())).__name__
            raise DataError(f"{self._path}: found {kind}, expected a list of clips")
        self._at += 1
        if self._next_character() == "]":
            self._at += 1
        else:
            while True:
                yield self._item()
                self._at += 1
                if self._text[self._at - 1] == "]":
                    break
        if self._next_character():
            raise json.JSONDecodeError("Extra data", self._text, self._at)

    def _item(self) -> Any:
        """The next item; leaves `_at` at the comma or bracket behind it."""
        self._next_character()
        while True:
            try:
                item, end = self._decode(self._text, self._at)
                end = _SPACE.match(self._text, end).end()  # type: ignore[union-attr]
                if end < len(self._text):  # what follows is seen: the item is whole
                    if self._text[end] not in ",]":
                        raise json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
                    self._at = end
                    return item
                if self._ended:
                    raise json.JSONDecodeError("Expecting ',' delimiter", self._text, end)
            except json.JSONDecodeError:
                if self._ended:
                    raise
            self._read_block()

    def _next_character(self) -> str:
        """Skip space; the character there, or "" at the end of the file."""
        while True:
            self._at = _SPACE.match(self._text, self._at).end()  # type: ignore[union-attr]
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._read_block()

    def _read_block(self) -> None:
        block = self._file.read(_BLOCK_BYTES)
        self._ended = not block
        self._text = self._text[self._at :] + self._to_text.decode(block, final=self._ended)
        self._at = 0

    def _rest(self) -> str:
        while not self._ended:
            self._read_block()
        return self._text
