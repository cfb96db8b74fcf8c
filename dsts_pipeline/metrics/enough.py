"""Which figures so few clips or classes can't bear, and why.

Enters: counts of clips, classes, bins and neurons. Leaves: a sentence per figure that tables and
pages leave out; the files of results hold all numbers all the same.
"""

from __future__ import annotations

from collections.abc import Sequence

# Choice: the least that each rests on. Below ten clips a bootstrap often gives intervals of no
# width; a bin or a class wants some clips of its own; and the textbook's rule for tests on tables
# of counts is five expected in a cell, here on average in a column.
CLIPS_OF_INTERVAL = 10
CLIPS_OF_BIN = 2
CLIPS_OF_CLASS = 5
CLIPS_OF_NEURON = 5
CLIPS_OF_NEED = 30
TOP = 5


def find_left_out(
    class_sizes: Sequence[int], *, split: str, num_bins: int, num_neurons: int | None
) -> dict[str, str]:
    """The figures that are left out, by name, each with its reason in a sentence.

    Args:
        class_sizes: Evaluated clips of each class, K numbers.
        split: Such as "test".
        num_bins: Of the calibration.
        num_neurons: The most neurons that a head chooses from; None: none chooses.

    Returns:
        Some of "top5", "intervals" (of all clips), "per_class_intervals", "calibration",
        "information" (routes and classes) and "temporal_need".
    """
    num_clips = sum(class_sizes)
    clips = f"{num_clips:,} {split} clip{'' if num_clips == 1 else 's'}"
    found: dict[str, str] = {}
    if len(class_sizes) <= TOP:
        found["top5"] = f"{len(class_sizes)} classes: the right one is always among the first {TOP}"
    if num_clips < CLIPS_OF_INTERVAL:
        found["intervals"] = f"{clips}: too few for intervals"
    filled = [size for size in class_sizes if size]
    if filled and num_clips < CLIPS_OF_CLASS * len(filled):
        found["per_class_intervals"] = (
            f"{clips} of {len(filled)} classes: too few for an interval of each class"
        )
    if num_clips < CLIPS_OF_BIN * num_bins:
        found["calibration"] = f"{clips}: too few for a calibration in {num_bins} bins"
    if num_neurons is not None and num_clips < CLIPS_OF_NEURON * num_neurons:
        found["information"] = (
            f"{clips} on {num_neurons} neurons: too few to tell whether routes follow classes"
        )
    if num_clips < CLIPS_OF_NEED:
        found["temporal_need"] = f"{clips}: too few to tell which classes need the order of frames"
    return found
