"""The page of benchmarks/cached_views.py: docs/cached-views.md, made of its result file alone.

Enters: docs/cached-views.json. Leaves: the page; every figure of it is computed here. A difference
is of top-1 in points, paired by seed, with Student's 95 % interval over seeds and the paired
bootstrap's over test clips.
"""

from __future__ import annotations

import base64
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from dsts_pipeline.metrics.intervals import (
    Bootstrap,
    over_seeds,
    paired_over_clips,
    paired_over_seeds,
)

PLAIN = "plain"
FLY = "fly"
PAGE = """# How many augmented views are worth caching?

`backbone.views.train` = V caches V augmented views of each training clip; training takes one of
them per epoch, and none again before all were taken. This page measures how many it takes to match
views that are new in every epoch, which only training on videos has: `finetune` with
`finetune.frozen_stages` = all stages of the backbone.

{headline}

{rows}

Top-1 on {num_test:,} test clips, mean of {num_seeds} seeds, ± standard deviation over seeds.
Differences in points with 95 % intervals over seeds; over clips. Times are CPU seconds of one
thread for {num_train} training clips, decoding included; training is {num_epochs} epochs.

{cost}

**How it was measured.** Stick something, {num_train} training clips of {num_classes} classes,
{num_frames} frames of {size_px} px; the embedded backbone, which never saw these classes; an
attentive probe, the same first values in every row of a seed, {num_epochs} epochs of AdamW at
{rate:g}, batches of {batch}, nothing held out, the last epoch counts. Augmentation: `crop: {crop}`,
`flip: {flip:g}` (mirrored clips take the mirrored class), `color_jitter: {jitter:g}`, and any frame
of each segment in place of its middle. Every seed draws its own views, of which a smaller V has the
first ones; test clips are plain, maps float16. The setting was chosen on clips of another rendering
seed ([log](dev/log.md)). One data set, one head, few clips: larger sets were not measured.

`python -m benchmarks.cached_views` trains what cached-views.json lacks and writes this page from
it. No figure here was typed.
"""
COLUMNS = (
    "training clips are seen in",
    "top-1, %",
    "minus one plain view",
    "minus new views",
    "on the disk",
    "extraction, s",
    "training, s",
)


class Row(NamedTuple):
    """What a way to see training clips came to, in percent, points and CPU seconds."""

    name: str
    hits: np.ndarray
    epoch_seconds: float

    @property
    def top1(self) -> list[float]:
        """Of each seed, in percent."""
        return (100 * self.hits.mean(axis=1)).tolist()


class Difference(NamedTuple):
    """One way minus another, in points: over seeds, over clips."""

    points: float
    low: float
    high: float
    clips_low: float
    clips_high: float

    @property
    def text(self) -> str:
        """For a cell of the table."""
        seeds = f"{self.low:+.1f} to {self.high:+.1f}"
        return f"{self.points:+.1f} ({seeds}; {self.clips_low:+.1f} to {self.clips_high:+.1f})"

    @property
    def is_sure(self) -> bool:
        """Whether both intervals leave zero out."""
        ends = (self.low, self.high, self.clips_low, self.clips_high)
        return all(end > 0 for end in ends) or all(end < 0 for end in ends)


def read_rows(results: dict[str, Any]) -> dict[str, Row]:
    """The rows of a result file, by name: plain, then rising V, then fly."""
    num_test = results["regime"]["render"]["num_test"]
    seeds = [results["seeds"][seed] for seed in sorted(results["seeds"], key=int)]
    counts = sorted((name for name in seeds[0] if name.isdigit()), key=int)

    def right(run: dict[str, Any]) -> np.ndarray:
        bits = np.frombuffer(base64.b64decode(run["right"]), np.uint8)
        return np.unpackbits(bits, count=num_test).astype(bool)

    return {
        name: Row(
            name,
            np.stack([right(runs[name]) for runs in seeds]),
            fmean(runs[name]["epoch_seconds"] for runs in seeds),
        )
        for name in (PLAIN, *counts, FLY)
    }


