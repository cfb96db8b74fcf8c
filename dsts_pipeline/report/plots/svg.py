"""SVG elements for drawings that are no charts.

Enters: numbers and texts. Leaves: `Markup` in which every text and attribute is escaped.
Colours are never written here: elements carry class names that figures.css gives colours to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

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
