"""The 48 classes of stick diving, written as Diving48 writes its vocabulary.

A class is [takeoff, somersault, twist, position]: every takeoff performs the same twelve dives.
Somersaults and twists are counted in halves, as in Diving48 ("15som" is one and a half).
"""

from __future__ import annotations

from dataclasses import dataclass

ATTRIBUTE_NAMES = ("takeoff", "somersault", "twist", "position")
TAKEOFFS = ("Forward", "Back", "Reverse", "Inward")
_DIVES = (
    ("10som", "NoTwis", "STR"),
    ("10som", "NoTwis", "PIKE"),
    ("15som", "NoTwis", "STR"),
    ("15som", "NoTwis", "PIKE"),
    ("15som", "NoTwis", "TUCK"),
    ("20som", "NoTwis", "PIKE"),
    ("20som", "NoTwis", "TUCK"),
    ("25som", "NoTwis", "PIKE"),
    ("25som", "NoTwis", "TUCK"),
    ("15som", "05Twis", "FREE"),
    ("15som", "1Twis", "FREE"),
    ("15som", "15Twis", "FREE"),
)
_TWISTS = {"NoTwis": 0.0, "05Twis": 0.5, "1Twis": 1.0, "15Twis": 1.5}
VOCABULARY: tuple[tuple[str, str, str, str], ...] = tuple(
    (takeoff, *dive) for takeoff in TAKEOFFS for dive in _DIVES
)


@dataclass(frozen=True)
class DiveClass:
    """What the renderer needs to know of a class.

    Attributes:
        facing: +1 when the diver faces the water at takeoff, -1 when the board.
        spin: +1 when the head first moves towards the water, -1 when towards the board.
        somersaults: Whole turns about the transverse axis.
        twists: Whole turns about the long axis.
        position: "STR", "PIKE", "TUCK" or "FREE".
    """

    facing: int
    spin: int
    somersaults: float
    twists: float
    position: str


def describe_class(label: int) -> DiveClass:
    """The dive of class `label` (0 to 47)."""
    takeoff, somersault, twist, position = VOCABULARY[label]
    return DiveClass(
        facing=1 if takeoff in ("Forward", "Reverse") else -1,
        spin=1 if takeoff in ("Forward", "Back") else -1,
        somersaults=int(somersault.removesuffix("som")) / 10,
        twists=_TWISTS[twist],
        position=position,
    )