def compare(row: Row, other: Row) -> Difference:
    """`row` minus `other`."""
    by_seed = paired_over_seeds(row.top1, other.top1)
    by_clip = paired_over_clips(row.hits, other.hits, Bootstrap())
    return Difference(
        by_seed["difference"],
        by_seed["low"],
        by_seed["high"],
        100 * by_clip["low"],
        100 * by_clip["high"],
    )


def render(results: dict[str, Any]) -> str:
    """The page."""
    regime = results["regime"]
    rows = read_rows(results)
    clips = regime["render"]["num_train"]
    epochs = regime["how"]["num_epochs"]
    megabytes = results["map_bytes"] * clips / 1e6
    plain = rows[PLAIN]
    fly = rows[FLY]
    lines = [f"| {' | '.join(COLUMNS)} |", "|---|" + "--:|" * (len(COLUMNS) - 1)]
    for name, row in rows.items():
        extraction = results["extract_seconds"].get(name)
        views = int(name) if name.isdigit() else int(name == PLAIN)
        spread = over_seeds(row.top1)["std"]
        cells = [
            _title(name, epochs),
            f"{fmean(row.top1):.1f} ± {spread:.1f}",
            "" if row is plain else compare(row, plain).text,
            "" if row is fly else compare(row, fly).text,
            f"{views * megabytes:.0f} MB" if views else "nothing",
            f"{extraction * clips:.0f}" if extraction else "none",
            f"{row.epoch_seconds * epochs:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return PAGE.format(
        headline=_headline(rows),
        rows="\n".join(lines),
        cost=_cost(results, rows),
        num_test=regime["render"]["num_test"],
        num_train=clips,
        num_seeds=len(results["seeds"]),
        num_epochs=epochs,
        num_classes=results["num_classes"],
        num_frames=regime["render"]["num_frames"],
        size_px=regime["render"]["size_px"],
        rate=regime["how"]["learning_rate"],
        batch=regime["how"]["batch_size"],
        crop=regime["augmentation"]["crop"],
        flip=regime["augmentation"]["flip"],
        jitter=regime["augmentation"]["color_jitter"],
    )


def write_page(results: dict[str, Any], path: Path) -> None:
    """Write the page of a result file."""
    path.write_text(render(results), encoding="utf-8")


def _title(name: str, epochs: int) -> str:
    if name == PLAIN:
        return "one plain view"
    if name == FLY:
        return f"new views in each of {epochs} epochs"
    return f"V = {name}"


def _headline(rows: dict[str, Row]) -> str:
    """What the differences say, by rule: sure where both intervals leave zero out."""
    fly = rows[FLY]
    counts = [name for name in rows if name.isdigit()]
    gain = compare(fly, rows[PLAIN])
    behind = [
        n for n in counts if compare(rows[n], fly).is_sure and compare(rows[n], fly).points < 0
    ]
    enough = [n for n in counts if n not in behind]
    if not gain.is_sure:
        first = f"New views in every epoch do nothing sure for this head here: {gain.text} points."
    else:
        does = "gain" if gain.points > 0 else "lose"
        first = f"New views in every epoch {does} {abs(gain.points):.1f} points on one plain view."
    if not behind:
        second = "No number of cached views is surely behind them, "
    elif not enough:
        second = "All numbers of cached views are surely behind them, "
    else:
        second = f"V = {', '.join(behind)} is surely behind them, V = {', '.join(enough)} is not: "
    last = rows[counts[-1]]
    middle = f"V = {counts[-1]} by {compare(last, fly).text}."
    return f"**{first}** {second}{middle}"


def _cost(results: dict[str, Any], rows: dict[str, Row]) -> str:
    """What on-the-fly views cost against a cache."""
    clips = results["regime"]["render"]["num_train"]
    most = max((name for name in rows if name.isdigit()), key=int)
    cached = rows[most].epoch_seconds
    fly = rows[FLY].epoch_seconds
    extraction = results["extract_seconds"][most] * clips
    return (
        f"An epoch on videos takes {fly / cached:.0f} times as long as one on cached maps. The "
        f"extraction of {most} views is worth {extraction / (fly - cached):.1f} such epochs, once "
        "for all heads, seeds and settings that train on the cache."
    )
