"""What a clip that is mirrored left to right shows.

Enters: a data set's rule from the settings. Leaves: the label of a mirrored clip, or that there is
none. In Diving48 a mirrored dive is the same dive; in Something-Something v2 "from left to right"
becomes "from right to left", so that a flip without a change of label would teach the opposite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from dsts_pipeline.base.errors import SettingsError


@dataclass(frozen=True)
class FlipRule:
    """How a data set takes mirroring.

    Attributes:
        kind: "allowed" keeps every label, "label_mapped" swaps those of `pairs`, "forbidden" has
            no label for a mirrored clip.
        pairs: Classes that are each other's mirror image.

    >>> FlipRule("label_mapped", ((86, 87),)).map_label(87)
    86
    """

    kind: Literal["allowed", "label_mapped", "forbidden"] = "allowed"
    pairs: tuple[tuple[int, int], ...] = ()

    @cached_property
    def _swapped(self) -> dict[int, int]:
        return {a: b for first, second in self.pairs for a, b in ((first, second), (second, first))}

    def map_label(self, label: int) -> int:
        """The class of a mirrored clip of class `label`.

        Raises:
            SettingsError: Mirroring is forbidden.
        """
        if self.kind == "forbidden":
            raise SettingsError(
                "dataset.flip is forbidden: a mirrored clip has no class; leave flipping out, or "
                "set dataset.flip to allowed or label_mapped"
            )
        return self._swapped.get(label, label)

    def check(self, class_names: Sequence[str]) -> None:
        """Compare the pairs with the classes of the data set that was read.

        Raises:
            SettingsError: A class is unknown, stands in two pairs or in one with itself; or a
                name speaks of left or right, and the class it is paired with does not say the
                opposite.
        """
        seen: set[int] = set()
        for pair in self.pairs:
            for label in pair:
                if not 0 <= label < len(class_names):
                    raise SettingsError(
                        f"dataset.flip_pairs: there is no class {label}; expected 0 to "
                        f"{len(class_names) - 1}"
                    )
            if seen & set(pair) or len(set(pair)) < 2:
                raise SettingsError(
                    f"dataset.flip_pairs: {list(pair)} repeats a class; expected each class in at "
                    "most one pair"
                )
            seen |= set(pair)
            _check_names(class_names[pair[0]], class_names[pair[1]])


def _check_names(first: str, second: str) -> None:
    """Names that speak of sides must become each other when the sides are swapped."""
    other = {"left": "right", "right": "left"}
    mirrored = " ".join(other.get(word, word) for word in first.split())
    if other.keys() & first.split() and mirrored != second:
        raise SettingsError(
            f"dataset.flip_pairs pairs {first!r} with {second!r}, which is not its mirror image; "
            "compare the numbers with the labels file"
        )
