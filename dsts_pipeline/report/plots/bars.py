"""Use of each neuron beside the shares of its channels that go to space and to time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from dsts_pipeline.report.plots.render import Chart
from dsts_pipeline.report.plots.theme import colour

ROW, USE_WIDTH, GATE_WIDTH = 20, 130, 110


def neuron_chart(
    layer: int, usage: Sequence[float], temporal_share: Sequence[float] | None
) -> Chart:
    """One layer: a row per neuron with its share of clips and of temporal channels (0..1)."""
    panels = [_use(layer, usage)]
    if temporal_share is not None:
        panels.append(_gates(layer, temporal_share))
    spoken = "; ".join(f"neuron {i + 1} {share:.0%}" for i, share in enumerate(usage))
    if temporal_share is not None:
        spoken += ". Temporal channels: " + "; ".join(
            f"neuron {i + 1} {share:.0%}" for i, share in enumerate(temporal_share)
        )
    drawing = alt.hconcat(*panels, spacing=14).properties(title=f"Layer {layer + 1}")
    return Chart(drawing, f"Layer {layer + 1}, share of clips: {spoken}.")


def _rows(**axis: Any) -> alt.Y:
    quiet = alt.Axis(title=None, domain=False, ticks=False, **axis)
    return alt.Y("neuron:O", axis=quiet)


def _use(layer: int, usage: Sequence[float]) -> Any:
    rows = [
        {
            "neuron": number,
            "share": 100 * share,
            "shown": f"{100 * share:.0f} %" if share >= 0.005 else "<1 %" if share else "dead",
            "tip": f"layer {layer + 1}, neuron {number}: chosen for {share:.1%} of clips",
        }
        for number, share in enumerate(usage, start=1)
    ]
    base = alt.Chart(alt.InlineData(rows)).encode(
        y=_rows(),
        x=alt.X("share:Q", axis=alt.Axis(title="clips, %", tickCount=3, grid=False)),
        tooltip="tip:N",
    )
    bars = base.mark_bar(height=13, color=colour(2))
    words = base.mark_text(align="left", dx=4).encode(text="shown:N")
    even = alt.Chart(alt.InlineData([{"share": 100 / len(usage)}]))
    line = even.mark_rule(strokeDash=[2, 3], color=colour("rule")).encode(x="share:Q")
    return alt.layer(bars, words, line).properties(width=USE_WIDTH, height=alt.Step(ROW))


def _gates(layer: int, temporal_share: Sequence[float]) -> Any:
    rows = []
    for number, share in enumerate(temporal_share, start=1):
        tip = (
            f"layer {layer + 1}, neuron {number}: {1 - share:.0%} of channels to the spatial, "
            f"{share:.0%} to the temporal operator"
        )
        rows += [
            {"neuron": number, "to": "space", "from": 0.0, "until": 100 * (1 - share), "tip": tip},
            {"neuron": number, "to": "time", "from": 100 * (1 - share), "until": 100.0, "tip": tip},
        ]
    looks = alt.Scale(domain=["space", "time"], range=[colour(1), colour(3)])
    legend = alt.Legend(symbolType="square", columns=2, orient="bottom", offset=4)
    bars = alt.Chart(alt.InlineData(rows)).mark_bar(height=13, opacity=0.85)
    encoded = bars.encode(
        y=_rows(labels=False),
        x=alt.X("from:Q", axis=alt.Axis(title="channels, %", tickCount=3, grid=False)),
        x2="until:Q",
        color=alt.Color("to:N", scale=looks, legend=legend),
        tooltip="tip:N",
    )
    return encoded.properties(width=GATE_WIDTH, height=alt.Step(ROW))
