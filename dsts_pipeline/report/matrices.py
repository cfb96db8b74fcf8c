"""Heat maps: confusion matrix and class-by-neuron use. Empty cells are not drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup, escape

# ---- SVG elements for drawings that are no charts. ----------------------------------------------
#
# Enters: numbers and texts. Leaves: `Markup` in which every text and attribute is escaped.
# Colours are never written here: elements carry class names that figures.css gives colours to.

Attribute = str | int | float | None


def element(tag: str, *children: str, **attributes: Attribute) -> Markup:
    """One SVG element; children that are not `Markup` are escaped.

    Attribute names lose a trailing underscore and get hyphens for the others, so
    `class_="axis", data_tip="a < b"` gives ` class="axis" data-tip="a &lt; b"`.
    """
    written = Markup("").join(
        Markup(' {}="{}"').format(name.rstrip("_").replace("_", "-"), _number(value))
        for name, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    # The tag and attribute names are ours; only values and children come from outside.
    if not children:
        return Markup(f"<{tag}{written}/>")
    return Markup(f"<{tag}{written}>{inner}</{tag}>")


def _number(value: Attribute) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


@dataclass(frozen=True)
class Drawing:
    """A whole picture: its size, its accessible name, what is in it and extra attributes."""

    width: float
    height: float
    label: str
    parts: tuple[Markup, ...]
    data: tuple[tuple[str, Attribute], ...] = ()

    def markup(self, **place: Attribute) -> Markup:
        """The `svg` element, scaled to the column that holds it."""
        return element(
            "svg",
            *self.parts,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {_number(float(self.width))} {_number(float(self.height))}",
            width=float(self.width),
            height=float(self.height),
            role="img",
            class_="drawing",
            aria_label=self.label,
            **dict(self.data),
            **place,
        )

    def __html__(self) -> str:
        return self.markup()


def sheet(drawings: Sequence[Drawing], columns: int = 3, gap: float = 24) -> Drawing:
    """Several drawings in one, row by row: for the files that stand beside the page."""
    parts, y, width = [], 0.0, 0.0
    for start in range(0, len(drawings), columns):
        x, row = 0.0, drawings[start : start + columns]
        for one in row:
            parts.append(one.markup(x=x, y=y))
            x += one.width + gap
        width = max(width, x - gap)
        y += max(one.height for one in row) + gap
    return Drawing(width, y - gap, " ".join(one.label for one in drawings), tuple(parts))


def text(
    x: float, y: float, content: str, class_: str = "label", **attributes: Attribute
) -> Markup:
    """A line of text."""
    return element("text", content, x=float(x), y=float(y), class_=class_, **attributes)


def line(
    x1: float, y1: float, x2: float, y2: float, class_: str, **attributes: Attribute
) -> Markup:
    """A straight line."""
    ends = {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2)}
    return element("line", **ends, class_=class_, **attributes)


def rectangle(
    x: float, y: float, width: float, height: float, class_: str, **attributes: Attribute
) -> Markup:
    """A filled box."""
    box = {"x": float(x), "y": float(y), "width": float(width), "height": float(height)}
    return element("rect", **box, class_=class_, **attributes)


# ---- Heat maps: confusion matrix and class-by-neuron use. Empty cells are not drawn. ------------

_MIN_LABELLED_CELL = 9.0  # below this many units a row's label would touch the next one


def group_starts(attributes: Sequence[Sequence[str]]) -> list[int]:
    """Classes at which the first attribute changes: where a matrix gets a rule."""
    values = [row[0] for row in attributes if row]
    return [i for i in range(1, len(values)) if values[i] != values[i - 1]]


def confusion_drawing(
    confusion: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Drawing:
    """Rows true, columns predicted; a cell's strength is the square root of its row's share.

    Cells carry data-row and data-column for the page's explorer.
    """
    num_classes = len(class_names)
    cell = float(np.clip(720 / num_classes, 4.0, 30.0))
    left, top = label_width(class_names, cell), 24.0
    side = cell * num_classes
    parts = matrix_frame(class_names, rules, left, top, cell)
    parts += _confusion_cells(confusion, class_names, left, top, cell)
    cursor = rectangle(left, top, cell - 0.6, cell - 0.6, "cursor")
    right = int(np.trace(confusion))
    label = (
        f"Confusion matrix of {num_classes} classes: {right} of {int(confusion.sum())} clips on "
        "the diagonal. The table of pairs below lists the largest errors."
    )
    geometry = (("data_left", left), ("data_top", top), ("data_cell", cell))
    return Drawing(left + side + 2, top + side + 2, label, (*parts, cursor), geometry)


def matrix_frame(
    class_names: Sequence[str], rules: Sequence[int], left: float, top: float, cell: float
) -> list[Markup]:
    """Ground, labels and rules of a matrix of classes by classes; cells go on top."""
    num_classes = len(class_names)
    side = cell * num_classes
    return [
        rectangle(left, top, side, side, "plane"),
        *_row_labels(class_names, left, top, cell),
        *_numbers(num_classes, left, top, cell),
        *_rules(rules, left, top, cell, num_classes),
    ]


def _confusion_cells(
    confusion: np.ndarray, class_names: Sequence[str], left: float, top: float, cell: float
) -> list[Markup]:
    parts = []
    totals = np.maximum(confusion.sum(axis=1), 1)
    for i, j in np.argwhere(confusion > 0):
        count = int(confusion[i, j])
        tip = f"{class_names[i]} taken for {class_names[j]}: {count} of {totals[i]} clips"
        if i == j:
            tip = f"{class_names[i]}: {count} of {totals[i]} clips right"
        parts.append(
            rectangle(
                left + j * cell,
                top + i * cell,
                cell - 0.6,
                cell - 0.6,
                "cell right" if i == j else "cell wrong",
                fill_opacity=strength(count / totals[i]),
                data_tip=tip,
                data_row=int(i),
                data_column=int(j),
            )
        )
    return parts


def class_by_neuron_drawing(
    counts: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Drawing:
    """Per layer a map of classes (rows) by neurons: share of a class's clips, `[L, K, N]`."""
    num_layers, num_classes, num_neurons = counts.shape
    height = float(np.clip(720 / num_classes, 4.0, 18.0))
    width = float(np.clip(760 / (num_layers * num_neurons), 8.0, 34.0))
    left, top, gap = label_width(class_names, height), 42.0, 22.0
    parts = _row_labels(class_names, left, top, height)
    for layer in range(num_layers):
        start = left + layer * (num_neurons * width + gap)
        parts += _neuron_panel(
            counts[layer], class_names, layer, (start, top, width, height), rules
        )
    full = left + num_layers * (num_neurons * width + gap) - gap
    label = (
        f"Share of each class's clips that chose each neuron, for {num_layers} layers of "
        f"{num_neurons} neurons and {num_classes} classes."
    )
    return Drawing(full + 2, top + num_classes * height + 4, label, tuple(parts))


