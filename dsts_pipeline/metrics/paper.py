"""Figures that the paper reports (its Tables 1 to 7), as context beside a run's own.

Source: Li, Foo et al., Dynamic Spatio-Temporal Specialization Learning for Fine-Grained Action
Recognition, ECCV 2022, arXiv 2209.01425. Percent. They were measured by its authors, on their
data and with full-size backbones trained end to end: never mix them into a run's own tables.
"""

from __future__ import annotations

from dataclasses import dataclass

CITATION = "Li, Foo et al., ECCV 2022, arXiv 2209.01425"


@dataclass(frozen=True)
class PaperTable:
    """One table: what varies, column names, rows of text; `best` is the paper's own setting."""

    number: int
    about: str
    dataset: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: tuple[int, ...]


_CLASS_WISE = ("top-1", "class-wise")

PAPER_TABLES = (
    PaperTable(
        1,
        "methods",
        "Something-Something V2",
        ("method", "top-1", "top-5"),
        (
            ("SlowFast", "63.1", "87.6"),
            ("TPN", "64.7", "88.1"),
            ("ViViT-L", "65.4", "89.8"),
            ("TSM, two streams", "66.6", "91.3"),
            ("MViT-B", "67.7", "90.9"),
            ("Swin-B", "69.6", "92.7"),
            ("TPN with DSTS", "67.2", "89.2"),
            ("Swin-B with DSTS", "71.8", "93.7"),
        ),
        (6, 7),
    ),
    PaperTable(
        2,
        "methods",
        "Diving48",
        ("method", *_CLASS_WISE),
        (
            ("I3D", "48.3", "33.2"),
            ("TSM, two streams", "52.5", "32.7"),
            ("GST", "78.9", "69.5"),
            ("TQN", "81.8", "74.5"),
            ("Swin-B", "80.5", "69.7"),
            ("TPN", "86.2", "76.0"),
            ("Swin-B with DSTS", "83.0", "71.5"),
            ("TPN with DSTS", "88.4", "78.2"),
        ),
        (6, 7),
    ),
    PaperTable(
        3,
        "spatio-temporal specialization",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE),
        (
            ("without STS", "87.2", "76.5"),
            ("without gates", "87.3", "76.7"),
            ("full", "88.4", "78.2"),
        ),
        (2,),
    ),
    PaperTable(
        4,
        "synapse",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE, "parameters"),
        (
            ("baseline TPN", "86.2", "76.0", "63 M"),
            ("without synapse", "86.5", "76.4", "75 M"),
            ("full", "88.4", "78.2", "75 M"),
        ),
        (2,),
    ),
    PaperTable(
        5,
        "upstream-downstream learning",
        "Diving48, TPN",
        ("variant", *_CLASS_WISE),
        (("without UDL", "87.4", "76.7"), ("with UDL", "88.4", "78.2")),
        (1,),
    ),
    PaperTable(
        6,
        "neurons per layer",
        "Diving48, TPN",
        ("N", *_CLASS_WISE),
        (("5", "87.3", "76.2"), ("10", "88.4", "78.2"), ("15", "88.3", "78.2")),
        (1,),
    ),
    PaperTable(
        7,
        "layers",
        "Diving48, TPN",
        ("L", *_CLASS_WISE),
        (("1", "87.5", "76.8"), ("3", "88.4", "78.2"), ("5", "88.2", "78.2")),
        (1,),
    ),
)

# Which row of which table a variant of configs/experiment/paper_tables.yaml stands beside.
PAPER_ROWS = {
    3: {"without_sts": "without STS", "without_gates": "without gates", "full": "full"},
    4: {"baseline": "baseline TPN", "without_synapse": "without synapse", "full": "full"},
    5: {"without_udl": "without UDL", "full": "with UDL"},
    6: {"neurons_5": "5", "full": "10", "neurons_15": "15"},
    7: {"layers_1": "1", "full": "3", "layers_5": "5"},
}


def paper_figures(table: int, variant: str) -> dict[str, float] | None:
    """Percent, by "top1" and "class_wise", of a variant in Tables 3 to 7; None if not there."""
    label = PAPER_ROWS.get(table, {}).get(variant)
    if label is None:
        return None
    rows = next(found.rows for found in PAPER_TABLES if found.number == table)
    row = next(row for row in rows if row[0] == label)
    return {"top1": float(row[1]), "class_wise": float(row[2])}
