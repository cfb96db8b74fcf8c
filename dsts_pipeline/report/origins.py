"""Where the figures come from: what each stage noted, joined into one list without repetition.

Enters: per part of the run ("evaluation", "features", ...) the dictionary of
`base.provenance.collect_provenance`. Leaves: (name, text) pairs in three groups.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Pairs = list[tuple[str, str]]


@dataclass(frozen=True)
class Origins:
    """Facts such as commit and machine, versions of packages, settings."""

    facts: Pairs
    versions: Pairs
    settings: Pairs


def join_origins(parts: Mapping[str, Mapping[str, Any]]) -> Origins:
    """One list for all parts; where parts differ in a value, each value names its parts."""
    groups = ("versions", "settings")
    facts = {
        part: {key: value for key, value in noted.items() if key not in groups}
        for part, noted in parts.items()
    }
    versions, settings = (
        {part: noted.get(group, {}) for part, noted in parts.items()} for group in groups
    )
    return Origins(_join(facts), _join(versions), _join(settings))


def _join(parts: Mapping[str, Mapping[str, Any]]) -> Pairs:
    values: dict[str, dict[str, list[str]]] = {}
    for part, noted in parts.items():
        for key, text in flatten(noted):
            values.setdefault(key, {}).setdefault(text, []).append(part)
    return [(key, _differing(texts)) for key, texts in values.items()]


def _differing(texts: Mapping[str, list[str]]) -> str:
    if len(texts) == 1:
        return next(iter(texts))
    return "; ".join(f"{text} ({', '.join(parts)})" for text, parts in texts.items())


def flatten(value: Any, prefix: str = "") -> Pairs:
    """Nested dictionaries as (dotted name, text) pairs; lists stay on one line."""
    if isinstance(value, Mapping):
        pairs = (flatten(inner, f"{prefix}.{key}".lstrip(".")) for key, inner in value.items())
        return [pair for group in pairs for pair in group]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [(prefix, ", ".join(str(item) for item in value))]
    if value is None or isinstance(value, bool):
        return [(prefix, "none" if value is None else "yes" if value else "no")]
    return [(prefix, str(value))]