def _neuron_panel(
    counts: np.ndarray,
    class_names: Sequence[str],
    layer: int,
    box: tuple[float, float, float, float],
    rules: Sequence[int],
) -> list[Markup]:
    start, top, width, height = box
    num_classes, num_neurons = counts.shape
    totals = np.maximum(counts.sum(axis=1), 1)
    parts = [
        text(start, 14, f"Layer {layer + 1}", "panel-title"),
        rectangle(start, top, num_neurons * width, num_classes * height, "plane"),
    ]
    for neuron in range(num_neurons):
        x = start + (neuron + 0.5) * width
        parts.append(text(x, top - 7, str(neuron + 1), "tick", text_anchor="middle"))
    for i, j in np.argwhere(counts > 0):
        share = float(counts[i, j] / totals[i])
        tip = (
            f"{class_names[i]}, layer {layer + 1}, neuron {j + 1}: "
            f"{counts[i, j]} of {totals[i]} clips ({share:.0%})"
        )
        x, y = start + j * width, top + i * height
        opacity = strength(share)
        box_size = (width - 0.6, height - 0.6)
        parts.append(rectangle(x, y, *box_size, "cell right", fill_opacity=opacity, data_tip=tip))
    for position in rules:
        y = top + position * height - 0.3
        parts.append(line(start, y, start + num_neurons * width, y, "rule"))
    return parts


