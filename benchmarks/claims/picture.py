"""The differences of all regimes as one picture: a panel a regime, a row a variant.

Enters: `Figures`. Leaves: an SVG file, the same for the same figures.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.claims.figures import Figures

_INK, _BETTER, _WORSE, _LEVEL = "#333333", "#1b7837", "#b2182b", "#777777"


def draw_differences(found: list[Figures], path: Path, reference: str) -> None:
    """Variant minus full, in points: thick over seeds, thin over clips, 95 % each.

    Args:
        reference: What full is, for the axis.
    """
    places = {
        name: one.variants[name]["position"] for one in found[::-1] for name in one.differences
    }
    names = sorted(places, key=lambda name: places[name])
    titles = {name: one.variants[name]["title"] for one in found[::-1] for name in one.differences}
    with matplotlib.rc_context({"svg.hashsalt": "claims", "font.size": 8}):
        picture = Figure(figsize=(2.6 + 2.3 * len(found), 1.2 + 0.22 * len(names)))
        panels = picture.subplots(1, len(found), sharey=True, squeeze=False)[0]
        for axes, figures in zip(panels, found, strict=True):
            _panel(axes, figures, names)
        panels[0].set_yticks(range(len(names)), [titles[name] for name in names])
        panels[0].invert_yaxis()
        picture.supxlabel(f"minus {reference}, points of top-1")
        picture.tight_layout()
        picture.savefig(path, metadata={"Date": None})


def draw_curve(found: list[Figures], path: Path) -> None:
    """Top-1 of every head over the number of training clips, ± the standard deviation of seeds."""
    names = list(dict.fromkeys(name for one in found for name in one.variants))
    titles = {name: v["title"] for one in found for name, v in one.variants.items()}
    with matplotlib.rc_context({"svg.hashsalt": "claims", "font.size": 8}):
        picture = Figure(figsize=(5.2, 3.4))
        axes = picture.subplots()
        for name in names:
            having = [one for one in found if name in one.variants]
            clips = [int(one.regime.more["dataset.render.num_train"]) for one in having]
            spreads = [one.spread(name) or 0.0 for one in having]
            top1 = [one.top1(name) for one in having]
            axes.errorbar(clips, top1, spreads, label=titles[name], marker="o", capsize=2)
        axes.set_xscale("log")
        ticks = [int(one.regime.more["dataset.render.num_train"]) for one in found]
        axes.set_xticks(ticks, [f"{number:,}" for number in ticks], minor=False)
        axes.set_xticks([], minor=True)
        axes.set_xlabel("training clips")
        axes.set_ylabel("top-1, percent")
        axes.grid(linewidth=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        picture.tight_layout()
        picture.savefig(path, metadata={"Date": None})


def _panel(axes: Axes, figures: Figures, names: list[str]) -> None:
    axes.axvline(0.0, color=_INK, linewidth=0.8)
    for row, name in enumerate(names):
        one = figures.differences.get(name)
        if one is None:
            continue
        color = _LEVEL
        if one.is_above_zero:
            color = _BETTER
        elif one.is_below_zero:
            color = _WORSE
        axes.plot([one.clips_low, one.clips_high], [row, row], color=color, linewidth=1.0)
        if one.low is not None and one.high is not None:
            axes.plot([one.low, one.high], [row, row], color=color, linewidth=3.0, alpha=0.45)
        axes.plot(one.points, row, "o", color=color, markersize=3.5)
    axes.set_title(textwrap.fill(figures.regime.title, 24), fontsize=8)
    axes.grid(axis="x", linewidth=0.3)
    axes.spines[["top", "right"]].set_visible(False)
