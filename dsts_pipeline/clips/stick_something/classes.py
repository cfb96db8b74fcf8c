"""The 24 classes of stick something, written as Something-Something v2 writes its templates.

Labels follow the alphabet. Most classes have a twin that differs in direction, in order or in one
small detail; a mirrored picture of some shows another class (`FLIP_PAIRS`).
"""

from __future__ import annotations

TEMPLATES: tuple[str, ...] = (
    "Closing [something]",
    "Covering [something] with [something]",
    "Moving [something] and [something] away from each other",
    "Moving [something] and [something] closer to each other",
    "Opening [something]",
    "Picking [something] up",
    "Pouring [something] into [something]",
    "Pouring [something] into [something] until it overflows",
    "Pretending to pick [something] up",
    "Pretending to pour [something] out of [something], but [something] is empty",
    "Pretending to turn [something] upside down",
    "Pulling [something] from left to right",
    "Pulling [something] from right to left",
    "Pushing [something] from left to right",
    "Pushing [something] from right to left",
    "Putting [something] into [something]",
    "Putting [something] next to [something]",
    "Putting [something] onto [something]",
    "Taking [something] out of [something]",
    "Trying to pour [something] into [something], but missing so it spills next to it",
    "Turning [something] upside down",
    "Turning the camera left while filming [something]",
    "Turning the camera right while filming [something]",
    "Uncovering [something]",
)
CLASS_NAMES: tuple[str, ...] = tuple(
    template.replace("[something]", "something") for template in TEMPLATES
)

# Class -> class that its mirror image shows.
FLIP_PAIRS: tuple[tuple[int, int], ...] = ((11, 12), (13, 14), (21, 22))

# What differs within a pair: the look of things, the order of frames, the direction in the frame.
TWINS: dict[str, tuple[tuple[int, int], ...]] = {
    "direction": FLIP_PAIRS,
    "order": ((0, 4), (1, 23), (2, 3), (15, 18)),
    "detail": (
        (5, 8),  # does the object come along
        (6, 7),  # does the liquid run over the rim
        (6, 9),  # is there any liquid
        (6, 19),  # inside or beside
        (11, 13),  # is the hand in front of the object or behind it, as it moves
        (12, 14),
        (16, 17),  # on the other or beside it
        (10, 20),  # all the way round or back
    ),
}


def flip_label(label: int) -> int:
    """The class that the mirror image of a clip of class `label` shows.

    >>> flip_label(11), flip_label(12), flip_label(0)
    (12, 11, 0)
    """
    for first, second in FLIP_PAIRS:
        if label in (first, second):
            return second if label == first else first
    return label
