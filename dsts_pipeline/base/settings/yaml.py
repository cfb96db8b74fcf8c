"""YAML that people write, read in one place: params.yaml, experiments, values of --set and --grid.

Enters: text of YAML 1.2, as DVC reads it. Leaves: its plain values. An alias (`*name`) stands for
all that its anchor holds, so ten lines of aliases of aliases can stand for billions of values; what
the text stands for is counted on its events, before a single value is made.
"""

from __future__ import annotations

from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent, NodeEvent

MAX_VALUES = 100_000
MAX_DEPTH = 50
_MAX_BITS = 1024


def read_yaml(text: str) -> Any:
    """The value of a YAML text; None of an empty one.

    Raises:
        YAMLError: It is no YAML, has names that are no plain values, or stands for too much.
    """
    try:
        _count_values(text)
        value = YAML(typ="safe", pure=True).load(text)
    except (ValueError, ArithmeticError, RecursionError) as error:  # 2001-99-99, 1e9999999999
        raise YAMLError(f"a value cannot be read ({error})") from None
    _require_plain(value)
    return value


def _count_values(text: str) -> None:
    """Refuse a text that is too deep, or whose aliases stand for too much or for themselves."""
    sizes: dict[str, int] = {}  # by anchor, of those that are complete
    open_nodes: list[tuple[str | None, int]] = []  # anchor, and values before it
    total = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, CollectionEndEvent):
            anchor, before = open_nodes.pop()
            if anchor is not None:
                sizes[anchor] = total - before
            continue
        if not isinstance(event, NodeEvent):
            continue
        where = f"line {event.start_mark.line + 1}"
        if isinstance(event, AliasEvent):
            if event.anchor in [anchor for anchor, _ in open_nodes]:
                raise YAMLError(f"{where}: *{event.anchor} is a part of itself")
            total += sizes.get(event.anchor, 1)  # an unknown one is told by the parser
        else:
            total += 1
            if isinstance(event, CollectionStartEvent):
                open_nodes.append((event.anchor, total - 1))
            elif event.anchor is not None:
                sizes[event.anchor] = 1
        if total > MAX_VALUES:
            raise YAMLError(
                f"{where}: with its aliases (*name) the text stands for more than {MAX_VALUES:,} "
                "values; write out what is meant"
            )
        if len(open_nodes) > MAX_DEPTH:
            raise YAMLError(f"{where}: nested more than {MAX_DEPTH} levels deep")


def _require_plain(value: Any, depth: int = 0) -> None:
    """Names of a mapping are texts, numbers or truths, and numbers can be written out."""
    if depth > MAX_DEPTH:
        raise YAMLError(f"nested more than {MAX_DEPTH} levels deep by its aliases")
    if isinstance(value, dict):
        for name, inner in value.items():
            if not isinstance(name, str | int | float | bool | None):
                raise YAMLError(f"{name!r} is the name of a value; expected a plain text")
            _require_plain(inner, depth + 1)
    elif isinstance(value, list | tuple | set):
        for inner in value:
            _require_plain(inner, depth + 1)
    elif isinstance(value, int) and value.bit_length() > _MAX_BITS:
        raise YAMLError(f"a whole number of {value.bit_length():,} bits; none has more than 1,024")