def strength(share: float) -> float:
    """Opacity of a cell: the square root, so that small shares can be seen."""
    return round(float(0.10 + 0.90 * share**0.5), 2)


def label_width(class_names: Sequence[str], cell: float) -> float:
    """Room for the rows' labels at the left of a matrix."""
    if cell < _MIN_LABELLED_CELL:
        return 30.0
    return min(250.0, 40 + 5.9 * max(len(name) for name in class_names))


def _row_labels(class_names: Sequence[str], left: float, top: float, cell: float) -> list[Markup]:
    if cell < _MIN_LABELLED_CELL:
        return []
    parts = []
    for index, name in enumerate(class_names):
        y = top + (index + 0.5) * cell + 3.6
        short = name if len(name) <= 36 else name[:35] + "…"
        number = element("tspan", f"  {index + 1}", class_="tick")
        parts.append(
            element("text", short, number, x=left - 6, y=y, class_="row", text_anchor="end")
        )
    return parts


def _numbers(num_classes: int, left: float, top: float, cell: float) -> list[Markup]:
    every = 1 if cell >= 13 else 5 if cell >= 6 else 10
    return [
        text(left + (i + 0.5) * cell, top - 6, str(i + 1), "column", text_anchor="middle")
        for i in range(num_classes)
        if i == 0 or (i + 1) % every == 0
    ]


def _rules(
    positions: Sequence[int], left: float, top: float, cell: float, num_classes: int
) -> list[Markup]:
    side = cell * num_classes
    parts = []
    for position in positions:
        at = position * cell - 0.3
        parts.append(line(left, top + at, left + side, top + at, "rule"))
        parts.append(line(left + at, top, left + at, top + side, "rule"))
    return parts


# ---- Two confusion matrices apart: which cells lost clips and which gained. ---------------------


def difference_drawing(
    change: np.ndarray, class_names: Sequence[str], rules: Sequence[int] = ()
) -> Drawing:
    """Blue where the change is for the better: more on the diagonal, fewer beside it; else red.

    Args:
        change: clips gained per cell, `[K, K]`, rows true, columns predicted.
    """
    num_classes = len(class_names)
    cell = float(np.clip(720 / num_classes, 4.0, 30.0))
    left, top = label_width(class_names, cell), 24.0
    parts = matrix_frame(class_names, rules, left, top, cell)
    most = max(1, int(np.abs(change).max()))
    for i, j in np.argwhere(change != 0):
        count, better = int(change[i, j]), (change[i, j] > 0) == (i == j)
        what = "right" if i == j else f"taken for {class_names[j]}"
        tip = f"{class_names[i]}: {abs(count)} {'more' if count > 0 else 'fewer'} {what}"
        kind, opacity = "right" if better else "wrong", strength(abs(count) / most)
        box = (left + j * cell, top + i * cell, cell - 0.6, cell - 0.6)
        parts.append(rectangle(*box, f"cell {kind}", fill_opacity=opacity, data_tip=tip))
    right = int(np.trace(change))
    label = (
        f"Change of the confusion matrix of {num_classes} classes: {right:+d} clips on the "
        "diagonal. The table of classes below lists the largest changes."
    )
    side = cell * num_classes
    return Drawing(left + side + 2, top + side + 2, label, tuple(parts))
